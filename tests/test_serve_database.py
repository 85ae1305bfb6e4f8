"""Does `serve` live with a database that isn't there yet, refuses, or dies under it?"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import make_url

from app.accounts.keys import make_key
from tests.installation import (
    START_SECONDS_MAX,
    Installation,
    beside,
    eventually,
    nothing_runs,
    processes_in,
    refuses,
    running_installation,
)
from tests.sandbox_server import RunningSandbox
from tests.service import rows
from tests.tcp_proxy import TcpProxy

PROMPT_SECONDS_MAX = 10
# As /proc shows it.
INTERRUPT = 1 << (signal.SIGINT - 1)


@pytest.fixture
def empty_url(postgres_url: str) -> str:
    """A database that nobody has migrated."""
    name = f"empty_{uuid4().hex}"
    rows(postgres_url, f"CREATE DATABASE {name}")
    return at(postgres_url, database=name)


@pytest.fixture
def proxy(empty_url: str) -> Iterator[TcpProxy]:
    url = make_url(empty_url)
    with TcpProxy(url.host or "", url.port or 0) as opened:
        yield opened


@pytest.fixture
def waiting(
    empty_url: str, proxy: TcpProxy, sandbox: RunningSandbox, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Installation]:
    """A service that was started while its database wasn't there; the test may say with how many workers."""
    proxy.refuse()
    env = beside(at(empty_url, port=proxy.port), sandbox, DATABASE_TIMEOUT_SECONDS="2")
    installation = Installation(tmp_path / "waiting", env, workers=getattr(request, "param", 1))
    try:
        installation.launch("--json")
        eventually(lambda: answer_at(installation, "/healthz") == 200, seconds=START_SECONDS_MAX)
        yield installation
    finally:
        installation.close()


def at(url: str, **parts: object) -> str:
    return make_url(url).set(**parts).render_as_string(hide_password=False)  # type: ignore[arg-type]


def importing_workers(installation: Installation) -> list[dict[str, int]]:
    """The signals (each a bit) that its workers catch and block; those in which Python runs, and nothing of ours."""
    workers = [number for number, command in processes_in(installation.folder).items() if "spawn_main" in command]
    return [signals for signals in map(signals_of, workers) if signals["SigCgt"] & INTERRUPT]


def signals_of(process_id: int) -> dict[str, int]:
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines)
    return {name: int(fields[name], 16) for name in ("SigCgt", "SigBlk")}


def answer_at(installation: Installation, path: str) -> int | None:
    """The status of an answer; None while nobody gives one."""
    with suppress(httpx.TransportError):
        return httpx.get(f"{installation.url}{path}", timeout=20).status_code
    return None


# Not there yet


@pytest.mark.parametrize("waiting", [1, 2], indirect=True)
def test_a_start_without_the_database_answers_503_and_takes_orders_when_it_comes(
    waiting: Installation, proxy: TcpProxy, sandbox: RunningSandbox
) -> None:
    order = waiting.client.post("/images", json={"prompt": "a fox"}, headers={"authorization": f"Bearer {make_key()}"})

    assert (order.status_code, order.json()["code"]) == (503, "database_unavailable")
    assert answer_at(waiting, "/readyz") == 503
    assert waiting.stdout.read_text() == ""
    assert "database_not_there" in waiting.stderr.read_text()

    proxy.pass_through()

    waiting.take_banner()
    assert waiting.key.startswith("ik_user_")
    assert waiting.order("a hare").status_code == 200
    assert answer_at(waiting, "/readyz") == 200
    assert sandbox.witness()["asked"] == 1
    waiting.stop()
    assert waiting.stdout.read_text().count("\n") == 1, "one banner"


@pytest.mark.parametrize("waiting", [1, 2], indirect=True)
@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
def test_ctrl_c_while_the_database_is_not_there_stops_at_once(
    waiting: Installation, proxy: TcpProxy, fault: str
) -> None:
    getattr(proxy, fault)()
    began = time.monotonic()

    waiting.interrupt()

    assert waiting.ended() == 0
    assert time.monotonic() - began < PROMPT_SECONDS_MAX
    nothing_runs(waiting)
    assert "Traceback" not in waiting.stderr.read_text()


def test_ctrl_c_while_the_workers_are_still_importing_shows_no_traceback(
    empty_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    installation = Installation(tmp_path / "importing", beside(empty_url, sandbox), workers=2)
    try:
        installation.launch()
        eventually(lambda: len(importing_workers(installation)) == 2, seconds=START_SECONDS_MAX)

        assert all(signals["SigBlk"] & INTERRUPT for signals in importing_workers(installation))

        installation.interrupt()

        assert installation.ended() == 0
        assert "Traceback" not in installation.stderr.read_text()
    finally:
        installation.close()


def test_a_database_that_comes_and_refuses_stops_the_service_with_a_sentence(
    waiting: Installation, proxy: TcpProxy, empty_url: str
) -> None:
    rows(empty_url, "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    rows(empty_url, "INSERT INTO alembic_version VALUES ('of_another')")

    proxy.pass_through()

    assert waiting.ended() == 1
    assert waiting.stdout.read_text() == ""
    assert "imagekeep: The database was made by another release" in waiting.stderr.read_text()
    nothing_runs(waiting)


@pytest.mark.parametrize(
    "wrong", [{"password": "a-password"}, {"database": "is_not_there"}], ids=["password", "database"]
)
def test_a_database_that_answers_and_refuses_is_told_in_a_sentence(
    database_url: str, tmp_path: Path, wrong: dict[str, str]
) -> None:
    installation = Installation(tmp_path, {"DATABASE_URL": at(database_url, **wrong), "TT_API_KEY": "a-key"})

    done = installation.run("serve")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("imagekeep: The database at DATABASE_URL can't be used: ")
    assert done.stderr.count("\n") == 1
    assert "a-password" not in done.stderr


# The private one, dying


@pytest.mark.parametrize("workers", [1, 2])
def test_a_private_postgres_that_is_killed_is_started_again_and_no_order_is_lost(
    copy_cluster: Callable[[Path], Path], tmp_path: Path, workers: int
) -> None:
    copy_cluster(tmp_path / "data")
    with running_installation(tmp_path, workers=workers) as installation:
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(installation.order, "a fox [[delay 1]]")
            eventually(lambda: installation.client.get("/images").json()["generations"])
            first = postmaster_of(installation)

            os.kill(first, signal.SIGKILL)

            assert answer.result().status_code == 200
        eventually(lambda: installation.order("a hare").status_code == 200, seconds=START_SECONDS_MAX)
        assert postmaster_of(installation) != first
        assert "postgres_restarted" in installation.stderr.read_text()
        assert installation.ask("reconcile") == []
        # The one that was started again ends with the service too, however that ends.
        installation.kill9()
        nothing_runs(installation)
        assert refuses(installation.port)


def test_a_private_postgres_that_cannot_be_started_again_stops_the_service_with_a_sentence(
    copy_cluster: Callable[[Path], Path], tmp_path: Path
) -> None:
    copy_cluster(tmp_path / "data")
    with running_installation(tmp_path) as installation:
        control = installation.data / "postgres" / "global" / "pg_control"
        control.write_bytes(b"\0" * control.stat().st_size)

        os.kill(postmaster_of(installation), signal.SIGKILL)

        assert installation.ended(seconds=START_SECONDS_MAX) == 1
        told = installation.stderr.read_text()
        assert "imagekeep: The private Postgres died" in told
        assert "Traceback" not in told
        nothing_runs(installation)


def postmaster_of(installation: Installation) -> int:
    return int((installation.data / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])
