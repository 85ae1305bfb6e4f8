"""Is an order without an Idempotency-Key that a client sends again, by itself or by its SDK, paid for once?"""

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.api.books import ONE_USED, SLOW_SECONDS, count, in_flight, limit, slow_prompt, used, wait_until
from tests.sandbox_server import RunningSandbox
from tests.service import Service, add_user, differences, running_service

# What openai-python and openai-node send with the first retry of an order.
RETRY = {"x-stainless-retry-count": "1"}

DEPARTURE_IS_HELD_UP = """SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND strpos(query, 'SET left_at = m.ts') > 0"""


@pytest.fixture
def narrow(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service that runs one generation at a time."""
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, upstream_in_flight_max=1
    ) as running:
        yield running


def order_and_leave(service: Service, sandbox: RunningSandbox, prompt: str, **headers: str) -> None:
    """Order, and close the connection once upstream has the order; the departure is written down when this returns."""
    asked_before = sandbox.witness()["asked"]
    url = httpx.URL(service.url)
    with closing(http.client.HTTPConnection(url.host, url.port or 80)) as connection:
        body = json.dumps({"prompt": prompt})
        connection.request("POST", "/images", body, {"authorization": f"Bearer {service.key}", **headers})
        wait_until(lambda: sandbox.witness()["asked"] > asked_before)
    if "idempotency-key" not in headers:
        wait_until(lambda: service.rows("SELECT id FROM generations WHERE left_at IS NOT NULL"))


@pytest.mark.parametrize("headers", [RETRY, {}, {"x-stainless-retry-count": "0"}], ids=["sdk", "plain", "sdk again"])
def test_a_client_that_gave_up_too_early_gets_the_same_image_when_it_comes_again(
    service: Service, sandbox: RunningSandbox, headers: dict[str, str]
) -> None:
    limit(service)
    order_and_leave(service, sandbox, slow_prompt())

    answer = service.order(slow_prompt(), headers=headers)

    assert answer.status_code == 200
    assert answer.json()["id"] == str(service.generation()["id"])
    assert httpx.get(answer.json()["images"][0]["url"]).status_code == 200
    assert used(service) == ONE_USED
    assert differences(service.database_url) == []
    assert sandbox.witness()["asked"] == 1


def test_a_client_that_gives_up_again_and_again_pays_once(service: Service, sandbox: RunningSandbox) -> None:
    prompt = slow_prompt(1.5)
    order_and_leave(service, sandbox, prompt)
    for retry_count in ("1", "2"):
        with pytest.raises(httpx.ReadTimeout):
            service.client.post(
                "/images", json={"prompt": prompt}, headers={"x-stainless-retry-count": retry_count}, timeout=0.2
            )
    wait_until(lambda: service.generation()["left_at"])

    answer = service.order(prompt)

    assert (answer.status_code, answer.json()["id"]) == (200, str(service.generation()["id"]))
    assert service.generation()["repeats"] == 3
    assert sandbox.witness()["asked"] == 1


def test_an_order_that_is_sent_again_before_it_is_written_down_that_its_client_left_is_paid_for_once(
    service: Service, sandbox: RunningSandbox
) -> None:
    """Chromium does so in the instant in which a connection breaks."""
    url, body = httpx.URL(service.url), json.dumps({"prompt": slow_prompt()})
    first = http.client.HTTPConnection(url.host, url.port or 80)
    first.request("POST", "/images", body, {"authorization": f"Bearer {service.key}"})
    wait_until(lambda: sandbox.witness()["asked"])
    with ThreadPoolExecutor() as clients:
        with psycopg.connect(service.database_url.replace("+psycopg", "")) as held_up:
            held_up.execute("SELECT FROM generations FOR UPDATE")
            first.close()
            wait_until(lambda: service.rows(DEPARTURE_IS_HELD_UP))
            again = clients.submit(service.order, slow_prompt())
            # Time enough to place an order, if it were taken for another one.
            wait({again}, timeout=SLOW_SECONDS + 0.2)

        assert again.result().json()["id"] == str(service.generation()["id"])

    assert sandbox.witness()["asked"] == 1


def test_an_image_that_was_handed_over_is_not_handed_over_again(service: Service, sandbox: RunningSandbox) -> None:
    order_and_leave(service, sandbox, slow_prompt(0.1))
    first = service.order(slow_prompt(0.1))

    second = service.order(slow_prompt(0.1))

    assert first.json()["id"] != second.json()["id"]
    assert sandbox.witness()["asked"] == 2


def test_an_sdks_retry_after_the_answer_was_lost_on_its_way_gets_that_answer(
    service: Service, sandbox: RunningSandbox
) -> None:
    limit(service)
    first = service.order("a red fox")

    second = service.order("a red fox", headers=RETRY)
    third = service.order("a red fox", headers=RETRY)

    assert first.json() == second.json()
    assert third.json()["id"] != first.json()["id"], "one generation answers one chain of retries"
    assert sandbox.witness()["asked"] == 2
    assert "ratelimit" not in second.headers, "it was charged nothing"


def test_an_sdks_second_retry_repeats_what_its_first_did(service: Service) -> None:
    first = service.order("a red fox")
    service.order("a red fox", headers=RETRY)
    other = service.order("a red fox")

    again = service.order("a red fox", headers={"x-stainless-retry-count": "2"})

    assert again.json()["id"] == first.json()["id"] != other.json()["id"]


def test_an_unknown_outcome_is_not_sent_again_by_any_sdk(service: Service, sandbox: RunningSandbox) -> None:
    limit(service)
    first = service.order("a red fox [[drop]]")

    marked = service.order("a red fox [[drop]]", headers=RETRY)
    # The Vercel AI SDK bears no mark and minds no x-should-retry; with the first there are three.
    unmarked = service.order("a red fox [[drop]]")

    answers = [first, marked, unmarked]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(504, "upstream_outcome_unknown")}
    assert {answer.json()["id"] for answer in answers} == {str(service.generation()["id"])}
    assert used(service) == ONE_USED
    assert sandbox.witness()["asked"] == 1


def test_whoever_insists_on_an_order_of_unknown_outcome_gets_a_new_one(
    service: Service, sandbox: RunningSandbox
) -> None:
    ids = [service.order("a red fox [[drop]]").json()["id"] for _ in range(4)]

    assert len(set(ids[:3])) == 1
    assert ids[3] != ids[0]
    assert sandbox.witness()["asked"] == 2


@pytest.mark.parametrize("fault", ["[[refuse]]", "[[status 429]]", "[[failed-in-200]]"])
def test_a_retry_of_what_surely_cost_nothing_is_sent(service: Service, sandbox: RunningSandbox, fault: str) -> None:
    service.order(f"a red fox {fault}")

    service.order(f"a red fox {fault}", headers=RETRY)

    assert sandbox.witness()["asked"] == 2


@pytest.mark.parametrize("mark", ["", "x", "-1", "1.5", "1e9", "²", "0", "9" * 400])
def test_a_retry_count_that_is_none_marks_nothing(service: Service, sandbox: RunningSandbox, mark: str) -> None:
    service.order("a red fox")
    headers = httpx.Headers([(b"x-stainless-retry-count", mark.encode())])

    answer = service.client.post("/images", json={"prompt": "a red fox"}, headers=headers)

    assert answer.status_code == 200
    assert sandbox.witness()["asked"] == 2


def test_a_repeat_on_a_spent_budget_is_an_answer(service: Service, sandbox: RunningSandbox) -> None:
    limit(service, images_total_max=1, requests_per_minute_max=1)
    order_and_leave(service, sandbox, slow_prompt(0.1))

    answer = service.order(slow_prompt(0.1))

    assert service.order(slow_prompt(0.1)).status_code == 429
    assert (answer.status_code, answer.json()["id"]) == (200, str(service.generation()["id"]))


def test_an_sdks_retry_needs_no_slot(narrow: Service, sandbox: RunningSandbox) -> None:
    with in_flight(narrow, sandbox) as order:
        refused = narrow.order(slow_prompt())
        other = narrow.order("a red fox", headers=RETRY)
        retried = narrow.order(slow_prompt(), headers=RETRY)

    assert (retried.status_code, retried.json()) == (200, order.result().json())
    assert {answer.json()["code"] for answer in (refused, other)} == {"overloaded"}
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("headers", [RETRY, {}], ids=["sdk", "plain"])
def test_nobody_else_gets_the_image(service: Service, sandbox: RunningSandbox, headers: dict[str, str]) -> None:
    order_and_leave(service, sandbox, slow_prompt(0.1))
    other = {"authorization": f"Bearer {add_user(service.database_url, 'somebody else')}"}

    answer = service.order(slow_prompt(0.1), headers={**headers, **other})

    mine = service.client.get("/images").json()["generations"]
    assert [generation["id"] for generation in mine] != [answer.json()["id"]]
    assert (count(service), sandbox.witness()["asked"]) == (2, 2)


def test_an_order_with_a_key_is_found_by_its_key_alone(service: Service, sandbox: RunningSandbox) -> None:
    key = {"idempotency-key": "order-1"}
    order_and_leave(service, sandbox, slow_prompt(0.2), **key)

    keyed = service.order(slow_prompt(0.2), headers={**key, **RETRY})
    unkeyed = service.order(slow_prompt(0.2), headers=RETRY)
    other_key = service.order(slow_prompt(0.2), headers={"idempotency-key": "order-2", **RETRY})

    assert len({answer.json()["id"] for answer in (keyed, unkeyed, other_key)}) == 3
    assert sandbox.witness()["asked"] == 3
