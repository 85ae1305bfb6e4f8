"""What does a caller see of what is theirs: their generations, their limits, the models, and nobody else's?"""

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.books import NOTHING_USED, ONE_USED, figures, in_flight, limit, used
from tests.api.test_ordering import PRICES_MICROS, listed
from tests.api.wire import ask
from tests.sandbox_server import RunningSandbox
from tests.service import Service, add_user, running_service


def as_other_user(service: Service) -> dict[str, str]:
    """The headers of a user who is not the first."""
    return {"authorization": f"Bearer {add_user(service.database_url, 'somebody else')}"}


def without_request_id(answer: httpx.Response) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if name != "request_id"}


def test_the_list_is_walked_newest_first_and_to_its_end(service: Service) -> None:
    ordered = [service.order(f"fox {number}").json()["id"] for number in range(5)]

    walked, path, pages = [], "/images?limit=2", 0
    while path:
        page = service.client.get(path).json()
        walked += [generation["id"] for generation in page["generations"]]
        path, pages = page["next"], pages + 1

    assert walked == ordered[::-1]
    assert pages == 3


def test_a_page_that_holds_the_last_generation_has_no_next(service: Service) -> None:
    for number in range(2):
        service.order(f"fox {number}")

    page = service.client.get("/images?limit=2").json()

    assert (len(page["generations"]), page["next"]) == (2, None)


def test_a_walk_is_not_disturbed_by_a_new_order(service: Service) -> None:
    oldest, newest = (service.order(f"fox {number}").json()["id"] for number in range(2))
    page = service.client.get("/images?limit=1").json()
    service.order("a fox in between")

    second = service.client.get(page["next"]).json()

    assert page["generations"][0]["id"] == newest
    assert [generation["id"] for generation in second["generations"]] == [oldest]


def test_the_list_shows_the_same_as_a_look_at_each(service: Service) -> None:
    service.order("a red fox")

    (shown,) = listed(service)

    assert service.client.get(f"/images/{shown['id']}").json() == shown


def test_the_list_shows_nobody_elses(service: Service) -> None:
    service.order("a red fox")

    answer = service.client.get("/images", headers=as_other_user(service))

    assert answer.json() == {"generations": [], "next": None}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_somebody_elses_generation_is_answered_as_one_that_never_was(service: Service, method: str) -> None:
    theirs = service.order("a red fox").json()["id"]
    headers = as_other_user(service)

    answer = service.client.request(method, f"/images/{theirs}", headers=headers)

    missing = service.client.request(method, f"/images/{uuid4()}", headers=headers)
    assert answer.status_code == missing.status_code == 404
    assert without_request_id(answer) == without_request_id(missing)
    assert service.client.get(f"/images/{theirs}").status_code == 200


def test_somebody_elses_running_generation_is_not_waited_for(service: Service, sandbox: RunningSandbox) -> None:
    headers = {**as_other_user(service), "prefer": "wait=30"}
    with in_flight(service, sandbox, seconds=1.5):
        started = time.monotonic()
        answer = service.client.get(f"/images/{listed(service)[0]['id']}", headers=headers)
        waited_seconds = time.monotonic() - started

    # How long the answer takes must not tell that there is one.
    assert answer.status_code == 404
    assert waited_seconds < 1


def test_a_deleted_generation_is_gone_but_its_amounts_stay(
    database_url: str, sandbox: RunningSandbox, data_dir: Path
) -> None:
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, limits={"images_per_day_max": 5}
    ) as service:
        order = service.order("a red fox").json()
        kept = [file for file in (data_dir / "images").rglob("*") if file.is_file()]

        answer = service.client.delete(f"/images/{order['id']}")

        assert (answer.status_code, answer.content) == (204, b"")
        gone = ask("GET", order["images"][0]["url"])
        assert (gone.status_code, gone.json()["code"]) == (410, "image_deleted")
        look = service.client.get(f"/images/{order['id']}")
        assert (look.status_code, look.json()["code"]) == (410, "image_deleted")
        assert service.client.get("/images").json()["generations"] == []
        assert len(kept) == 1
        assert not kept[0].exists()
        generation = service.generation()
        assert (generation["prompt"], generation["revised_prompt"]) == (None, None)
        assert (generation["state"], figures(generation)) == ("completed", (1, 10_000, 1, 10_000))
        assert used(service) == ONE_USED


def test_deleting_twice_is_as_deleting_once(service: Service) -> None:
    path = f"/images/{service.order('a red fox').json()['id']}"

    answers = [service.client.delete(path).status_code for _ in range(2)]

    assert answers == [204, 204]


def test_a_failed_generation_can_be_deleted_for_its_prompt(service: Service) -> None:
    order = service.order("a red fox [[refuse]]").json()

    answer = service.client.delete(f"/images/{order['id']}")

    assert answer.status_code == 204
    assert service.generation()["prompt"] is None


def test_a_running_generation_is_not_deleted(service: Service, sandbox: RunningSandbox) -> None:
    with in_flight(service, sandbox) as order:
        answer = service.client.delete(f"/images/{listed(service)[0]['id']}")

    assert (answer.status_code, answer.json()["code"]) == (409, "generation_running")
    assert order.result().status_code == 200


def test_me_tells_who_the_key_speaks_for_and_how_far_its_limits_are_used(service: Service) -> None:
    limit(service, images_per_day_max=3, micros_per_month_max=1_000_000)
    service.order("a red fox")

    answer = service.client.get("/me")

    assert (answer.status_code, answer.json()["user"]) == (200, "first")
    limits = {entry["limit"]: entry for entry in answer.json()["limits"]}
    day, month = limits["images_per_day"], limits["micros_per_month"]
    assert (day["scope"], day["maximum"], day["used"], day["remaining"]) == ("user", 3, 1, 2)
    assert (month["maximum"], month["used"], month["remaining"]) == (1_000_000, 10_000, 990_000)
    assert 0 < day["resets_in_seconds"] <= 86_400
    assert answer.headers["ratelimit-policy"] == '"images-per-day";q=3;w=86400'
    assert answer.headers["ratelimit"].startswith('"images-per-day";r=2;t=')


def test_me_tells_the_keys_own_limits_and_keeps_the_installations_to_itself(service: Service) -> None:
    limit(service, "key", images_total_max=7)
    limit(service, "all", images_total_max=1_000)

    answer = service.client.get("/me")

    assert [(entry["scope"], entry["maximum"]) for entry in answer.json()["limits"]] == [("key", 7)]


def test_me_asks_for_a_key_and_has_no_limits_without_any(service: Service) -> None:
    assert service.client.get("/me").json()["limits"] == []
    assert ask("GET", f"{service.url}/me").status_code == 401


def test_an_order_tells_what_is_left(service: Service) -> None:
    limit(service, images_per_day_max=3, images_total_max=10)

    answer = service.order("a red fox")

    assert answer.headers["ratelimit"].startswith('"images-per-day";r=2;t=')
    assert used(service) == ONE_USED != NOTHING_USED


def test_the_models_are_listed_with_what_can_be_ordered(service: Service) -> None:
    answer = service.client.get("/models").json()

    assert answer["default"] == "dall-e-3"
    model = answer["models"][0]
    assert (model["name"], model["n_max"], model["prompt_characters_max"]) == ("dall-e-3", 1, 4_000)
    assert (model["default_size"], model["default_quality"]) == ("1024x1024", "standard")
    assert {(price["size"], price["quality"]): price["micros"] for price in model["prices"]} == PRICES_MICROS
