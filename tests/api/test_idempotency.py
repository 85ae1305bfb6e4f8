"""Is an order with an Idempotency-Key placed once, however often it is sent?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.api.books import ONE_USED, count, in_flight, limit, slow_prompt, used
from tests.sandbox_server import RunningSandbox
from tests.service import Service, add_user, differences, running_service

KEY = {"idempotency-key": "order-1"}


@pytest.fixture
def narrow(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service that runs one generation at a time."""
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, upstream_in_flight_max=1
    ) as running:
        yield running


def test_the_same_key_and_order_is_answered_again_and_charged_once(service: Service, sandbox: RunningSandbox) -> None:
    limit(service)
    first = service.order("a red fox", headers=KEY)

    second = service.order("a red fox", headers=KEY)

    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert used(service) == ONE_USED
    assert sandbox.witness()["asked"] == 1


def test_an_order_is_the_same_however_its_json_is_written(service: Service, sandbox: RunningSandbox) -> None:
    service.order("a red fox", headers=KEY)

    second = service.client.post("/images", content=b'{"n":1,  "size":null,"prompt":"a red \\u0066ox"}', headers=KEY)

    assert second.status_code == 200
    assert sandbox.witness()["asked"] == 1


def test_thirty_at_once_are_one_generation(service: Service, sandbox: RunningSandbox) -> None:
    limit(service)
    with ThreadPoolExecutor(30) as threads:
        orders = [threads.submit(service.order, "a red fox [[delay 0.3]]", headers=KEY) for _ in range(30)]

    answers = [order.result() for order in orders]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert used(service) == ONE_USED
    assert differences(service.database_url) == []
    assert sandbox.witness()["asked"] == 1


def test_a_replay_waits_for_the_generation_that_runs(service: Service, sandbox: RunningSandbox) -> None:
    with in_flight(service, sandbox, headers=KEY) as order:
        second = service.order(slow_prompt(), headers=KEY)

    assert second.status_code == 200
    assert second.json() == order.result().json()
    assert sandbox.witness()["asked"] == 1


def test_a_replay_that_does_not_wait_is_told_where_to_look(service: Service, sandbox: RunningSandbox) -> None:
    with in_flight(service, sandbox, headers=KEY) as order:
        second = service.order(slow_prompt(), headers={**KEY, "prefer": "respond-async"})

    assert (second.status_code, second.json()["state"]) == (202, "pending")
    assert second.headers["location"] == order.result().headers["location"]


@pytest.mark.parametrize(
    "other",
    # The last is what the first order was made with, but it did not say so.
    [{"prompt": "a blue fox"}, {"size": "1792x1024"}, {"quality": "hd"}, {"model": "dall-e-3"}],
    ids=lambda other: next(iter(other)),
)
def test_the_same_key_for_another_order_is_refused(
    service: Service, sandbox: RunningSandbox, other: dict[str, str]
) -> None:
    service.order("a red fox", headers=KEY)

    answer = service.client.post("/images", json={"prompt": "a red fox", **other}, headers=KEY)

    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert answer.json()["parameter"] == "Idempotency-Key"
    assert (count(service), sandbox.witness()["asked"]) == (1, 1)


def test_a_replay_on_a_spent_budget_is_an_answer(service: Service, sandbox: RunningSandbox) -> None:
    limit(service, images_total_max=1, requests_per_minute_max=1)
    first = service.order("a red fox", headers=KEY)

    second = service.order("a red fox", headers=KEY)

    assert service.order("a red fox").status_code == 429
    assert (second.status_code, second.json()) == (200, first.json())


def test_a_replay_needs_no_slot(narrow: Service, sandbox: RunningSandbox) -> None:
    first = narrow.order("a red fox", headers=KEY)
    with in_flight(narrow, sandbox):
        second = narrow.order("a red fox", headers=KEY)
        other = narrow.order("a blue fox", headers=KEY)

    assert (second.status_code, second.json()) == (200, first.json())
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_a_replay_of_what_fills_the_last_slot_waits_for_it(narrow: Service, sandbox: RunningSandbox) -> None:
    with in_flight(narrow, sandbox, headers=KEY) as order:
        second = narrow.order(slow_prompt(), headers=KEY)

    assert second.json() == order.result().json()
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("fault", ["[[refuse]]", "[[status 429]]", "[[status 402]]", "[[failed-in-200]]"])
def test_a_failure_that_surely_cost_nothing_leaves_the_key_free(
    service: Service, sandbox: RunningSandbox, fault: str
) -> None:
    service.order(f"a red fox {fault}", headers=KEY)

    answer = service.order("a red fox", headers=KEY)

    assert answer.status_code == 200
    assert sandbox.witness()["asked"] == 2


def test_a_refusal_leaves_the_key_free(service: Service, sandbox: RunningSandbox) -> None:
    limit(service, images_total_max=0)
    refused = service.order("a red fox", headers=KEY)
    limit(service, images_total_max=1)

    answer = service.order("a red fox", headers=KEY)

    assert (refused.status_code, answer.status_code) == (429, 200)
    assert sandbox.witness()["asked"] == 1


def test_an_order_that_was_wrong_leaves_the_key_free(service: Service) -> None:
    wrong = service.order("a red fox", size="1x1", headers=KEY)

    answer = service.order("a red fox", headers=KEY)

    assert (wrong.status_code, answer.status_code) == (400, 200)


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [("[[drop]]", 504, "upstream_outcome_unknown"), ("[[picture huge]]", 502, "image_unavailable")],
)
def test_what_may_have_been_billed_is_answered_again_and_not_ordered_again(
    service: Service, sandbox: RunningSandbox, prompt: str, status: int, code: str
) -> None:
    first = service.order(f"a red fox {prompt}", headers=KEY)

    second = service.order(f"a red fox {prompt}", headers=KEY)

    assert [(answer.status_code, answer.json()["code"]) for answer in (first, second)] == [(status, code)] * 2
    assert first.json()["id"] == second.json()["id"]
    assert sandbox.witness()["asked"] == 1


def test_a_deleted_generation_is_not_ordered_again(service: Service, sandbox: RunningSandbox) -> None:
    first = service.order("a red fox", headers=KEY)
    service.client.delete(f"/images/{first.json()['id']}")

    second = service.order("a red fox", headers=KEY)

    assert (second.status_code, second.json()["code"]) == (410, "image_deleted")
    assert sandbox.witness()["asked"] == 1


def test_a_key_is_its_users_own(service: Service, sandbox: RunningSandbox) -> None:
    first = service.order("a red fox", headers=KEY)
    other = {**KEY, "authorization": f"Bearer {add_user(service.database_url, 'somebody else')}"}

    second = service.order("a red fox", headers=other)

    assert second.status_code == 200
    assert first.json()["id"] != second.json()["id"]
    assert sandbox.witness()["asked"] == 2


def test_without_a_key_two_equal_orders_are_two_images(service: Service, sandbox: RunningSandbox) -> None:
    ids = {service.order("a red fox").json()["id"] for _ in range(2)}

    assert len(ids) == 2
    assert sandbox.witness()["asked"] == 2


def test_the_longest_key_is_taken(service: Service) -> None:
    headers = {"idempotency-key": "!~" * 127 + "x"}

    ids = {service.order("a red fox", headers=headers).json()["id"] for _ in range(2)}

    assert len(ids) == 1


@pytest.mark.parametrize(
    "key",
    [b"", b"x" * 256, b"two words", b"a\tb", b"schl\xfcssel", "schlüssel".encode(), b"x" * 8_000],
    ids=["empty", "256", "space", "tab", "latin-1", "utf-8", "8000"],
)
def test_a_key_that_is_none_is_refused(service: Service, sandbox: RunningSandbox, key: bytes) -> None:
    headers = httpx.Headers([(b"idempotency-key", key)])

    answer = service.client.post("/images", json={"prompt": "a red fox"}, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_value")
    assert answer.json()["parameter"] == "Idempotency-Key"
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


def test_two_keys_at_once_are_refused(service: Service, sandbox: RunningSandbox) -> None:
    headers = httpx.Headers([("idempotency-key", "a"), ("idempotency-key", "b")])

    answer = service.client.post("/images", json={"prompt": "a red fox"}, headers=headers)

    assert answer.status_code == 400
    assert sandbox.witness()["asked"] == 0


def test_two_users_with_one_key_at_once_are_two_generations(service: Service, sandbox: RunningSandbox) -> None:
    limit(service)
    other = {**KEY, "authorization": f"Bearer {add_user(service.database_url, 'somebody else')}"}
    with ThreadPoolExecutor(2) as threads:
        orders = [threads.submit(service.order, "a red fox", headers=headers) for headers in (KEY, other)]

    assert {order.result().status_code for order in orders} == {200}
    assert used(service) == ONE_USED
    assert sandbox.witness()["asked"] == 2
