"""What does a caller see while upstream is not well, and who tries whether it is well again?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.api.books import count, wait_until
from tests.api.test_error_map import assert_problem
from tests.api.wire import ask
from tests.sandbox_server import RunningSandbox
from tests.service import Service, running_service

OPEN_SECONDS = 60


@pytest.fixture
def service(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service whose breaker opens for longer than any test takes."""
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, breaker_seconds=OPEN_SECONDS
    ) as running:
        yield running


@pytest.fixture
def hasty(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service whose breaker lets a probe go almost at once."""
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, breaker_seconds=0.2
    ) as running:
        yield running


@pytest.fixture
def patient(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service whose breaker lets a second probe go when those that came with the first have long been refused."""
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, breaker_seconds=3
    ) as running:
        yield running


def breaker(service: Service) -> str:
    """What readiness tells of it; readiness stays green."""
    answer = ask("GET", f"{service.url}/readyz")
    assert answer.status_code == 200
    state: str = answer.json()["breaker"]
    return state


@pytest.mark.parametrize(
    ("fault", "times", "status", "code"),
    [
        ("[[status 401]]", 1, 502, "upstream_auth_failed"),
        ("[[status 403]]", 1, 502, "upstream_auth_failed"),
        ("[[status 402]]", 1, 503, "upstream_balance_exhausted"),
        ("[[status 500]]", 5, 502, "upstream_unreachable"),
        ("[[drop]]", 5, 502, "upstream_unreachable"),
    ],
)
def test_an_upstream_that_is_not_well_is_asked_no_more_and_nothing_is_held(
    service: Service, sandbox: RunningSandbox, fault: str, times: int, status: int, code: str
) -> None:
    for number in range(times):
        # Another one each: the same again would be answered with the one that is unknown.
        assert service.order(f"fox {number} {fault}").status_code >= 500

    answer = service.order("a hare")

    assert_problem(answer, status, code)
    assert 1 <= int(answer.headers["retry-after"]) <= OPEN_SECONDS
    assert "id" not in answer.json()
    assert breaker(service) == "open"
    assert (count(service), sandbox.witness()["asked"]) == (times, times)


@pytest.mark.parametrize("fault", ["[[refuse]]", "[[status 429]]", "[[failed-in-200]]"])
def test_refusals_of_single_orders_leave_it_closed(service: Service, fault: str) -> None:
    for _ in range(6):
        assert service.order(f"a fox {fault}").status_code in (400, 502, 503)

    assert service.order("a hare").status_code == 200


def test_a_known_key_is_answered_while_it_is_open(service: Service) -> None:
    keyed = {"idempotency-key": "known"}
    first = service.order("a fox", headers=keyed)
    service.order("a fox [[status 401]]")

    again = service.order("a fox", headers=keyed)

    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


def test_when_its_time_is_over_one_of_many_orders_tries_and_all_go_after_it(
    patient: Service, sandbox: RunningSandbox
) -> None:
    patient.order("a fox [[status 401]]")
    wait_until(lambda: breaker(patient) == "half-open")

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: patient.order("a hare [[delay 3]]").status_code, range(8)))

    assert sorted(answers) == [200] + [502] * 7
    assert sandbox.witness()["asked"] == 2
    assert breaker(patient) == "closed"
    assert patient.order("a hare").status_code == 200


def test_while_a_probe_hangs_another_order_finds_out_that_upstream_is_well_again(
    hasty: Service, sandbox: RunningSandbox
) -> None:
    hasty.order("a fox [[status 401]]")
    wait_until(lambda: breaker(hasty) == "half-open")
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(hasty.order, "a hare [[delay 5]]")
        wait_until(lambda: sandbox.witness()["asked"] == 2)

        wait_until(lambda: hasty.order("an otter").status_code == 200)

        assert not hanging.done()
        assert breaker(hasty) == "closed"


def test_an_order_that_a_limit_refuses_is_no_probe(patient: Service) -> None:
    patient.order("a fox [[status 401]]")
    wait_until(lambda: breaker(patient) == "half-open")
    patient.rows(
        "INSERT INTO budgets (scope, images_total_max) SELECT 'user:' || id, 0 FROM users WHERE name = 'first'"
    )
    refused = patient.order("a hare")
    patient.rows("DELETE FROM budgets")

    answer = patient.order("a hare")

    assert (refused.status_code, answer.status_code) == (429, 200)


def test_the_metrics_tell_that_it_is_open_and_who_was_refused(service: Service) -> None:
    service.order("a fox [[status 402]]")
    service.order("a hare")

    figures = ask("GET", f"{service.url}/metrics").text

    assert 'imagekeep_refusals_total{code="upstream_balance_exhausted",limit=""}' in figures
    assert "\nimagekeep_breaker_open 0.0\n" not in figures
