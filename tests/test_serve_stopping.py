"""Does the service stop when it is told to, finish what was paid for, and leave nothing behind?"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.installation import (
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


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_finishes_the_order_in_flight_and_leaves_nothing(
    copy_cluster: Callable[[Path], Path], tmp_path: Path, workers: int
) -> None:
    copy_cluster(tmp_path / "data")
    with running_installation(tmp_path, workers=workers) as installation:
        assert len(processes_in(installation.folder)) > workers + 2, "Postgres, the sandbox, and us"
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(installation.order, "a fox [[delay 1.5]]")
            eventually(lambda: one_is_pending(installation))
            installation.interrupt()

            assert answer.result().status_code == 200
        assert installation.ended() == 0
        nothing_runs(installation)
        assert refuses(installation.port)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_ctrl_c_means_now(database_url: str, sandbox: RunningSandbox, tmp_path: Path, workers: int) -> None:
    with running_installation(tmp_path, env=beside(database_url, sandbox), workers=workers) as installation:
        installation.begin("a fox [[hang]]")
        installation.interrupt()
        eventually(lambda: refuses(installation.port))
        assert installation.process.poll() is None, "it waits for the order"

        installation.interrupt()

        assert installation.ended(seconds=8) == 0
        nothing_runs(installation)
        (left,) = rows(database_url, "SELECT state FROM generations")
        assert left["state"] == "pending", "recovery's, at the next start"


def test_a_stop_waits_no_longer_than_it_was_told_to(database_url: str, sandbox: RunningSandbox, tmp_path: Path) -> None:
    env = beside(database_url, sandbox, DRAIN_SECONDS="4")
    with running_installation(tmp_path, env=env) as installation, ThreadPoolExecutor() as threads:
        # Its client waits as well: the connection and the generation share the four seconds.
        answer = threads.submit(installation.order, "a fox [[hang]]")
        eventually(lambda: sandbox.witness()["asked"])
        began = time.monotonic()
        installation.terminate()

        assert installation.ended() == 0
        assert 4 <= time.monotonic() - began < 7.5
        assert answer.exception() is not None or answer.result().status_code >= 500
        (left,) = rows(database_url, "SELECT state FROM generations")
        assert left["state"] == "pending", "recovery's, at the next start"


def test_sigterm_finishes_the_orders_in_flight_and_leaves_nothing(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    with running_installation(tmp_path, env=beside(database_url, sandbox), workers=2) as installation:
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(installation.order, "a fox [[delay 1.5]]")
            eventually(lambda: sandbox.witness()["asked"])
            # The client of the next one is gone already; only the service waits for it.
            installation.begin("a hare [[delay 1.5]]")
            installation.terminate()

            assert answer.result().status_code == 200
        assert installation.ended() == 0
        nothing_runs(installation)
        assert [row["state"] for row in rows(database_url, "SELECT state FROM generations")] == ["completed"] * 2


def one_is_pending(installation: Installation) -> bool:
    found = installation.client.get("/images").json()["generations"]
    return any(generation["state"] == "pending" for generation in found)
