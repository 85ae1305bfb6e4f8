"""How does a process, or several, answer on the port that was opened, and how does it leave?

One process serves by itself; several are workers of a parent that keeps the asked number and adds their figures up.
"""

import contextlib
import ctypes
import math
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from types import FrameType

import structlog
import uvicorn
from prometheus_client import multiprocess as prometheus_workers
from uvicorn.config import STARTUP_FAILURE

from app.main import create_app
from app.preparation import ServeError
from app.settings import Settings
from app.telemetry import configure_logging
from app.wiring import Neighbours

log = structlog.get_logger(__name__)

BACKLOG = 2048

_RESTART_PAUSE_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


class _Server(uvicorn.Server):
    """uvicorn, with an announcement once it answers, an end to its patience, and a second Ctrl-C that means "now"."""

    def __init__(self, config: uvicorn.Config, *, announcement: str | None, drain_seconds: float) -> None:
        super().__init__(config)
        self._announcement = announcement
        self._drain_seconds = drain_seconds
        self._patient_until = math.inf

    def hurried(self) -> bool:
        """Whether what is still running is to be cut off."""
        return self.force_exit or time.monotonic() > self._patient_until

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._announcement:
            print(self._announcement, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # uvicorn waits for the connections, and then the lifespan for the generations: this bounds both together.
        self._patient_until = min(self._patient_until, time.monotonic() + self._drain_seconds)


def serve_here(settings: Settings, neighbours: Neighbours, listener: socket.socket, announcement: str | None) -> None:
    def stop_now() -> bool:
        return server.hurried()

    config = uvicorn.Config(
        create_app(settings, neighbours, stop_now=stop_now),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
    )
    server = _Server(config, announcement=announcement, drain_seconds=settings.drain_seconds)
    # uvicorn raises the signal it obeyed once more when it has stopped; by default that would kill this process before
    # it has stopped what it started.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: None)
    server.run(sockets=[listener])


def serve_with_workers(
    settings: Settings, neighbours: Neighbours, listener: socket.socket, announcement: str | None
) -> None:
    stopping = threading.Event()
    hurried = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        (hurried if stopping.is_set() and number == signal.SIGINT else stopping).set()

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, on_signal)
    start = _worker_starter(settings, neighbours, listener)
    workers = [start(announcement if number == 0 else None) for number in range(settings.workers)]
    try:
        while not stopping.wait(0.2):
            for place, worker in enumerate(workers):
                if worker.is_alive():
                    continue
                log.error("worker_died", pid=worker.pid, exit_code=worker.exitcode)
                if worker.exitcode == STARTUP_FAILURE:
                    # It would fail the same way a thousand times.
                    raise ServeError("A worker could not start; its own message stands above.")
                prometheus_workers.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
                # A worker that can't start would be started a thousand times a second.
                stopping.wait(_RESTART_PAUSE_SECONDS)
                workers[place] = start(None)
        for worker in workers:
            worker.terminate()
        # While anybody listens, the kernel goes on taking connections, and nobody would answer them any more.
        listener.close()
        while any(worker.is_alive() for worker in workers) and not hurried.is_set():
            time.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _worker_starter(
    settings: Settings, neighbours: Neighbours, listener: socket.socket
) -> Callable[[str | None], SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    # With a Postgres of ours a parent that is gone takes the database along, and nothing could be finished. With one
    # that stays, workers stop answering and finish what was paid for.
    last_word = signal.SIGKILL if settings.database_url is None else signal.SIGTERM

    def start(announcement: str | None) -> SpawnProcess:
        worker = context.Process(
            target=run_worker, args=(settings, neighbours, listener, announcement, os.getpid(), last_word)
        )
        worker.start()
        return worker

    return start


def run_worker(
    settings: Settings,
    neighbours: Neighbours,
    listener: socket.socket,
    announcement: str | None,
    parent_id: int,
    last_word: int,
) -> None:
    """Serve in a process that ends with its parent: `last_word` is the signal it gets then."""
    _end_with_parent(parent_id, last_word)
    configure_logging(level=settings.log_level, log_format=settings.log_format, secrets=settings.secrets())
    serve_here(settings, neighbours, listener, announcement)


def _end_with_parent(parent_id: int, last_word: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, last_word)

    def watch() -> None:
        # For other systems, and for a parent that died before the line above.
        while os.getppid() == parent_id:
            time.sleep(0.5)
        os.kill(os.getpid(), last_word)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


@contextlib.contextmanager
def metrics_folder() -> Iterator[None]:
    """Let the workers' figures be added up: each keeps its own in a file here, and /metrics reads all of them."""
    folder = tempfile.mkdtemp(prefix="imagekeep-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(folder, ignore_errors=True)
