"""Does the sandbox start, and end, when it should?"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from app.sandbox.server import bind, run_sandbox
from tests.sandbox.conftest import BARE_ROUTE
from tests.sandbox_server import API_KEY, running_sandbox

RUN = """
import sys
from app.sandbox.server import run_sandbox
run_sandbox(host="127.0.0.1", port=int(sys.argv[1]), draw=False, die_with_parent=True)
"""
# A parent that starts the sandbox and then only waits to be killed.
PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]]).wait()
"""


def free_port() -> int:
    with bind("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(port: int, *, answering: bool) -> None:
    deadline = time.monotonic() + 15
    while answers(port) != answering:
        assert time.monotonic() < deadline, f"the port {'does not answer' if answering else 'still answers'}"
        time.sleep(0.02)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_quietly_until_it_is_stopped(stop: signal.Signals) -> None:
    port = free_port()
    with started(RUN, str(port)) as child:
        wait_until(port, answering=True)
        reply = httpx.post(
            f"http://127.0.0.1:{port}{BARE_ROUTE}", json={"prompt": "a cat"}, headers={"TT-API-KEY": API_KEY}
        )
        assert reply.json()["data"][0]["url"].startswith(f"http://127.0.0.1:{port}/pictures/")
        child.send_signal(stop)
        output, _ = child.communicate(timeout=10)
        assert output == b""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_it_ends_when_its_parent_is_killed() -> None:
    port = free_port()
    with started(PARENT, str(port), RUN) as parent:
        wait_until(port, answering=True)
        parent.kill()
        wait_until(port, answering=False)


def test_it_ends_when_its_parent_was_gone_before() -> None:
    port = free_port()
    gone = RUN.replace("die_with_parent=True", "die_with_parent=True, parent_id=2**30")
    with started(gone, str(port)) as child:
        child.wait(timeout=10)
        assert not answers(port)


def test_a_port_that_is_taken_is_an_error() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        run_sandbox(host="127.0.0.1", port=taken.getsockname()[1])


def test_it_stops_at_once_though_an_order_hangs() -> None:
    outcomes: list[Exception] = []

    def order() -> None:
        try:
            httpx.post(url + BARE_ROUTE, json={"prompt": "a cat [[hang]]"}, headers={"TT-API-KEY": API_KEY}, timeout=30)
        except httpx.HTTPError as error:
            outcomes.append(error)

    with running_sandbox() as sandbox:
        url = sandbox.url
        thread = threading.Thread(target=order)
        thread.start()
        while sandbox.witness()["asked"] == 0:
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    thread.join(timeout=10)
    assert len(outcomes) == 1
