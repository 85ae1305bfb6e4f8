"""Is an order paid for once, on whichever surface it is sent, and sent again?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.api.books import ONE_USED, count, in_flight, limit, slow_prompt, used, wait_until
from tests.api.leaving import departures, order_and_leave
from tests.api.sdk import retries_of_sdk
from tests.api.surfaces import NATIVE, OPENAI, TTAPI, Surface
from tests.sandbox_server import RunningSandbox
from tests.service import Service, differences, running_service

KEY = {"idempotency-key": "order-1"}
RETRY = {"x-stainless-retry-count": "1"}


@pytest.fixture
def crowded(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service in which nobody may wait but for an order of their own."""
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, waiters_max=0
    ) as running:
        yield running


@pytest.fixture
def impatient(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """As `crowded`; a picture that is not there within a second is left to recovery."""
    with running_service(
        database_url=database_url,
        upstream_url=sandbox.url,
        data_dir=data_dir,
        waiters_max=0,
        generated_lease_seconds=1,
    ) as running:
        yield running


def test_the_same_key_and_order_is_answered_again_and_charged_once(
    service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    limit(service)
    answers = [surface.order(service, "a red fox", headers=KEY) for _ in range(2)]

    assert answers[0].json() == answers[1].json()
    assert used(service) == ONE_USED
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("headers", [RETRY, {}], ids=["sdk", "plain"])
def test_a_client_that_gave_up_too_early_gets_the_same_image_when_it_comes_again(
    service: Service, sandbox: RunningSandbox, surface: Surface, headers: dict[str, str]
) -> None:
    limit(service)
    order_and_leave(surface, service, sandbox, slow_prompt())

    answer = surface.order(service, slow_prompt(), headers=headers)

    assert surface.generation_id(answer) == str(service.generation()["id"])
    assert len(surface.images(answer)) == 1
    assert used(service) == ONE_USED
    assert differences(service.database_url) == []
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("headers", [KEY, RETRY], ids=["key", "sdk"])
def test_the_same_order_on_another_surface_is_the_same_order(
    service: Service, sandbox: RunningSandbox, surface: Surface, headers: dict[str, str]
) -> None:
    first = NATIVE.order(service, "a red fox", size="1792x1024", headers=KEY if headers is KEY else {})

    # What says nothing about the picture is no part of the order: the form of the answer, and who the end user is.
    beside = {} if surface is NATIVE else {"response_format": "url", "user": "somebody"}
    again = surface.order(service, "a red fox", size="1792x1024", headers=headers, **beside)

    (image,) = surface.images(again)
    assert image["url"] == NATIVE.images(first)[0]["url"]
    assert sandbox.witness()["asked"] == 1


def test_a_repeat_may_ask_for_another_form_of_the_answer(service: Service, sandbox: RunningSandbox) -> None:
    OPENAI.order(service, "a red fox", headers=KEY)

    (item,) = OPENAI.images(OPENAI.order(service, "a red fox", headers=KEY, response_format="b64_json"))

    assert "b64_json" in item
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_three_equal_orders_at_once_are_three_images_also_while_one_is_sent_again(
    service: Service, sandbox: RunningSandbox, told_by: Surface
) -> None:
    limit(service)
    prompt = slow_prompt()
    with ThreadPoolExecutor(3) as threads:
        orders = [threads.submit(told_by.order, service, prompt) for _ in range(2)]
        # Who leaves in the instant in which an equal order comes is taken to come again with it.
        wait_until(lambda: sandbox.witness()["asked"] == 2)
        order_and_leave(told_by, service, sandbox, prompt)
        orders.append(threads.submit(told_by.order, service, prompt, headers=RETRY))

    urls = {told_by.images(order.result())[0]["url"] for order in orders}
    assert len(urls) == 3
    assert used(service)["images_day"] == 3
    assert (count(service), sandbox.witness()["asked"]) == (3, 3)


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_a_replay_needs_no_slot_and_waits_to_the_end(
    service: Service, sandbox: RunningSandbox, told_by: Surface
) -> None:
    with in_flight(service, sandbox, headers=KEY) as order:
        again = told_by.order(service, slow_prompt(), headers=KEY)

    assert told_by.images(again)[0]["url"] == NATIVE.images(order.result())[0]["url"]


# What native answers with 202


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
@pytest.mark.parametrize("headers", [KEY, RETRY], ids=["key", "sdk"])
def test_beyond_the_waiters_it_takes_a_repeat_is_asked_to_come_again_and_gets_its_image_then(
    crowded: Service, sandbox: RunningSandbox, told_by: Surface, headers: dict[str, str]
) -> None:
    first = {} if headers is RETRY else KEY
    with in_flight(crowded, sandbox, headers=first) as order:
        refused = told_by.order(crowded, slow_prompt(), headers=headers)
    again = told_by.order(crowded, slow_prompt(), headers={**headers, "x-stainless-retry-count": "2"})

    told_by.assert_refused(refused, "overloaded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "x-should-retry" not in refused.headers
    assert told_by.images(again)[0]["url"] == NATIVE.images(order.result())[0]["url"]
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_a_picture_that_recovery_fetches_is_waited_for(
    hasty_service: Service, sandbox: RunningSandbox, told_by: Surface
) -> None:
    answer = told_by.order(hasty_service, "a red fox [[picture flaky 4]]")

    assert len(told_by.images(answer)) == 1
    assert hasty_service.generation()["attempts"] > 0
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_a_picture_that_recovery_gives_up_is_told_as_lost(
    hasty_service: Service, sandbox: RunningSandbox, told_by: Surface
) -> None:
    answer = told_by.order(hasty_service, "a red fox [[picture missing]] [[expires 2]]")

    told_by.assert_refused(answer, "image_unavailable")
    assert answer.headers["x-should-retry"] == "false"
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("obedient", [True, False], ids=["openai sdk", "ai sdk"])
@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_a_picture_that_is_still_being_fetched_is_no_reason_to_order_again(
    impatient: Service, sandbox: RunningSandbox, told_by: Surface, obedient: bool
) -> None:
    # Nobody waits through recovery here, as after ten minutes, or in a process that is told to stop.
    prompt = "a red fox [[picture flaky 8]]"

    answers = retries_of_sdk(
        told_by, impatient, prompt, obedient=obedient, pause=lambda seconds: wait_until(lambda: departures(impatient))
    )

    message = told_by.assert_refused(answers[0], "answer_unavailable")
    assert "could not be fetched yet" in message
    assert f"GET /images/{impatient.generation()['id']}" in message
    assert answers[0].headers["x-should-retry"] == "false"
    assert "retry-after" not in answers[0].headers
    wait_until(lambda: impatient.generation()["state"] == "completed", seconds=60)
    again = told_by.order(impatient, prompt)
    assert len(told_by.images(again)) == 1
    assert sandbox.witness()["asked"] == 1
