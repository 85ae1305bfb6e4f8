"""Where do replicas come from in milliseconds, so that a thousand of them can be killed in minutes?

    python -m tests.faults.zygote    told what to do by lines of JSON, tells what happened by lines of JSON

One process has imported the application and taken one order, so that nothing is cold; then it runs no thread and no
loop, and forks. A replica is the real server of app/server.py on a port of its own. A named point is a line of its log:
the product needs no hooks for it.
"""

import asyncio
import gc
import io
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import httpx
import uvicorn

from app.main import create_app
from app.server import run_worker
from app.settings import Settings
from app.telemetry import configure_logging
from app.wiring import Neighbours

# What a replica's log says when it passes a point: the event, and the fields that it must have.
POINTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "reserved": ("generation_reserved", {}),
    "answered": ("upstream_answered", {}),
    "generated": ("generation_moved", {"state": "generated"}),
    "image_got": ("picture_fetched", {}),
    "stored": ("picture_stored", {}),
    "settled": ("generation_moved", {"state": "completed"}),
}

_LOOK_SECONDS = 0.01
_BACKLOG = 256
_WARM_UP_SECONDS_MAX = 30


def main() -> None:
    """Obey until standard input ends, and take every replica along then."""
    replicas: set[int] = set()
    rest = b""
    _say({"zygote": os.getpid()})
    while True:
        if select.select([0], [], [], _LOOK_SECONDS)[0]:
            said = os.read(0, 65_536)
            if not said:
                break
            *lines, rest = (rest + said).split(b"\n")
            for line in lines:
                _obey(json.loads(line), replicas)
        for pid, status in _changed():
            if os.WIFSTOPPED(status):
                _say({"stopped": pid})
                continue
            replicas.discard(pid)
            _say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})
    for pid in replicas:
        os.kill(pid, signal.SIGKILL)


def _obey(asked: Mapping[str, Any], replicas: set[int]) -> None:
    if "signal" in asked:
        # Only a child that was not waited for: no number is ever given to another process meanwhile.
        if asked["pid"] in replicas:
            os.kill(asked["pid"], asked["signal"])
        return
    if "warm_up" in asked:
        _warm_up(asked, asked["warm_up"])
        return
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    pid = os.fork()
    if pid == 0:
        _be_replica(asked, listener)
    replicas.add(pid)
    _say({"started": pid, "port": listener.getsockname()[1], "request": asked["request"]})
    listener.close()


def _warm_up(asked: Mapping[str, Any], order: Mapping[str, Any]) -> None:
    """Take one order with a server of this process's own: a replica's first would else take as long as ten others."""
    settings = Settings(_env_file=None, **asked["settings"])
    configure_logging(level=settings.log_level, log_format=settings.log_format, secrets=settings.secrets())
    asyncio.run(_take_one_order(settings, asked["database_url"], order))
    deadline = time.monotonic() + _WARM_UP_SECONDS_MAX
    while threading.active_count() > 1:
        assert time.monotonic() < deadline, f"a fork would lose these threads: {threading.enumerate()}"
        time.sleep(0.01)
    # What is there now stays shared between the replicas: a collection would touch, and so copy, every page of it.
    gc.collect()
    gc.freeze()


async def _take_one_order(settings: Settings, database_url: str, order: Mapping[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(settings, Neighbours(database_url))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, access_log=False))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with httpx.AsyncClient(verify=False, trust_env=False, timeout=_WARM_UP_SECONDS_MAX) as client:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/images"
            answer = await client.post(url, headers=order["headers"], json={"prompt": order["prompt"]})
        server.should_exit = True
        await serving
    assert answer.status_code == 200, answer.text


def _changed() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _be_replica(asked: Mapping[str, Any], listener: socket.socket) -> None:
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if asked["trap"] is not None:
            _set_trap(**asked["trap"])
        run_worker(
            Settings(_env_file=None, **asked["settings"]),
            Neighbours(asked["database_url"]),
            listener,
            json.dumps({"ready": os.getpid()}),
            os.getppid(),
            signal.SIGKILL,
        )
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else 1
    except BaseException:  # noqa: BLE001 - what ends a replica is told, and never goes on as a second zygote
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


def _set_trap(point: str, passes: int, number: int) -> None:
    """Send this process a signal when its log says for the `passes` + 1st time that it passes the point."""
    sys.stderr = _Trap(sys.stderr, *POINTS[point], passes, number)


class _Trap(io.TextIOBase):
    """A standard error that reads what is written to it."""

    def __init__(self, out: TextIO, event: str, fields: Mapping[str, str], passes: int, number: int) -> None:
        self._out = out
        self._event = event
        self._fields = fields
        self._left = passes
        self._number = number

    def write(self, text: str) -> int:
        written = self._out.write(text)
        if f'"event":"{self._event}"' in text and self._fields.items() <= json.loads(text).items():
            self._left -= 1
            if self._left == -1:
                os.kill(os.getpid(), self._number)
        return written

    def flush(self) -> None:
        self._out.flush()


def _say(what: Mapping[str, Any]) -> None:
    # One write, so that it does not mix with what a replica announces on the same pipe.
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
