"""What is refused before anything is held, by whom, and how?

The rows of the error map that ask neither upstream nor a person: keys, limits, overload, and a database that is away.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from app.accounts.keys import make_key
from tests.api.books import (
    NOTHING_USED,
    ONE_USED,
    count,
    database_away,
    database_read_only,
    in_flight,
    limit,
    used,
    wait_until,
)
from tests.api.sdk import retries_of_sdk
from tests.api.surfaces import NATIVE, OPENAI, TTAPI, Surface
from tests.api.test_error_map import assert_problem
from tests.sandbox_server import RunningSandbox
from tests.service import Service, differences, running_service

# Each limit of the map with a value that one order uses up, and the seconds to its reset (None: it has none).
DAY_SECONDS = 86_400
SPENT_BY_ONE_ORDER = {
    "images_per_day": 1,
    "images_per_month": 1,
    "images_total": 1,
    # Two orders of 10,000 micros are more than this.
    "micros_per_month": 19_999,
}


@pytest.fixture
def narrow(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service that runs one generation at a time."""
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, upstream_in_flight_max=1
    ) as running:
        yield running


def seconds_to_reset(name: str) -> float | None:
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if name == "images_total":
        return None
    if name == "images_per_day":
        return (midnight + timedelta(days=1) - now).total_seconds()
    return ((midnight.replace(day=1) + timedelta(days=32)).replace(day=1) - now).total_seconds()


def assert_resets(answer: httpx.Response, name: str) -> None:
    expected = seconds_to_reset(name)
    if expected is None:
        assert "retry-after" not in answer.headers
    else:
        assert abs(int(answer.headers["retry-after"]) - expected) < 60


@pytest.mark.parametrize("name", SPENT_BY_ONE_ORDER)
@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_a_spent_budget_is_told_to_clients_that_would_wait_for_weeks_without_a_time(
    service: Service, sandbox: RunningSandbox, told_by: Surface, name: str
) -> None:
    limit(service, "user", **{f"{name}_max": SPENT_BY_ONE_ORDER[name]})
    told_by.images(told_by.order(service, "a red fox"))

    answers = retries_of_sdk(told_by, service, "a red fox", obedient=True)

    (answer,) = answers
    assert told_by.assert_refused(answer, "budget_spent").startswith("Your budget is used up (")
    assert answer.headers.get("x-should-retry") == "false"
    assert "retry-after" not in answer.headers
    assert f'"{name.replace("_", "-")}";r=0' in answer.headers["ratelimit"]
    assert used(service) == ONE_USED
    assert (count(service), sandbox.witness()["asked"]) == (1, 1)


@pytest.mark.parametrize("name", SPENT_BY_ONE_ORDER)
@pytest.mark.parametrize("scope", ["user", "key", "all"])
def test_a_spent_budget_refuses_and_says_which_and_until_when(
    service: Service, sandbox: RunningSandbox, scope: str, name: str
) -> None:
    limit(service, scope, **{f"{name}_max": SPENT_BY_ONE_ORDER[name]})
    first = service.order("a red fox")

    answer = service.order("a red fox")

    assert first.status_code == 200
    assert_problem(answer, 429, "budget_spent")
    assert answer.headers["x-should-retry"] == "false"
    problem = answer.json()
    assert (problem["scope"], problem["limit"], problem["maximum"]) == (scope, name, SPENT_BY_ONE_ORDER[name])
    whose = {"user": "Your", "key": "This API key's", "all": "This installation's"}[scope]
    assert problem["detail"].startswith(f"{whose} budget is used up (")
    assert_resets(answer, name)
    assert ";r=0" in answer.headers["ratelimit"]
    assert used(service, scope) == ONE_USED
    assert (count(service), sandbox.witness()["asked"]) == (1, 1)
    assert differences(service.database_url) == []


def test_an_order_in_flight_refuses_the_next_only_until_it_has_ended(
    service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    limit(service, in_flight_max=1)
    with in_flight(service, sandbox) as first:
        answer = surface.order(service, "a red fox")

    surface.assert_refused(answer, "too_many_in_flight")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert "x-should-retry" not in answer.headers
    assert first.result().status_code == 200
    assert sandbox.witness()["asked"] == 1
    assert service.order("a red fox").status_code == 200


@pytest.mark.parametrize("scope", ["user", "key", "all"])
def test_more_orders_than_allowed_a_minute_are_told_to_wait(
    service: Service, sandbox: RunningSandbox, surface: Surface, scope: str
) -> None:
    limit(service, scope, requests_per_minute_max=2)
    allowed = [service.order("a red fox").status_code for _ in range(2)]

    answer = surface.order(service, "a red fox")

    assert allowed == [200, 200]
    surface.assert_refused(answer, "rate_limit_exceeded")
    whose = {"user": "", "key": "key-", "all": "installation-"}[scope]
    assert answer.headers["ratelimit-policy"] == f'"{whose}requests-per-minute";q=2;w=60'
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert "x-should-retry" not in answer.headers
    assert (count(service), sandbox.witness()["asked"]) == (2, 2)


@pytest.mark.parametrize("maximum", [1, 3, 7])
def test_an_order_is_told_how_many_are_left_this_minute(service: Service, maximum: int) -> None:
    limit(service, requests_per_minute_max=maximum)

    told = [service.order("a red fox").headers["ratelimit"] for _ in range(maximum)]

    left = range(maximum - 1, -1, -1)
    assert [line.partition(";t=")[0] for line in told] == [f'"requests-per-minute";r={number}' for number in left]
    assert all(1 <= int(line.partition(";t=")[2]) <= 60 for line in told)


def test_a_limit_of_zero_refuses_the_first_order(service: Service, sandbox: RunningSandbox) -> None:
    limit(service, requests_per_minute_max=0)

    answer = service.order("a red fox")

    assert_problem(answer, 429, "rate_limit_exceeded")
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


def test_of_several_broken_limits_the_one_that_lasts_longest_is_told(service: Service) -> None:
    limit(service, images_per_day_max=0, images_per_month_max=0, requests_per_minute_max=0)

    answer = service.order("a red fox")

    assert answer.json()["limit"] == "images_per_month"


def test_a_refused_order_uses_nothing_up(service: Service) -> None:
    limit(service, images_per_day_max=0, in_flight_max=5, requests_per_minute_max=1)

    codes = [service.order("a red fox").json()["code"] for _ in range(3)]

    assert codes == ["budget_spent"] * 3
    assert used(service) == NOTHING_USED


def test_an_overloaded_service_says_so_at_once_and_holds_nothing(
    narrow: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    with in_flight(narrow, sandbox) as first:
        answer = surface.order(narrow, "a red fox")
        held = count(narrow)

    surface.assert_refused(answer, "overloaded")
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert "x-should-retry" not in answer.headers
    assert held == 1
    assert first.result().status_code == 200
    assert sandbox.witness()["asked"] == 1


def test_an_order_is_taken_again_when_the_overload_is_over(narrow: Service, sandbox: RunningSandbox) -> None:
    with in_flight(narrow, sandbox, seconds=0.2):
        pass

    answer = narrow.order("a red fox")

    assert answer.status_code == 200


def test_without_its_database_the_service_orders_nothing(
    service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    with database_away(service):
        answer = surface.order(service, "a red fox")

    surface.assert_refused(answer, "database_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


def test_the_first_order_after_the_database_is_back_is_taken(service: Service) -> None:
    with database_away(service):
        service.order("a red fox")

    answer = service.order("a red fox")

    assert answer.status_code == 200


def test_a_database_that_goes_away_in_the_middle_costs_no_picture(service: Service, sandbox: RunningSandbox) -> None:
    limit(service)
    with in_flight(service, sandbox, seconds=0.3) as order, database_away(service):
        wait_until(lambda: sandbox.witness()["pictures"]["asked"])

    assert order.result().status_code == 200
    assert used(service) == ONE_USED
    assert sandbox.witness()["asked"] == 1


def test_a_database_that_takes_no_writes_is_as_one_that_is_away(service: Service, sandbox: RunningSandbox) -> None:
    with database_read_only(service):
        answer = service.order("a red fox")

    assert_problem(answer, 503, "database_unavailable")
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


def recovery_asked(service: Service) -> bool:
    """Whether recovery's statement is the last of one of the service's connections."""
    return bool(
        service.rows(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'imagekeep' AND query LIKE '%%SKIP LOCKED%%'"
        )
    )


def test_recovery_goes_on_when_the_database_takes_writes_again(
    database_url: str, sandbox: RunningSandbox, data_dir: Path
) -> None:
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, generated_lease_seconds=0.5
    ) as service:
        with database_read_only(service):
            wait_until(lambda: recovery_asked(service))
        order = service.order("a red fox [[picture flaky 3]]")

        ended = service.client.get(order.headers["location"], headers={"prefer": "wait=10"})

        assert (order.status_code, ended.json()["state"]) == (202, "completed")


def test_a_crash_of_ours_is_told_in_the_same_form_and_tells_nothing(service: Service) -> None:
    service.order("a red fox")
    # A time that Python has none for: nobody foresaw it, and no code of ours catches what comes of it.
    service.rows("UPDATE generations SET created_at = 'infinity'")

    answer = service.client.get("/images")

    assert_problem(answer, 500, "internal_error")
    assert answer.headers["x-should-retry"] == "false"
    assert "infinity" not in answer.text


def test_a_user_that_was_disabled_may_not_order(service: Service, sandbox: RunningSandbox, surface: Surface) -> None:
    service.rows("UPDATE users SET disabled_at = now()")

    answer = surface.order(service, "a red fox")

    surface.assert_refused(answer, "user_disabled")
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


def test_a_crash_that_an_order_meets_is_told_in_its_own_form_and_forbids_another_try(
    service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    key = {"idempotency-key": "order-1"}
    service.order("a red fox", headers=key)
    service.rows("UPDATE generations SET created_at = 'infinity'")

    answer = surface.order(service, "a red fox", headers=key)

    surface.assert_refused(answer, "internal_error")
    assert answer.headers["x-should-retry"] == "false"
    assert "infinity" not in answer.text
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "", b"x" * 524_289, "body_too_large"),
        ("POST", "", b"no json", "invalid_json"),
        ("POST", "", b"[]", "invalid_json"),
        ("POST", "", b"{}", "missing_required_parameter"),
        ("POST", "", b'{"prompt":"a","size":"1x1"}', "invalid_value"),
        ("POST", "", b'{"prompt":"a","n":2}', "unsupported_parameter"),
        ("POST", "", b'{"prompt":"a","n":"1"}', "invalid_value"),
        ("POST", "", b'{"prompt":"a","stream":true}', "unsupported_parameter"),
        ("POST", "", b'{"prompt":"a","model":"dall-e-9"}', "model_not_found"),
        ("PUT", "", b"", "method_not_allowed"),
        ("GET", "/nothing", b"", "not_found"),
    ],
)
def test_what_no_limit_has_to_do_with_is_the_callers_to_mend(
    service: Service, sandbox: RunningSandbox, surface: Surface, method: str, path: str, body: bytes, code: str
) -> None:
    answer = surface.post(service, method=method, path=f"{surface.path}{path}", content=body)

    surface.assert_refused(answer, code)
    assert "retry-after" not in answer.headers
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("", "api_key_missing"),
        ("sk-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH", "api_key_mistyped"),
        (make_key(), "api_key_invalid"),
    ],
    ids=["none", "another service's", "nobody's"],
)
def test_a_wrong_key_is_told_in_the_clients_own_form(
    service: Service, sandbox: RunningSandbox, surface: Surface, key: str, code: str
) -> None:
    answer = surface.order(service, "a red fox", headers=surface.key_headers(key))

    surface.assert_refused(answer, code)
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


def test_a_key_that_was_used_for_another_order_is_told_so(
    service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    key = {"idempotency-key": "order-1"}
    surface.order(service, "a red fox", headers=key)

    answer = surface.order(service, "a blue fox", headers=key)

    surface.assert_refused(answer, "idempotency_key_reused")
    assert sandbox.witness()["asked"] == 1


def test_an_image_that_was_deleted_is_not_ordered_again(
    service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    key = {"idempotency-key": "order-1"}
    first = surface.order(service, "a red fox", headers=key)
    service.client.delete(f"/images/{surface.generation_id(first)}")

    answer = surface.order(service, "a red fox", headers=key)

    surface.assert_refused(answer, "image_deleted")
    assert sandbox.witness()["asked"] == 1


def test_a_refused_method_is_told_which_are_allowed(service: Service, surface: Surface) -> None:
    answer = surface.post(service, method="PUT")

    assert answer.headers["allow"] == ("GET, POST" if surface is NATIVE else "POST")
