"""Is every refusal told on every surface with its status, body and headers, and how often is it asked for?

One row for each code, on each surface in turn, asked by a client with OpenAI's default retries. How a code comes about
stands in provoked.py, its status and body in surfaces.py; many more ways to the same codes in test_error_map.py and
test_refusals.py.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.books import limit
from tests.api.provoked import BESIDE, PROVOKED, Stage
from tests.api.sdk import call
from tests.api.surfaces import NATIVE, OPENAI, REFUSALS, TTAPI, Surface
from tests.sandbox_server import RunningSandbox
from tests.service import Service, running_service

ALWAYS = {"cache-control", "content-length", "content-type", "date", "x-request-id"}
CONTENT_TYPES = {NATIVE: "application/problem+json", OPENAI: "application/json", TTAPI: "application/json"}
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Told:
    """What stands beside a refusal's status and words, and what it costs.

    `retry_after` is the least and the most seconds, `generation` whether it names the one that it is about, `limit`
    the one that refused, `upstream` how many requests upstream gets in all, those of the client's retries included.
    """

    parameter: str | None = None
    retry_after: tuple[int, int] | None = None
    should_retry: str | None = None
    generation: bool = False
    limit: str | None = None
    upstream: int = 0


MENDED_BY_CALLER = Told()
FINAL = Told(should_retry="false", generation=True, upstream=1)

TOLD: Mapping[str, Told] = {
    "invalid_json": MENDED_BY_CALLER,
    "invalid_value": Told(parameter="size"),
    "missing_required_parameter": Told(parameter="prompt"),
    "unsupported_parameter": Told(parameter="stream"),
    "model_not_found": Told(parameter="model"),
    "content_rejected": Told(generation=True, upstream=1),
    "api_key_missing": MENDED_BY_CALLER,
    "api_key_mistyped": MENDED_BY_CALLER,
    "api_key_invalid": MENDED_BY_CALLER,
    "user_disabled": MENDED_BY_CALLER,
    "not_found": MENDED_BY_CALLER,
    "method_not_allowed": MENDED_BY_CALLER,
    # What was paid for is asked for by the order that made it, and by none of its repeats.
    "image_deleted": Told(upstream=1),
    "body_too_large": MENDED_BY_CALLER,
    "idempotency_key_reused": Told(parameter="Idempotency-Key"),
    "budget_spent": Told(retry_after=(1, DAY_SECONDS), should_retry="false", limit="images-per-day"),
    "rate_limit_exceeded": Told(retry_after=(1, 60), limit="requests-per-minute"),
    "too_many_in_flight": Told(retry_after=(1, 60), limit="in-flight"),
    "internal_error": Told(should_retry="false", upstream=1),
    "upstream_auth_failed": FINAL,
    "upstream_unreachable": Told(retry_after=(1, 60), generation=True),
    "upstream_model_gone": FINAL,
    "upstream_failed": Told(generation=True, upstream=3),
    "image_unavailable": FINAL,
    "upstream_balance_exhausted": FINAL,
    "upstream_busy": Told(retry_after=(1, 60), generation=True, upstream=3),
    "overloaded": Told(retry_after=(1, 10)),
    "database_unavailable": Told(retry_after=(1, 10)),
    "storage_unavailable": Told(retry_after=(1, 60)),
    "answer_unavailable": FINAL,
    "upstream_outcome_unknown": FINAL,
}


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, surface: Surface, service: Service, sandbox: RunningSandbox, data_dir: Path
) -> Stage:
    def opening(*, upstream_url: str = sandbox.url, **settings: Any) -> AbstractContextManager[Service]:
        database_url: str = request.getfixturevalue("database_url")
        return running_service(database_url=database_url, upstream_url=upstream_url, data_dir=data_dir, **settings)

    return Stage(surface, service, sandbox, data_dir, opening)


def parameter_of(surface: Surface, answer: httpx.Response) -> str | None:
    """Which field or header is said to be at fault."""
    body: dict[str, Any] = answer.json()
    named: str | None = body["error"]["param"] if surface is OPENAI else body.get("parameter")
    return named


def headers_of(surface: Surface, code: str, told: Told) -> set[str]:
    """Every header that a refusal has, and there are no others."""
    # SDKs would wait for as long as it says, which may be weeks.
    has_retry_after = told.retry_after and (code != "budget_spent" or surface is NATIVE)
    of_requests = {f"x-ratelimit-{figure}-requests" for figure in ("limit", "remaining", "reset")}
    return ALWAYS.union(
        {"openai-processing-ms"} if surface is OPENAI else (),
        {"www-authenticate"} if REFUSALS[code].native == 401 else (),
        {"allow"} if code == "method_not_allowed" else (),
        {"retry-after"} if has_retry_after else (),
        {"x-should-retry"} if told.should_retry else (),
        {"ratelimit", "ratelimit-policy"} if told.limit else (),
        of_requests if surface is OPENAI and told.limit == "requests-per-minute" else (),
        # The native body has the generation's id itself.
        {"location"} if told.generation and surface is not NATIVE else (),
    )


def assert_told(surface: Surface, answer: httpx.Response, code: str) -> None:
    """It says this, in the surface's own form, with these headers and no others."""
    told = TOLD[code]
    message = surface.assert_refused(answer, code)
    assert set(answer.headers) == headers_of(surface, code, told)
    assert answer.headers["content-type"] == CONTENT_TYPES[surface]
    assert answer.headers["x-request-id"] == f"asked-for-{code}"
    assert answer.headers.get("www-authenticate", "Bearer") == "Bearer"
    assert answer.headers.get("x-should-retry") == told.should_retry
    if "retry-after" in answer.headers:
        assert told.retry_after is not None
        assert told.retry_after[0] <= int(answer.headers["retry-after"]) <= told.retry_after[1]
    if told.limit:
        assert answer.headers["ratelimit"].startswith(f'"{told.limit}";r=0')
        assert answer.headers["ratelimit-policy"].startswith(f'"{told.limit}";q=1')
    if surface is TTAPI:
        # Its envelope has no place for it but the words.
        assert (told.parameter or "") in message
    else:
        assert parameter_of(surface, answer) == told.parameter


@pytest.mark.parametrize("code", TOLD)
def test_a_refusal_has_its_headers_and_is_asked_for_as_often_as_the_map_says(stage: Stage, code: str) -> None:
    surface, told = stage.surface, TOLD[code]
    with PROVOKED[code](stage) as refused:
        made = call(lambda mark: refused.send(surface, {**mark, "x-request-id": f"asked-for-{code}"}))

    for answer in made.answers:
        assert answer is not None
        assert_told(surface, answer, code)
    assert len(made.answers) == (3 if REFUSALS[code].again else 1)
    if told.retry_after:
        assert all(told.retry_after[0] <= pause <= told.retry_after[1] for pause in made.pauses_seconds)
    asked = [order for order in stage.sandbox.witness()["orders"] if order["prompt"] != BESIDE]
    assert len(asked) == told.upstream
    if told.generation:
        ids = [str(row["id"]) for row in refused.service.rows("SELECT id FROM generations ORDER BY created_at, id")]
        assert [surface.generation_id(answer) for answer in made.answers if answer] == ids


def test_a_client_that_pauses_for_as_long_as_it_is_told_gets_its_image(
    service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    limit(service, requests_per_minute_max=1)
    surface.order(service, BESIDE)

    def pause(seconds: float) -> None:
        # As if they were over.
        service.rows("UPDATE budgets SET request_clock = request_clock - make_interval(secs => %s)", seconds)

    made = call(lambda mark: surface.order(service, "a red fox", headers=mark), pause=pause)

    assert len(surface.images(made.answer)) == 1
    assert len(made.answers) == 2
    assert sandbox.witness(prompt="a red fox")["asked"] == 1


def test_every_refusal_that_an_order_can_meet_has_its_row() -> None:
    assert list(TOLD) == list(REFUSALS) == list(PROVOKED)
