"""What do callers meet while Postgres is away, frozen or cut off, and what stands in the books when it is back?"""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy.engine import make_url

from app.database.embedded import open_embedded
from app.database.schema import migrate
from tests.installation import eventually, processes_in
from tests.sandbox_server import RunningSandbox
from tests.service import Service, differences, rows, running_service
from tests.tcp_proxy import TcpProxy

TIMEOUT_SECONDS = 1.0
# An order needs three statements; what it meets first ends it. The rest is what a busy machine takes.
BOUND_SECONDS = 4.0


# Whether the latest statement of some connection was a MOVE.
LOOKED_FOR = """SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND strpos(query, 'standing AS MATERIALIZED') > 0"""


@dataclass(frozen=True)
class Outage:
    """A service whose way to Postgres goes through `proxy`, and the database as it really is."""

    service: Service
    proxy: TcpProxy
    sandbox: RunningSandbox
    database_url: str
    images: Path

    def rows(self, query: str) -> list[dict[str, Any]]:
        return rows(self.database_url, query)

    def held(self) -> int:
        """How many images are held or used, over all budgets."""
        return int(self.rows("SELECT COALESCE(sum(images_total), 0) AS held FROM budgets")[0]["held"])


@pytest.fixture
def outage(database_url: str, sandbox: RunningSandbox, tmp_path: Path) -> Iterator[Outage]:
    url = make_url(database_url)
    with (
        TcpProxy(url.host or "", url.port or 0) as proxy,
        running_service(
            database_url=url.set(port=proxy.port).render_as_string(hide_password=False),
            upstream_url=sandbox.url,
            data_dir=tmp_path / "data",
            limits={"images_total_max": 100},
            database_timeout_seconds=TIMEOUT_SECONDS,
            upstream_timeout_seconds=20,
            pending_lease_seconds=25,
            # What is put right here is put right by the process that was there, not by recovery.
            recovery_interval_seconds=60,
        ) as service,
    ):
        yield Outage(service, proxy, sandbox, database_url, tmp_path / "data" / "images")
        # What a test left broken must not hold up the service's end.
        proxy.pass_through()


def timed(outage: Outage, prompt: str) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    answer = outage.service.order(prompt)
    return answer, time.monotonic() - began


# Before anything is sent


@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
def test_an_order_is_refused_in_time_and_neither_sent_nor_held(outage: Outage, fault: str) -> None:
    getattr(outage.proxy, fault)()

    answer, seconds = timed(outage, "a fox")

    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert seconds < BOUND_SECONDS
    outage.proxy.pass_through()
    assert eventually(lambda: outage.service.order("a hare").status_code == 200)
    assert [row["state"] for row in outage.rows("SELECT state FROM generations")] == ["completed"]
    assert outage.sandbox.witness()["asked"] == 1
    assert differences(outage.database_url) == []


def test_a_crowd_at_a_silent_database_is_refused_in_time_and_served_when_it_is_back(outage: Outage) -> None:
    outage.proxy.blackhole()
    with ThreadPoolExecutor(30) as threads:
        refused = list(threads.map(lambda number: timed(outage, f"fox {number}"), range(30)))
    outage.proxy.pass_through()
    with ThreadPoolExecutor(10) as threads:
        served = list(threads.map(lambda number: timed(outage, f"hare {number}"), range(10)))

    assert {answer.status_code for answer, _ in refused} == {503}
    assert max(seconds for _, seconds in refused) < BOUND_SECONDS
    assert [answer.status_code for answer, _ in served] == [200] * 10
    assert outage.sandbox.witness()["asked"] == 10
    assert differences(outage.database_url) == []


def test_a_reserve_whose_answer_is_lost_is_given_back_and_never_sent(outage: Outage) -> None:
    outage.proxy.cut_answers(after=b"a fox")

    answer, _ = timed(outage, "a fox")

    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert outage.rows("SELECT id FROM generations"), "it was committed"
    outage.proxy.pass_through()
    eventually(lambda: outage.rows("SELECT id FROM generations WHERE state = 'failed'"))
    assert outage.held() == 0
    assert outage.sandbox.witness()["asked"] == 0
    assert differences(outage.database_url) == []


def test_a_reserve_that_is_carried_out_after_its_caller_was_refused_is_given_back(outage: Outage) -> None:
    # RESERVE, as it is sent to be prepared, waits in the stalled connection, and reaches Postgres after the first look
    # for it found nothing. (Had Postgres seen the statement and not its values, it would give up in time by itself.)
    outage.proxy.blackhole(after=b"INSERT INTO generations")

    answer, seconds = timed(outage, "a fox")
    eventually(lambda: outage.rows(LOOKED_FOR))

    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert seconds < BOUND_SECONDS
    assert outage.rows("SELECT id FROM generations") == []
    outage.proxy.pass_through()
    eventually(lambda: outage.rows("SELECT id FROM generations WHERE state = 'failed'"))
    assert outage.held() == 0
    assert outage.sandbox.witness()["asked"] == 0


# After upstream has answered


@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
def test_an_image_is_stored_before_the_database_is_back_and_its_caller_gets_it(outage: Outage, fault: str) -> None:
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(outage.service.order, "a fox [[delay 0.5]]")
        eventually(lambda: outage.sandbox.witness()["asked"])
        getattr(outage.proxy, fault)()
        stored = eventually(lambda: pictures(outage), seconds=15)
        assert [row["state"] for row in outage.rows("SELECT state FROM generations")] == ["pending"]
        outage.proxy.pass_through()
        told = answer.result()

    assert told.status_code == 200
    assert httpx.get(told.json()["images"][0]["url"]).content == stored[0].read_bytes()
    assert len(pictures(outage)) == 1
    assert (outage.held(), outage.sandbox.witness()["asked"]) == (1, 1)
    assert differences(outage.database_url) == []


def pictures(outage: Outage) -> list[Path]:
    return [path for path in outage.images.rglob("*.png") if path.is_file()]


# A Postgres that is frozen, or crashes


@dataclass(frozen=True)
class OwnPostgres:
    """A service on a Postgres of the test's own, which the test may freeze and crash."""

    service: Service
    cluster: Path

    def pids(self, what: str = "") -> list[int]:
        """The server's processes whose command line has `what` in it."""
        return [pid for pid, line in processes_in(self.cluster).items() if what in line]


@pytest.fixture
def own_postgres(sandbox: RunningSandbox, tmp_path: Path) -> Iterator[OwnPostgres]:
    # Durable: a crash of one that is not forgets what was committed a moment before, the tables too.
    with open_embedded(tmp_path / "pg", role="serve") as postgres:
        migrate(postgres.url)
        with running_service(
            database_url=postgres.url,
            upstream_url=sandbox.url,
            data_dir=tmp_path / "data",
            database_timeout_seconds=TIMEOUT_SECONDS,
        ) as service:
            own = OwnPostgres(service, tmp_path / "pg" / "postgres")
            try:
                yield own
            finally:
                signal_all(own, signal.SIGCONT)


def signal_all(own: OwnPostgres, number: int) -> None:
    for pid in own.pids():
        os.kill(pid, number)


def test_a_frozen_postgres_is_told_in_time_and_taken_up_again_when_it_thaws(
    own_postgres: OwnPostgres, sandbox: RunningSandbox
) -> None:
    service = own_postgres.service
    assert service.order("a fox").status_code == 200
    signal_all(own_postgres, signal.SIGSTOP)

    began = time.monotonic()
    answer = service.order("a hare")
    seconds = time.monotonic() - began
    alive, ready = httpx.get(f"{service.url}/healthz"), httpx.get(f"{service.url}/readyz")
    signal_all(own_postgres, signal.SIGCONT)

    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert seconds < BOUND_SECONDS
    assert (alive.status_code, ready.status_code) == (200, 503)
    assert service.order("an owl").status_code == 200
    assert sandbox.witness()["asked"] == 2
    assert differences(service.database_url) == []


def test_a_postgres_that_freezes_while_upstream_works_costs_nobody_an_image(
    own_postgres: OwnPostgres, sandbox: RunningSandbox
) -> None:
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(own_postgres.service.order, "a fox [[delay 0.5]]")
        eventually(lambda: sandbox.witness()["asked"])
        signal_all(own_postgres, signal.SIGSTOP)
        eventually(lambda: sandbox.witness()["pictures"]["asked"], seconds=15)
        signal_all(own_postgres, signal.SIGCONT)

        assert answer.result().status_code == 200
    assert own_postgres.service.generation()["state"] == "completed"
    assert differences(own_postgres.service.database_url) == []


def test_crashes_of_postgres_under_load_leave_no_dead_pool_and_books_that_agree(
    own_postgres: OwnPostgres, sandbox: RunningSandbox
) -> None:
    service = own_postgres.service
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(service.order, f"fox {number} [[delay 0.3]]") for number in range(60)]
        for _ in range(3):
            # A backend that is killed makes the postmaster end all others and recover, as an immediate restart does.
            eventually(lambda: killed_a_backend(own_postgres))
            eventually(lambda: postgres_answers(service.database_url))
        codes = {answer.result().status_code for answer in answers}

    assert codes <= {200, 503}
    assert [fresh.status_code for fresh in (service.order(f"hare {number}") for number in range(10))] == [200] * 10
    eventually(lambda: not service.rows("SELECT id FROM generations WHERE state IN ('pending', 'generated')"))
    assert service.rows("SELECT id FROM generations WHERE state NOT IN ('completed', 'failed')") == []
    completed = service.rows("SELECT id FROM generations WHERE state = 'completed'")
    assert len(completed) == sandbox.witness()["asked"] == sandbox.witness()["billed"]
    assert differences(service.database_url) == []


def killed_a_backend(own_postgres: OwnPostgres) -> bool:
    """One that is seen may have ended since, with the crash before."""
    try:
        os.kill(own_postgres.pids(" idle")[0], signal.SIGKILL)
    except (IndexError, ProcessLookupError):
        return False
    return True


def postgres_answers(database_url: str) -> bool:
    try:
        return bool(rows(database_url, "SELECT 1"))
    except psycopg.OperationalError:
        return False
