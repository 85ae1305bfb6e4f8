"""Does a stop lose nothing: is readiness red before the port closes, and is every order that was taken finished?"""

import contextlib
import http.client
import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.installation import Installation, beside, eventually, processes_in, refuses, running_installation
from tests.sandbox_server import RunningSandbox
from tests.service import add_user, differences, rows

# Longer than any test waits: what ends sooner was given no notice, and what has to happen meanwhile has the time.
LONG_NOTICE_SECONDS = 120
# A few seconds more than an order needs to be on its way, on a busy machine too.
SHORT_NOTICE_SECONDS = 6
ROLLS = 5


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def patient(
    request: pytest.FixtureRequest, database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> Iterator[Installation]:
    """An installation whose notice no test waits for."""
    env = beside(database_url, sandbox, DRAIN_NOTICE_SECONDS=str(LONG_NOTICE_SECONDS))
    with running_installation(tmp_path, env=env, workers=request.param) as running:
        yield running


def readiness(installation: Installation) -> int | None:
    """What /readyz answers on a connection of its own; None when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", installation.port, timeout=20)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    return None


def all_red(installation: Installation) -> bool:
    """Whether readiness is red wherever it is asked: the kernel hands each connection to any of the workers."""
    return {readiness(installation) for _ in range(20)} == {503}


def test_readiness_is_red_in_every_worker_while_the_port_is_open_and_orders_are_taken(patient: Installation) -> None:
    assert readiness(patient) == 200
    patient.terminate()

    eventually(lambda: all_red(patient), seconds=30)
    answer = patient.order("a fox")

    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert patient.process.poll() is None


def test_an_order_taken_after_notice_was_given_outlives_the_port_and_is_finished(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    env = beside(database_url, sandbox, DRAIN_NOTICE_SECONDS=str(SHORT_NOTICE_SECONDS))
    with (
        running_installation(tmp_path, env=env, workers=2) as installation,
        ThreadPoolExecutor() as threads,
    ):
        installation.terminate()
        eventually(lambda: readiness(installation) == 503)
        # For longer than it can take to see that the port is closed.
        answer = threads.submit(installation.order, f"a fox [[delay {SHORT_NOTICE_SECONDS + 3}]]")

        eventually(lambda: refuses(installation.port), seconds=30)

        assert not answer.done()
        assert answer.result().status_code == 200
        assert installation.ended() == 0
        eventually(lambda: not processes_in(installation.folder))


def test_ctrl_c_gives_no_notice(patient: Installation) -> None:
    patient.interrupt()

    assert patient.ended() == 0


def test_an_interrupt_that_reaches_the_parent_alone_gives_no_notice_either(patient: Installation) -> None:
    patient.process.send_signal(signal.SIGINT)

    assert patient.ended() == 0


def test_ctrl_c_while_notice_is_given_means_now(patient: Installation, sandbox: RunningSandbox) -> None:
    patient.begin("a fox [[hang]]")
    eventually(lambda: sandbox.witness()["asked"])
    patient.terminate()
    eventually(lambda: all_red(patient), seconds=30)

    patient.interrupt()

    assert patient.ended() == 0


def test_a_worker_whose_parent_was_killed_leaves_the_port_at_once(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    env = beside(database_url, sandbox, DRAIN_NOTICE_SECONDS=str(LONG_NOTICE_SECONDS))
    with running_installation(tmp_path, env=env, workers=2) as installation:
        installation.kill9()

        eventually(lambda: refuses(installation.port), seconds=30)
        eventually(lambda: not processes_in(installation.folder), seconds=30)


def test_a_worker_that_dies_while_notice_is_given_is_not_replaced(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    env = beside(database_url, sandbox, DRAIN_NOTICE_SECONDS=str(SHORT_NOTICE_SECONDS))
    with running_installation(tmp_path, env=env, workers=2) as installation:
        before = workers_of(installation)
        installation.terminate()
        eventually(lambda: all_red(installation), seconds=SHORT_NOTICE_SECONDS)

        os.kill(before[0], signal.SIGKILL)
        seen = set(itertools.chain.from_iterable(iter(lambda: workers_of(installation), [])))

        assert seen <= set(before)
        assert installation.ended() == 0


def workers_of(installation: Installation) -> list[int]:
    """The worker processes that run."""
    return [pid for pid, command in processes_in(installation.folder).items() if "spawn_main" in command]


# Rolls


@dataclass
class Caller:
    """A client that orders from whichever replica was ready when it last looked, as a load balancer does."""

    replicas: tuple[Installation, Installation]
    key: str
    ready: list[Installation] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self.over.wait(0.05):
            self.ready = [replica for replica in self.replicas if readiness(replica) == 200]

    def order(self, number: int) -> None:
        """Order one after another, on connections that are kept as long as the service keeps them."""
        clients = {
            replica: httpx.Client(base_url=replica.url, verify=False, trust_env=False, timeout=60)
            for replica in self.replicas
        }
        for turn in itertools.count():
            if self.over.is_set():
                break
            ready = self.ready
            if not ready:
                self.answers.append((0, "nobody was ready"))
                self.over.wait(0.05)
                continue
            replica = ready[(number + turn) % len(ready)]
            try:
                answer = clients[replica].post(
                    "/images",
                    json={"prompt": f"a fox {number}-{turn} [[delay 0.2]]"},
                    headers={"authorization": f"Bearer {self.key}"},
                )
                self.answers.append((answer.status_code, answer.text))
            except httpx.TransportError as error:
                self.answers.append((0, repr(error)))
        for client in clients.values():
            client.close()


def test_no_order_is_lost_or_failed_while_two_replicas_are_rolled_again_and_again(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = beside(database_url, sandbox, DRAIN_NOTICE_SECONDS="1", DATA_DIR=str(tmp_path / "shared"))
    with (
        running_installation(tmp_path / "one", env=env) as one,
        running_installation(tmp_path / "two", env=env, workers=2) as two,
    ):
        caller = Caller((one, two), add_user(database_url, "roller"), ready=[one, two])
        with ThreadPoolExecutor(5) as threads:
            threads.submit(caller.watch)
            for number in range(4):
                threads.submit(caller.order, number)
            for roll in range(ROLLS):
                replica = (one, two)[roll % 2]
                replica.stop()
                replica.start()
                eventually(lambda replica=replica: replica in caller.ready, seconds=30)  # type: ignore[misc]
            caller.over.set()

    failed = [(status, text) for status, text in caller.answers if status != 200]
    assert failed == []
    states = rows(database_url, "SELECT state, count(*) AS n FROM generations GROUP BY state")
    assert [(row["state"], row["n"]) for row in states] == [("completed", len(caller.answers))]
    assert differences(database_url) == []
    assert len({json.loads(text)["id"] for _, text in caller.answers}) == len(caller.answers)
    with capsys.disabled():
        print(f"\n    {ROLLS} rolls: {len(caller.answers)} orders, none lost, none failed")
