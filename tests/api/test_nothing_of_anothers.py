"""Does anything of one user ever stand in an answer to another, its headers included?

Ada has limits, images, and orders in every state; Bob asks for the same on each surface, and for what is hers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from uuid_utils.compat import uuid7

from app.accounts.keys import digest_of, make_key
from tests.api.books import limit, slow_prompt
from tests.api.leaving import order_and_leave
from tests.api.surfaces import NATIVE, Surface
from tests.api.wire import ask
from tests.leaks import answered, leaks
from tests.sandbox_server import RunningSandbox
from tests.service import Service

NAME = "ada-canary-51c0"
PROMPT = "a fox-canary-90d4 under a clear sky"
# An order that both place, so that its words say nothing of her; what came of hers would.
COMMON = "a red fox"
KEY = "idempotency-canary-77b1"
REQUEST_ID = "request-canary-3e8f"
# Figures that nothing else has, not even the seconds until a month begins anew.
LIMITS = {
    "in_flight_max": 7_919_191,
    "requests_per_minute_max": 6_857_131,
    "images_per_day_max": 7_727_271,
    "images_per_month_max": 77_239_321,
    "images_total_max": 777_241_931,
    "micros_per_month_max": 7_654_321_098,
}
BOBS_LIMITS = {"requests_per_minute_max": 40, "images_per_day_max": 31}
SLOW_SECONDS = 0.4
# More than she orders here: whatever remains of a limit, down to this, is hers as well.
ORDERED_MAX = 20


@dataclass(frozen=True)
class Cast:
    """Ada's key, and Bob's, who is the first user of the service."""

    service: Service
    ada: str

    def as_ada(self, surface: Surface) -> dict[str, str]:
        """The headers that make a request hers."""
        return surface.key_headers(self.ada)


def key_of_a_telling_end() -> str:
    """A key whose last four characters stand in no id, no word and no header: capitals from G on, and a digit."""
    while True:
        key = make_key()
        end = key[-4:]
        if re.fullmatch(r"[G-Z0-9]{4}", end) and re.search(r"[G-Z].*[G-Z]", end) and re.search(r"[0-9]", end):
            return key


@pytest.fixture
def cast(service: Service) -> Cast:
    ada, key, api_key_id = uuid7(), key_of_a_telling_end(), uuid7()
    service.rows("INSERT INTO users (id, name) VALUES (%s, %s)", ada, NAME)
    service.rows(
        "INSERT INTO api_keys (id, user_id, digest, last_four) VALUES (%s, %s, %s, %s)",
        *(api_key_id, ada, digest_of(key), key[-4:]),
    )
    for scope in (f"user:{ada}", f"key:{api_key_id}"):
        names = ", ".join(LIMITS)
        values = ", ".join(map(str, LIMITS.values()))
        service.rows(f"INSERT INTO budgets (scope, {names}) VALUES (%s, {values})", scope)
    limit(service, "user", **BOBS_LIMITS)
    return Cast(service, key)


def orders_of_ada(cast: Cast, sandbox: RunningSandbox, surface: Surface) -> None:
    """One that went well, one that is known by its key, and one of each kind that did not end well, or lost its client.

    Each of the last is of the kind that her own next order would be answered with.
    """
    service, hers = cast.service, {**cast.as_ada(surface), "x-request-id": REQUEST_ID}
    surface.images(surface.order(service, PROMPT, headers=hers))
    surface.images(surface.order(service, COMMON, headers={**hers, "idempotency-key": KEY}))
    surface.images(surface.order(service, COMMON, headers=hers))
    for fault in ("drop", "refuse", "picture huge"):
        assert surface.order(service, f"{COMMON} [[{fault}]]", headers=hers).status_code >= 400
    order_and_leave(surface, replace(service, key=cast.ada), sandbox, slow_prompt(SLOW_SECONDS))


def images_of_ada(cast: Cast) -> list[dict[str, Any]]:
    """The rows of her images."""
    return cast.service.rows(
        "SELECT i.id, i.extension, i.storage_key FROM images i JOIN generations g ON g.id = i.generation_id"
        " JOIN users u ON u.id = g.user_id WHERE u.name = %s",
        NAME,
    )


def secrets_of_ada(cast: Cast) -> dict[str, list[str]]:
    """Everything that is hers, as it is spelt in answers."""
    rows = cast.service.rows("SELECT g.id FROM generations g JOIN users u ON u.id = g.user_id WHERE u.name = %s", NAME)
    images = images_of_ada(cast)
    (ids,) = cast.service.rows(
        "SELECT u.id AS user_id, k.id AS api_key_id FROM users u JOIN api_keys k ON k.user_id = u.id WHERE name = %s",
        NAME,
    )
    assert len(images) >= 3
    return {
        "her key": [cast.ada],
        "what her key ends in": [cast.ada[-4:]],
        "her name": [NAME, "canary"],
        "her ids": [str(value) for value in ids.values()],
        "her generations": [str(row["id"]) for row in rows],
        "her images": [text for image in images for text in (image["id"], image["storage_key"])],
        "her words": [PROMPT, KEY, REQUEST_ID],
    }


def figures_of_ada() -> set[str]:
    """What she may use, and what can be left of it."""
    micros = [LIMITS["micros_per_month_max"] - 10_000 * used for used in range(ORDERED_MAX)]
    left = {str(maximum - used) for maximum in LIMITS.values() for used in range(ORDERED_MAX)}
    return left | {str(each) for each in micros} | {f"{each / 1_000_000:.6f}" for each in micros}


def figures_in(answers: Sequence[httpx.Response]) -> set[str]:
    """Every number in them that is long enough to be hers and no part of an id, nor of a time."""
    return {
        number
        for text in answered(answers).values()
        for number in re.findall(r"(?<![\w.-])[0-9]{4,}(?:\.[0-9]{6})?(?![\w-])", text)
    }


def without_pictures(answers: Sequence[httpx.Response]) -> list[httpx.Response]:
    """The answers with every picture's base64 and bytes taken out: four letters may well stand in there."""

    def shown(answer: httpx.Response) -> httpx.Response:
        is_picture = answer.headers.get("content-type", "").startswith("image/")
        text = "" if is_picture else re.sub(r'"b64_json":"[^"]*"', "", answer.text)
        headers = [(name, value) for name, value in answer.headers.multi_items() if name != "content-length"]
        return httpx.Response(answer.status_code, headers=headers, text=text, request=answer.request)

    return [shown(answer) for answer in answers]


def ask_for_the_same(cast: Cast, surface: Surface) -> list[httpx.Response]:
    """What Bob gets for orders like hers: plain, as a retry, under her key, in every form, and those that fail."""
    service = cast.service
    retry, keyed = {"x-stainless-retry-count": "1"}, {"idempotency-key": KEY}
    in_base64: dict[str, Any] = {} if surface is NATIVE else {"response_format": "b64_json"}
    # The first two while hers, whose client has left, is still in flight.
    good = [
        surface.order(service, slow_prompt(SLOW_SECONDS), headers=retry),
        surface.order(service, slow_prompt(SLOW_SECONDS)),
        surface.order(service, COMMON),
        surface.order(service, COMMON, headers=retry),
        surface.order(service, COMMON, headers=keyed),
        surface.order(service, COMMON, headers=keyed, **in_base64),
    ]
    assert [answer.status_code for answer in good] == [200] * len(good)
    bad = [
        surface.order(service, f"{COMMON} [[{fault}]]", headers=headers)
        for fault in ("drop", "refuse", "picture huge")
        for headers in ({}, retry)
    ]
    assert all(answer.status_code >= 400 for answer in bad)
    return good + bad


def ask_for_what_is_wrong(cast: Cast, surface: Surface) -> list[httpx.Response]:
    """What Bob is refused: over his limits and the installation's, for bad orders, and with her key beside his."""
    service = cast.service
    told = [
        surface.order(service, COMMON, headers={"idempotency-key": "bobs"}),
        surface.order(service, "another fox", headers={"idempotency-key": "bobs"}),
        surface.order(service, COMMON, model="dall-e-9"),
        surface.order(service, COMMON, size="1x1"),
        surface.post(service, content=b"no json"),
        surface.post(service, method="PUT"),
        surface.post(service, path=f"{surface.path}/nothing/here"),
        surface.order(service, COMMON, headers={"authorization": f"Bearer {service.key}", "tt-api-key": cast.ada}),
        surface.order(service, COMMON, headers=surface.key_headers(cast.ada[:-1])),
    ]
    for scope, limits in (("user", {"images_per_day_max": 1}), ("all", {"requests_per_minute_max": 0})):
        limit(service, scope, **limits)
        told.append(surface.order(service, COMMON))
    return told


def ask_for_what_is_hers(cast: Cast) -> list[httpx.Response]:
    """What Bob gets by the ids of her generations and images, in lists, and what nobody needs a key for."""
    service, client = cast.service, cast.service.client
    ids = secrets_of_ada(cast)["her generations"]
    refused = [client.get(f"/images/{generation_id}", headers={"prefer": "wait=1"}) for generation_id in ids]
    refused += [client.delete(f"/images/{generation_id}") for generation_id in ids]
    assert {answer.status_code for answer in refused} == {404}
    pages = ["/images", "/images?limit=1", *(f"/images?before={generation_id}" for generation_id in ids)]
    files = [f"/i/{image['id']}.{image['extension']}" for image in images_of_ada(cast)]
    shown = [client.get(path) for path in (*pages, *files, "/me", "/models", "/v1/models", "/v1/models/dall-e-3")]
    shown += [ask("GET", service.url + path) for path in ("/metrics", "/readyz", "/healthz", "/openapi.json")]
    assert {answer.status_code for answer in shown} == {200}
    return refused + shown


def test_nothing_of_one_user_stands_in_an_answer_to_another(
    cast: Cast, sandbox: RunningSandbox, surface: Surface
) -> None:
    orders_of_ada(cast, sandbox, surface)

    answers = [
        *ask_for_the_same(cast, surface),
        *ask_for_what_is_hers(cast),
        *ask_for_what_is_wrong(cast, surface),
    ]

    told, secrets = without_pictures(answers), secrets_of_ada(cast)
    assert leaks(secrets, answered(told)) == []
    assert figures_in(told) & figures_of_ada() == set()
    # All of it is there to be told: she is told, but for her key.
    own = [cast.service.client.get(path, headers=cast.as_ada(NATIVE)) for path in ("/me", "/images")]
    seen = {name for name, spellings in secrets.items() if leaks({name: spellings}, answered(own))}
    assert seen == {"her name", "her ids", "her generations", "her images", "her words"}
    assert figures_in(own) & figures_of_ada()
