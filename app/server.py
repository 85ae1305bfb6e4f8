"""How does a process, or several, answer on the port that was opened, and how does it leave?

One process serves by itself; several are workers of a parent that keeps the asked number and adds their figures up.
"""

import contextlib
import ctypes
import gc
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
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from types import FrameType

import structlog
import uvicorn
from prometheus_client import multiprocess as prometheus_workers
from uvicorn.config import STARTUP_FAILURE

from app.main import create_app
from app.preparation import LEAVE_UNANNOUNCED, ServeError
from app.settings import Settings
from app.telemetry import configure_logging
from app.wiring import Departure, Neighbours

log = structlog.get_logger(__name__)

BACKLOG = 2048

# Python has 700, and so looks once for every other order, with all that 64 in flight hold: 0.4 ms of CPU for an order.
# `app.__main__` lets far more go by while it imports.
_GARBAGE_OBJECTS_MAX = 10_000

_RESTART_PAUSE_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


class _Server(uvicorn.Server):
    """uvicorn, with something to do once it answers, notice before it leaves, and an end to its patience.

    SIGTERM gives notice: readiness is red from then on, and the port is open until the notice is over, so that whoever
    sends us callers sees it and sends them elsewhere. Ctrl-C leaves at once, and a second one means "now".
    """

    def __init__(
        self, config: uvicorn.Config, *, answering: Callable[[], None], notice_seconds: float, drain_seconds: float
    ) -> None:
        super().__init__(config)
        self._answering = answering
        self._notice_seconds = notice_seconds
        self._drain_seconds = drain_seconds
        self._open_until = math.inf
        self._patient_until = math.inf

    def departure(self) -> Departure:
        """Return what tells the application how far this server is on its way out."""
        return Departure(announced=self._announced, closed=lambda: self.should_exit, hurried=self._hurried)

    def _announced(self) -> bool:
        return self.should_exit or self._open_until < math.inf

    def _hurried(self) -> bool:
        return self.force_exit or time.monotonic() > self._patient_until

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there now stays: each full look for garbage would go through it again, and nothing is served for the
        # 0.1 s that it takes.
        gc.freeze()
        gc.set_threshold(_GARBAGE_OBJECTS_MAX)
        if self.started:
            self._answering()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        notice_seconds = self._notice_seconds if sig == signal.SIGTERM and not self.should_exit else 0
        if notice_seconds:
            self._open_until = min(self._open_until, now + notice_seconds)
        else:
            # Ctrl-C while notice is given is a second word already.
            self.should_exit = self._announced()
            super().handle_exit(sig, frame)
        # uvicorn waits for the connections, and then the lifespan for the generations: this bounds both together.
        self._patient_until = min(self._patient_until, now + notice_seconds + self._drain_seconds)

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or time.monotonic() > self._open_until
        return await super().on_tick(counter)


def serve_here(
    settings: Settings, neighbours: Neighbours, listener: socket.socket, answering: Callable[[], None]
) -> None:
    """Serve until a signal ends it. `answering` is called once it does, on its loop: it must not wait for anything."""
    config = uvicorn.Config(
        # Made when it is asked for: the application asks the server how far it is, and the server is made with it.
        lambda: create_app(settings, neighbours, departure=server.departure()),
        factory=True,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
    )
    server = _Server(
        config,
        answering=answering,
        notice_seconds=settings.drain_notice_seconds,
        drain_seconds=settings.drain_seconds,
    )
    signal.signal(LEAVE_UNANNOUNCED, server.handle_exit)
    # uvicorn takes these over as it begins, so one that comes a moment earlier must be heard as well: a worker that did
    # not was left behind, and kept the port open. It raises the one it obeyed once more when it has stopped; by default
    # that would kill this process before it has stopped what it started.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, server.handle_exit)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    server.run(sockets=[listener])


def serve_with_workers(
    settings: Settings, neighbours: Neighbours, listener: socket.socket, announcement: str | None
) -> None:
    stopping = threading.Event()
    hurried = threading.Event()
    told: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        told.append(number)
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
                if not stopping.wait(_RESTART_PAUSE_SECONDS):
                    workers[place] = start(None)
        word = signal.SIGTERM if told[0] == signal.SIGTERM else LEAVE_UNANNOUNCED
        for worker in workers:
            if worker.is_alive() and worker.pid:
                os.kill(worker.pid, word)
        # The port stays open while a worker holds it, as they do while they give notice. Held here too, the kernel
        # would go on taking connections after them, and nobody would answer those.
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
    # that stays, workers stop answering and finish what was paid for; at once, for the next start wants the port.
    last_word = signal.SIGKILL if settings.database_url is None else LEAVE_UNANNOUNCED

    def start(announcement: str | None) -> SpawnProcess:
        worker = context.Process(
            target=run_worker, args=(settings, neighbours, listener, announcement, os.getpid(), last_word)
        )
        # A worker begins with SIGINT blocked, and keeps it so until it can obey: a Ctrl-C in the second that its
        # imports take would else end in a traceback. What multiprocessing starts before its first process lets the
        # signal in again when it has been started, so that comes first: the first worker began with it let in.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
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
    serve_here(settings, neighbours, listener, lambda: tell(announcement))


def tell(announcement: str | None) -> None:
    """Print what whoever started it waits for, if there is something."""
    if announcement:
        print(announcement, flush=True)


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
