"""Do OpenAI's and TTAPI's clients wait to the end, how long is that at most, and what are they told then?"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.books import ONE_USED, limit, slow_prompt, used, wait_until
from tests.api.leaving import departures
from tests.api.sdk import retries_of_sdk
from tests.api.surfaces import OPENAI, TTAPI, Surface
from tests.sandbox_server import RunningSandbox
from tests.service import Service, differences, running_service

LIMIT_SECONDS = 1.5
KEY = {"idempotency-key": "order-1"}
# Not to be had for as long as any test takes.
NEVER = "a red fox [[picture flaky 999]]"
BOTH = pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)


@pytest.fixture
def limited(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service that leaves a picture to recovery soon, and lets nobody wait for that for long."""
    with running_service(
        database_url=database_url,
        upstream_url=sandbox.url,
        data_dir=data_dir,
        generated_lease_seconds=1,
        recovery_wait_seconds_max=LIMIT_SECONDS,
    ) as running:
        yield running


@pytest.fixture
def steady(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """As `limited`, with the usual time for its own pictures."""
    with running_service(
        database_url=database_url,
        upstream_url=sandbox.url,
        data_dir=data_dir,
        recovery_wait_seconds_max=LIMIT_SECONDS,
    ) as running:
        yield running


@BOTH
@pytest.mark.parametrize("prefer", ["respond-async", "wait=0", "respond-async, wait=1"])
def test_there_is_no_answer_before_the_end(service: Service, told_by: Surface, prefer: str) -> None:
    answer = told_by.order(service, slow_prompt(), headers={"prefer": prefer})

    assert len(told_by.images(answer)) == 1
    assert "preference-applied" not in answer.headers


@BOTH
@pytest.mark.parametrize("obedient", [True, False], ids=["openai sdk", "ai sdk"])
def test_what_recovery_goes_on_with_is_waited_for_up_to_the_limit_and_bought_once(
    limited: Service, sandbox: RunningSandbox, told_by: Surface, obedient: bool
) -> None:
    limit(limited)
    started = time.monotonic()

    answers = retries_of_sdk(
        told_by, limited, NEVER, obedient=obedient, pause=lambda seconds: wait_until(lambda: departures(limited))
    )

    assert len(answers) == (1 if obedient else 3)
    assert time.monotonic() - started >= LIMIT_SECONDS * len(answers)
    for answer in answers:
        message = told_by.assert_refused(answer, "answer_unavailable")
        assert f"GET /images/{limited.generation()['id']}" in message
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["location"] == f"/images/{limited.generation()['id']}"
        assert "retry-after" not in answer.headers
    assert limited.generation()["state"] == "generated"
    assert used(limited) == ONE_USED
    assert differences(limited.database_url) == []
    assert (sandbox.witness()["asked"], sandbox.witness()["billed"]) == (1, 1)


@BOTH
def test_who_was_told_not_to_wait_any_longer_gets_the_picture_with_the_next_order(
    limited: Service, sandbox: RunningSandbox, told_by: Surface
) -> None:
    prompt = "a red fox [[picture flaky 12]]"
    refused = told_by.order(limited, prompt)
    wait_until(lambda: departures(limited))
    wait_until(lambda: limited.generation()["state"] == "completed", seconds=60)

    answer = told_by.order(limited, prompt)

    told_by.assert_refused(refused, "answer_unavailable")
    assert len(told_by.images(answer)) == 1
    assert told_by.generation_id(answer) == told_by.generation_id(refused)
    assert sandbox.witness()["asked"] == 1


@BOTH
def test_an_order_whose_runner_is_gone_is_told_to_be_unknown_when_the_limit_is_reached(
    steady: Service, sandbox: RunningSandbox, told_by: Surface
) -> None:
    told_by.images(told_by.order(steady, "a red fox", headers=KEY))
    # As another process leaves it that was killed in the middle, and that recovery can't look after just now.
    steady.rows(
        "UPDATE generations SET state = 'pending', lease_until = now() + interval '1 hour', attempts = 1,"
        " finished_at = NULL, settled_images = NULL, settled_micros = NULL"
    )
    started = time.monotonic()

    answers = retries_of_sdk(told_by, steady, "a red fox", obedient=True, headers=KEY)

    (answer,) = answers
    told_by.assert_refused(answer, "upstream_outcome_unknown")
    assert answer.headers["x-should-retry"] == "false"
    assert time.monotonic() - started >= LIMIT_SECONDS
    assert sandbox.witness()["asked"] == 1
