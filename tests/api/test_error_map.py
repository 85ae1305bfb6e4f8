"""Does every outcome of the error map reach the caller as it should, and the books too?

The map is the one drawn up from how released clients behave; one test or one parameter here is one row of it, on each
of the three surfaces. What goes wrong before anything is held stands in test_refusals.py.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.errors import all_errors
from tests.api.books import NOTHING_USED, ONE_USED, WIDE_LIMITS, figures, limit, used, wait_until
from tests.api.sdk import retries_of_sdk
from tests.api.surfaces import NATIVE, OPENAI, REFUSALS, TTAPI, Surface
from tests.sandbox_server import RunningSandbox
from tests.service import Service, differences, running_service

HELD = (1, 10_000, None, None)
GIVEN_BACK = (1, 10_000, 0, 0)
SPENT = (1, 10_000, 1, 10_000)


@dataclass(frozen=True)
class Row:
    """What an upstream that does as `prompt` orders leads to."""

    prompt: str
    code: str
    retry_after: bool = False
    should_retry: str | None = None


SURELY_FREE = {
    "bad parameter": Row("[[status 400]]", "invalid_value"),
    "content rejected with 400": Row("[[refuse]]", "content_rejected"),
    "content rejected inside 200": Row("[[refuse-in-200]]", "content_rejected"),
    "FAILED inside 200": Row("[[failed-in-200]]", "upstream_failed"),
    "the operator's key refused": Row("[[status 401]]", "upstream_auth_failed", should_retry="false"),
    "the operator's account blocked": Row("[[status 403]]", "upstream_auth_failed", should_retry="false"),
    "the operator's balance empty": Row("[[status 402]]", "upstream_balance_exhausted", should_retry="false"),
    "too many requests": Row("[[status 429]]", "upstream_busy", retry_after=True),
    "queue exhausted": Row("[[status 499]]", "upstream_busy", retry_after=True),
    "no such route": Row("[[status 404]]", "upstream_model_gone", should_retry="false"),
    "model gone with 404": Row("[[model-gone]]", "upstream_model_gone", should_retry="false"),
    "model gone with 400": Row("[[model-gone 400]]", "upstream_model_gone", should_retry="false"),
}

MAY_BE_BILLED = {
    "FAILED inside 500": "[[status 500]]",
    "503": "[[status 503]]",
    "504": "[[status 504]]",
    "an HTML page with 502": "[[html 502]]",
    "an HTML page with 524": "[[html 524]]",
    "bytes that mean nothing": "[[garbage]]",
    "a dropped connection": "[[drop]]",
    "a reset connection": "[[reset]]",
    "an answer cut in the middle": "[[cut]]",
    "broken JSON": "[[broken-json]]",
    "no body": "[[empty]]",
    "200 without a picture": "[[no-url]]",
    "base64 that is none": "[[bad-b64]]",
    "a redirect": "[[redirect]]",
}

LOST = {
    "the picture is HTML": "[[picture html]] [[expires 1]]",
    "the picture is an SVG": "[[picture svg]] [[expires 1]]",
    "the picture is larger than any may be": "[[picture huge]]",
    "the picture would unpack to too many pixels": "[[picture bomb]] [[expires 1]]",
    "the picture is missing until its URL has expired": "[[picture missing]] [[expires 1]]",
}


@pytest.fixture
def closed_port_url() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def unreachable(database_url: str, closed_port_url: str, data_dir: Path) -> Iterator[Service]:
    """A service whose upstream can't be reached."""
    with running_service(
        database_url=database_url, upstream_url=closed_port_url, data_dir=data_dir, limits=dict(WIDE_LIMITS)
    ) as running:
        yield running


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    """It is a readable problem with this code, and holds nothing that is no caller's business."""
    NATIVE.assert_refused(answer, code)
    assert answer.status_code == status
    assert "TT-API-KEY" not in answer.text


@pytest.mark.parametrize("row", SURELY_FREE.values(), ids=SURELY_FREE)
def test_what_upstream_surely_did_not_bill_is_given_back(
    service: Service, sandbox: RunningSandbox, surface: Surface, row: Row
) -> None:
    limit(service)

    answer = surface.order(service, f"a red fox {row.prompt}")

    surface.assert_refused(answer, row.code)
    assert ("retry-after" in answer.headers) == row.retry_after
    assert answer.headers.get("x-should-retry") == row.should_retry
    generation = service.generation()
    assert (generation["state"], generation["failure_code"]) == ("failed", row.code)
    assert surface.generation_id(answer) == str(generation["id"])
    assert figures(generation) == GIVEN_BACK
    assert used(service) == NOTHING_USED
    assert differences(service.database_url) == []
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("row", [row for row in SURELY_FREE.values() if row.retry_after], ids=lambda row: row.prompt)
def test_a_busy_upstream_asks_for_a_pause_that_every_client_obeys(service: Service, row: Row) -> None:
    answer = service.order(f"a red fox {row.prompt}")

    assert 1 <= int(answer.headers["retry-after"]) <= 60


@pytest.mark.parametrize("prompt", MAY_BE_BILLED.values(), ids=MAY_BE_BILLED)
def test_what_upstream_may_have_billed_stays_held(
    service: Service, sandbox: RunningSandbox, surface: Surface, prompt: str
) -> None:
    limit(service)

    answer = surface.order(service, f"a red fox {prompt}")

    message = surface.assert_refused(answer, "upstream_outcome_unknown")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert "may have been made and billed" in message
    generation = service.generation()
    assert (generation["state"], generation["failure_code"]) == ("unknown", "upstream_outcome_unknown")
    assert surface.generation_id(answer) == str(generation["id"])
    assert figures(generation) == HELD
    assert used(service) == ONE_USED
    assert differences(service.database_url) == []
    assert sandbox.witness()["asked"] == 1


def test_an_upstream_that_does_not_answer_in_time_is_unknown(
    hasty_service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    limit(hasty_service)

    answer = surface.order(hasty_service, "a red fox [[hang]]")

    surface.assert_refused(answer, "upstream_outcome_unknown")
    assert answer.headers["x-should-retry"] == "false"
    assert figures(hasty_service.generation()) == HELD
    assert used(hasty_service) == ONE_USED
    assert sandbox.witness()["asked"] == 1


def test_an_upstream_that_drips_its_answer_is_unknown_when_the_time_is_up(
    hasty_service: Service, sandbox: RunningSandbox
) -> None:
    answer = hasty_service.order("a red fox [[drip 0.1]]")

    assert_problem(answer, 504, "upstream_outcome_unknown")
    assert hasty_service.generation()["state"] == "unknown"
    assert sandbox.witness()["asked"] == 1


def test_an_upstream_that_was_never_reached_bills_nothing(unreachable: Service, surface: Surface) -> None:
    answer = surface.order(unreachable, "a red fox")

    surface.assert_refused(answer, "upstream_unreachable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert "x-should-retry" not in answer.headers
    assert unreachable.generation()["state"] == "failed"
    assert figures(unreachable.generation()) == GIVEN_BACK
    assert used(unreachable) == NOTHING_USED


@pytest.mark.parametrize("prompt", LOST.values(), ids=LOST)
def test_a_picture_that_can_not_be_had_costs_the_installation_and_not_the_user(
    service: Service, sandbox: RunningSandbox, surface: Surface, prompt: str
) -> None:
    limit(service)
    limit(service, "all")

    answer = surface.order(service, f"a red fox {prompt}")

    surface.assert_refused(answer, "image_unavailable")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    generation = service.generation()
    assert (generation["state"], generation["source_urls"]) == ("lost", None)
    assert figures(generation) == SPENT
    assert used(service) == NOTHING_USED
    assert used(service, "all") == ONE_USED
    assert differences(service.database_url) == []
    assert sandbox.witness()["asked"] == 1


def test_a_picture_that_is_late_is_fetched_by_recovery_and_never_ordered_again(
    hasty_service: Service, sandbox: RunningSandbox
) -> None:
    answer = hasty_service.order("a red fox [[picture flaky 4]]")

    assert answer.status_code == 202
    assert answer.json()["state"] == "generated"
    ended = hasty_service.client.get(answer.headers["location"], headers={"prefer": "wait=30"})
    assert (ended.status_code, ended.json()["state"]) == (200, "completed")
    assert sandbox.witness()["asked"] == 1


def test_a_picture_that_never_comes_is_lost_by_recovery_once_its_url_has_expired(
    hasty_service: Service, sandbox: RunningSandbox
) -> None:
    limit(hasty_service)

    answer = hasty_service.order("a red fox [[picture missing]] [[expires 2]]")

    assert answer.status_code == 202
    ended = hasty_service.client.get(answer.headers["location"], headers={"prefer": "wait=30"})
    assert (ended.json()["state"], ended.json()["failure"]["code"]) == ("lost", "image_unavailable")
    assert ended.json()["price"]["micros"] == 0
    assert used(hasty_service) == NOTHING_USED
    assert sandbox.witness()["asked"] == 1


def test_a_picture_in_base64_needs_no_fetching(service: Service, sandbox: RunningSandbox) -> None:
    limit(service)

    answer = service.order("a red fox [[b64]]")

    assert answer.status_code == 200
    assert figures(service.generation()) == SPENT
    assert used(service) == ONE_USED
    assert sandbox.witness()["pictures"]["asked"] == 0


def test_a_delivered_picture_is_charged_once(service: Service, sandbox: RunningSandbox) -> None:
    limit(service)

    answer = service.order("a red fox")

    assert answer.status_code == 200
    assert service.generation()["state"] == "completed"
    assert figures(service.generation()) == SPENT
    assert used(service) == ONE_USED
    assert differences(service.database_url) == []
    assert sandbox.witness()["billed"] == 1


def test_a_service_that_lost_upstream_works_again_when_upstream_is_back(
    service: Service, sandbox: RunningSandbox
) -> None:
    refused = service.order("a red fox [[status 401]]")
    answer = service.order("a red fox")

    assert refused.status_code == 502
    assert answer.status_code == 200


def test_a_failed_generation_tells_why_when_it_is_asked_for_later(service: Service) -> None:
    refused = service.order("a red fox [[refuse]]")

    answer = service.client.get(f"/images/{refused.json()['id']}")

    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["price"]["micros"]) == ("failed", 0)
    assert answer.json()["failure"] == {"code": "content_rejected", "detail": refused.json()["detail"]}
    assert answer.json()["images"] == []


def test_an_unknown_generation_shows_its_price_as_held(service: Service) -> None:
    unknown = service.order("a red fox [[drop]]")

    answer = service.client.get(f"/images/{unknown.json()['id']}")

    assert (answer.json()["state"], answer.json()["price"]["micros"]) == ("unknown", 10_000)
    assert answer.json()["failure"]["code"] == "upstream_outcome_unknown"


def test_a_running_generation_is_no_error(service: Service) -> None:
    answer = service.order("a red fox [[delay 0.3]]", headers={"prefer": "respond-async"})

    assert answer.json()["state"] == "pending"
    assert "failure" not in answer.json()
    wait_until(lambda: service.generation()["state"] == "completed")


# What a client's automatic retries make of it


@pytest.mark.parametrize("obedient", [True, False], ids=["openai sdk", "ai sdk"])
@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
@pytest.mark.parametrize("prompt", MAY_BE_BILLED.values(), ids=MAY_BE_BILLED)
def test_no_automatic_retry_is_billed_again(
    service: Service, sandbox: RunningSandbox, prompt: str, told_by: Surface, obedient: bool
) -> None:
    answers = retries_of_sdk(told_by, service, f"a red fox {prompt}", obedient=obedient)

    assert len(answers) == (1 if obedient else 3)
    assert {told_by.generation_id(answer) for answer in answers} == {str(service.generation()["id"])}
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("row", SURELY_FREE.values(), ids=SURELY_FREE)
def test_an_automatic_retry_is_made_only_where_it_is_worth_it_and_free(
    service: Service, sandbox: RunningSandbox, row: Row
) -> None:
    answers = retries_of_sdk(OPENAI, service, f"a red fox {row.prompt}", obedient=True)

    assert len(answers) == (3 if REFUSALS[row.code].again else 1)
    assert (sandbox.witness()["asked"], sandbox.witness()["billed"]) == (len(answers), 0)


@pytest.mark.parametrize("obedient", [True, False], ids=["openai sdk", "ai sdk"])
@pytest.mark.parametrize("prompt", LOST.values(), ids=LOST)
def test_a_picture_that_is_lost_is_not_bought_again_by_an_automatic_retry(
    service: Service, sandbox: RunningSandbox, prompt: str, obedient: bool
) -> None:
    answers = retries_of_sdk(OPENAI, service, f"a red fox {prompt}", obedient=obedient)

    assert len(answers) == (1 if obedient else 3)
    assert sandbox.witness()["asked"] == 1


def test_every_error_that_an_order_can_meet_stands_in_the_map() -> None:
    unmet = {"generation_running", "range_not_satisfiable"}

    assert {error.code: error.status for error in all_errors() if error.code not in unmet} == {
        code: refusal.native for code, refusal in REFUSALS.items()
    }
