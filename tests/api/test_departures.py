"""Is an order whose client has left made and paid for once, and handed over once, to whoever comes again?"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.api.books import ONE_USED, count, limit, used, wait_until
from tests.api.leaving import departures, gone, leaving
from tests.api.sdk import call
from tests.api.surfaces import OPENAI, TTAPI, Surface
from tests.sandbox_server import RunningSandbox
from tests.service import Service, differences, running_service
from tests.tcp_proxy import TcpProxy

RETRY = {"x-stainless-retry-count": "1"}
# Its picture takes long enough to leave meanwhile, also on a busy machine.
SLOW_PICTURE = "a red fox [[picture slow 1.2]]"
# More tries than its own process has time for.
LATE_PICTURE = "a red fox [[picture flaky 8]]"


@pytest.fixture
def upstream(sandbox: RunningSandbox) -> Iterator[TcpProxy]:
    """What stands between `held` and upstream, and holds its answers back for as long as a test wants."""
    with TcpProxy("127.0.0.1", sandbox.port) as proxy:
        yield proxy


@pytest.fixture
def held(database_url: str, upstream: TcpProxy, data_dir: Path) -> Iterator[Service]:
    """A service whose upstream is behind `upstream`."""
    with running_service(
        database_url=database_url, upstream_url=f"http://127.0.0.1:{upstream.port}", data_dir=data_dir
    ) as running:
        try:
            yield running
        finally:
            # It would wait with its end for what is held back.
            upstream.pass_through()


@pytest.fixture
def brief(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service that leaves a picture to recovery soon."""
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, generated_lease_seconds=0.8
    ) as running:
        yield running


def is_being_fetched(service: Service) -> bool:
    return bool(service.rows("SELECT id FROM generations WHERE state = 'generated' AND attempts = 0"))


def is_left_to_recovery(service: Service) -> bool:
    return bool(service.rows("SELECT id FROM generations WHERE state = 'generated' AND attempts > 0"))


def assert_paid_once(service: Service, sandbox: RunningSandbox, surface: Surface, answer: httpx.Response) -> None:
    """The answer is the picture of the one generation there is."""
    assert len(surface.images(answer)) == 1
    assert surface.generation_id(answer) == str(service.generation()["id"])
    assert used(service) == ONE_USED
    assert differences(service.database_url) == []
    assert (sandbox.witness()["asked"], sandbox.witness()["billed"]) == (1, 1)


@pytest.mark.parametrize("headers", [RETRY, {}], ids=["sdk", "plain"])
def test_who_leaves_while_the_picture_is_fetched_gets_it_when_they_come_again(
    service: Service, sandbox: RunningSandbox, surface: Surface, headers: dict[str, str]
) -> None:
    limit(service)
    with leaving(surface, service, SLOW_PICTURE):
        wait_until(lambda: is_being_fetched(service))

    answer = surface.order(service, SLOW_PICTURE, headers=headers)

    assert_paid_once(service, sandbox, surface, answer)


@pytest.mark.parametrize(("told_by", "headers"), [(OPENAI, RETRY), (TTAPI, {})], ids=["openai sdk", "ttapi plain"])
def test_who_leaves_while_recovery_fetches_the_picture_gets_it_when_they_come_again(
    brief: Service, sandbox: RunningSandbox, told_by: Surface, headers: dict[str, str]
) -> None:
    limit(brief)
    with leaving(told_by, brief, LATE_PICTURE):
        wait_until(lambda: is_left_to_recovery(brief))

    answer = told_by.order(brief, LATE_PICTURE, headers=headers)

    assert_paid_once(brief, sandbox, told_by, answer)


@pytest.mark.parametrize("obedient", [True, False], ids=["openai sdk", "ai sdk"])
def test_who_gives_up_as_often_as_an_sdk_tries_has_bought_one_picture_and_gets_it(
    held: Service, upstream: TcpProxy, sandbox: RunningSandbox, surface: Surface, obedient: bool
) -> None:
    limit(held)
    upstream.blackhole()

    def give_up(mark: Mapping[str, str]) -> httpx.Response:
        requests = joined(held) + 1
        with leaving(surface, held, "a red fox", headers=mark):
            wait_until(lambda: joined(held) == requests)
        raise httpx.ReadTimeout("It took too long.")

    made = call(give_up, obedient=obedient)
    upstream.pass_through()
    answer = surface.order(held, "a red fox")

    assert made.answers == [None, None, None]
    assert_paid_once(held, sandbox, surface, answer)
    assert surface.generation_id(surface.order(held, "a red fox")) != surface.generation_id(answer)


# Held up by the lock that an operator's `users limits` takes while it counts.
PLACING = (
    "SELECT pid FROM pg_stat_activity WHERE query LIKE '%%live AS MATERIALIZED%%' AND wait_event_type = 'Lock'"
    " AND datname = current_database()"
)


@pytest.mark.parametrize("headers", [RETRY, {}], ids=["sdk", "plain"])
def test_who_leaves_while_their_order_is_being_placed_gets_its_picture_when_they_come_again(
    service: Service, sandbox: RunningSandbox, surface: Surface, headers: dict[str, str]
) -> None:
    limit(service)
    url = service.database_url.replace("+psycopg", "")
    with psycopg.connect(url) as operator, ThreadPoolExecutor(1) as thread:
        operator.execute("LOCK TABLE generations IN EXCLUSIVE MODE")
        with gone(surface, service, "a red fox"):
            wait_until(lambda: service.rows(PLACING))
        again = thread.submit(surface.order, service, "a red fox", headers=headers)
        with pytest.raises(TimeoutError):
            again.result(timeout=0.5)
        operator.rollback()

    assert_paid_once(service, sandbox, surface, again.result())


def test_who_comes_again_a_moment_before_it_is_seen_that_they_left_gets_their_picture(
    service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    limit(service)
    with ThreadPoolExecutor(1) as thread:
        with gone(surface, service, SLOW_PICTURE):
            wait_until(lambda: is_being_fetched(service))
            again = thread.submit(surface.order, service, SLOW_PICTURE)
            # As through a proxy, which opens the next connection before it lets go of the broken one.
            time.sleep(0.01)

        assert_paid_once(service, sandbox, surface, again.result())


def test_who_leaves_in_the_moment_that_is_given_to_others_waits_for_nobody_but_them(
    service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    limit(service)
    with ThreadPoolExecutor(2) as threads:
        stays = threads.submit(surface.order, service, SLOW_PICTURE)
        wait_until(lambda: is_being_fetched(service))
        with gone(surface, service, SLOW_PICTURE):
            time.sleep(0.01)
        again = threads.submit(surface.order, service, SLOW_PICTURE)
        ids = {surface.generation_id(answer) for answer in (stays.result(), again.result())}

    after = "extract(epoch FROM created_at - min(created_at) OVER ())::float"
    made = service.rows(f"SELECT id, {after} AS after FROM generations")
    assert {str(row["id"]) for row in made} == ids
    assert len(ids) == 2
    assert max(float(str(row["after"])) for row in made) < 1.5


def joined(service: Service) -> int:
    """How many requests the one generation has had, the first included; 0 while it isn't there."""
    return sum(int(row["repeats"]) + 1 for row in service.rows("SELECT repeats FROM generations"))


def test_of_equal_orders_each_that_was_left_is_handed_over_once(
    held: Service, upstream: TcpProxy, sandbox: RunningSandbox, surface: Surface
) -> None:
    limit(held)
    prompt = "a red fox [[picture slow 2]]"
    upstream.blackhole()
    with ThreadPoolExecutor(1) as thread:
        with leaving(surface, held, prompt):
            with leaving(surface, held, prompt):
                stays = thread.submit(surface.order, held, prompt)
                wait_until(lambda: count(held) == 3)
            # One has left while upstream was asked; the next leaves while its picture is fetched.
            upstream.pass_through()
            wait_until(lambda: generated(held) == 3)
        again = [surface.order(held, prompt, headers=headers) for headers in (RETRY, {})]

    ids = {surface.generation_id(answer) for answer in (stays.result(), *again)}
    assert ids == {str(row["id"]) for row in held.rows("SELECT id FROM generations")}
    assert len(ids) == 3
    assert departures(held) == 0
    assert surface.generation_id(surface.order(held, prompt)) not in ids
    assert (used(held)["images_day"], sandbox.witness()["billed"]) == (4, 4)
    assert differences(held.database_url) == []


def generated(service: Service) -> int:
    return len(service.rows("SELECT id FROM generations WHERE state <> 'pending'"))


@pytest.mark.parametrize(
    ("fault", "code"),
    [("drop", "upstream_outcome_unknown"), ("picture huge", "image_unavailable")],
)
def test_who_left_what_ends_badly_is_told_so_and_nothing_is_bought_again(
    held: Service, upstream: TcpProxy, sandbox: RunningSandbox, surface: Surface, fault: str, code: str
) -> None:
    prompt = f"a red fox [[{fault}]]"
    upstream.blackhole()
    with leaving(surface, held, prompt):
        wait_until(lambda: joined(held) == 1)
    upstream.pass_through()

    made = call(lambda mark: surface.order(held, prompt, headers=mark), obedient=True)

    surface.assert_refused(made.answer, code)
    assert len(made.answers) == 1
    assert surface.generation_id(made.answer) == str(held.generation()["id"])
    assert sandbox.witness()["asked"] == 1


def test_an_answer_that_is_lost_on_its_way_is_had_by_the_sdks_next_try(
    service: Service, sandbox: RunningSandbox, surface: Surface
) -> None:
    limit(service)
    with TcpProxy("127.0.0.1", httpx.URL(service.url).port or 80) as network, through(network, service) as far:
        network.cut_answers()

        made = call(lambda mark: surface.order(far, "a red fox", headers=mark), pause=then(network.pass_through))

    assert made.answers[0] is None
    assert len(made.answers) == 2
    assert_paid_once(service, sandbox, surface, made.answer)


def then(act: Callable[[], None]) -> Callable[[float], None]:
    """A pause in which this happens."""

    def pause(seconds: float) -> None:
        act()

    return pause


@contextmanager
def through(network: TcpProxy, service: Service) -> Iterator[Service]:
    """The service as it is reached over this network."""
    url = f"http://127.0.0.1:{network.port}"
    with httpx.Client(
        base_url=url, headers=service.client.headers, verify=False, trust_env=False, timeout=60
    ) as client:
        yield replace(service, client=client)
