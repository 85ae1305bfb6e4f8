"""How does an installation start, stay up, and stop, with everything it brings along?

The parent starts what the settings leave open (a private Postgres, the sandbox), migrates once, and then serves: in its
own process, or with workers of which it keeps the asked number. Whatever ends it, nothing stays behind.
"""

import contextlib
import ctypes
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from prometheus_client import multiprocess as prometheus_workers
from uvicorn.config import STARTUP_FAILURE

from app.database.embedded import open_embedded
from app.main import create_app
from app.preparation import (
    FIRST_USER,
    FIRST_USER_IMAGES_PER_DAY_MAX,
    DatabaseNotThere,
    Failure,
    ServeError,
    prepare,
    preparing_later,
)
from app.settings import Settings
from app.telemetry import configure_logging
from app.upstream.catalog import load_catalog
from app.wiring import Neighbours, images_folder, sandbox_port_note

log = structlog.get_logger(__name__)

_BACKLOG = 2048
_RESTART_PAUSE_SECONDS = 1.0
_SANDBOX_WAIT_SECONDS = 15
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Banner:
    """What a start tells the person who ran it. `key` is set on the very first start only, and nowhere else kept."""

    url: str
    database: str
    storage: str
    upstream: str
    key: str | None

    @property
    def curl(self) -> str:
        """A line that orders an image when it is pasted into a shell."""
        key = self.key or "$IMAGEKEEP_KEY"
        return (
            f"""curl -sS {self.url}/images -H "Authorization: Bearer {key}" """
            """-H "Content-Type: application/json" -d '{"prompt": "a red fox in the snow"}'"""
        )

    def as_text(self) -> str:
        """Return it for a person."""
        lines = [
            f"Imagekeep is running at {self.url}",
            f"  database  {self.database}",
            f"  storage   {self.storage}",
            f"  upstream  {self.upstream}",
            "",
        ]
        if self.key:
            lines += [
                f"The first user's API key, shown this once ({FIRST_USER_IMAGES_PER_DAY_MAX} images a day):",
                "",
                f"  {self.key}",
                "",
                "Order an image:",
            ]
        else:
            lines += [
                f"Keys are shown only when they are made; for a new one: {sys.argv[0]} keys create {FIRST_USER}",
                "Order an image:",
            ]
        return "\n".join([*lines, "", f"  {self.curl}", "", f"API docs: {self.url}/docs   Stop with Ctrl-C.", ""])

    def as_json(self) -> str:
        """Return it for a script, as one JSON document."""
        told = {name: getattr(self, name) for name in ("url", "database", "storage", "upstream", "key", "curl")}
        return json.dumps(told)


def serve(settings: Settings, *, as_json: bool) -> None:
    """Run the whole installation until SIGINT or SIGTERM, and print its banner once it answers.

    Raises ServeError, EmbeddedPostgresError, CatalogError or StorageError before anything answers.
    """
    configure_logging(level=settings.log_level, log_format=settings.log_format, secrets=settings.secrets())
    load_catalog(settings.model_catalog)
    with ExitStack() as closing:
        listener = closing.enter_context(_bind(settings.bind_host, settings.port))
        failure = Failure()
        neighbours, told, await_sandbox = _start_neighbours(settings, closing, failure)
        announcement = _prepare_or_wait(settings, neighbours, failure, lambda key: _announcement(told, key, as_json))
        await_sandbox()
        if settings.workers == 1:
            _serve_here(settings, neighbours, listener, announcement)
        else:
            closing.enter_context(_metrics_folder())
            _serve_with_workers(settings, neighbours, listener, announcement)
        failure.raise_if_any()


def _announcement(told: Banner, key: str | None, as_json: bool) -> str:
    banner = replace(told, key=key)
    return banner.as_json() if as_json else banner.as_text()


def _prepare_or_wait(
    settings: Settings, neighbours: Neighbours, failure: Failure, announce: Callable[[str | None], str]
) -> str | None:
    """Prepare the database and return what is to be announced; None when it isn't there yet.

    Then it is prepared when it comes, and announced, while the service answers 503.
    """
    try:
        return announce(prepare(settings, neighbours))
    except DatabaseNotThere as away:
        log.warning("database_not_there", detail=str(away), then="answering 503; prepared and announced when it comes")
        preparing_later(settings, neighbours, lambda key: print(announce(key), flush=True), failure)
        return None


@contextlib.contextmanager
def _bind(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            # Two that only bind both have the port, and the second to listen later is not told that it gets no
            # connection. Whoever calls before the start is over waits for its end.
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ServeError(
                f"Port {port} on {host} can't be had ({error.strerror}). Choose another: --port N, or PORT."
            ) from error
        listener.set_inheritable(True)
        yield listener


def _start_neighbours(
    settings: Settings, closing: ExitStack, failure: Failure
) -> tuple[Neighbours, Banner, Callable[[], None]]:
    """Start what the settings leave open, and say what the installation runs on.

    The sandbox comes up while the database is prepared; calling the third value waits for it.
    """
    if settings.tt_api_key is not None:
        sandbox_url, upstream, await_sandbox = None, settings.tt_api_base_url, lambda: None
    else:
        sandbox_url, await_sandbox = closing.enter_context(_running_sandbox(settings))
        upstream = "the SANDBOX: it draws pictures on this machine and costs nothing. Set TT_API_KEY for real images."
    if settings.database_url is not None:
        database_url, database = settings.database_url.get_secret_value(), "Postgres at DATABASE_URL"
    else:
        embedded = open_embedded(settings.data_dir, role="serve", binaries_dir=settings.postgres_binaries_dir)
        closing.callback(embedded.close)
        embedded.keep_up(failure.tell)
        database_url, database = embedded.url, f"its own Postgres {embedded.version} in {settings.data_dir.absolute()}"
    if settings.s3_bucket:
        storage = f"the bucket {settings.s3_bucket}"
    else:
        storage = f"the folder {images_folder(settings.data_dir).absolute()}"
    told = Banner(settings.resolved_public_url(), database, storage, upstream, None)
    return Neighbours(database_url, sandbox_url), told, await_sandbox


# The sandbox, a process of its own


@contextlib.contextmanager
def _running_sandbox(settings: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    port = _sandbox_port(settings.data_dir)
    command = [sys.executable, "-m", "app.sandbox", "--port", str(port), "--parent", str(os.getpid())]
    if not settings.sandbox_draw:
        command.append("--no-draw")
    # A session of its own: Ctrl-C must reach the orders in flight before their upstream goes.
    sandbox = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)  # noqa: S603
    try:
        yield f"http://127.0.0.1:{port}", lambda: _await_listener(port, sandbox)
    finally:
        sandbox.kill()
        sandbox.wait()


def _sandbox_port(data_dir: Path) -> int:
    """Return the port of the last time if it is free, else a new one, and keep it.

    A generation whose picture waited in the sandbox when the machine went down finds it again at the same address.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    note = sandbox_port_note(data_dir)
    for port in (int(note.read_text()) if note.exists() else 0, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            note.write_text(str(probe.getsockname()[1]))
            return int(probe.getsockname()[1])
    raise ServeError("No port on 127.0.0.1 can be had for the sandbox.")


def _await_listener(port: int, sandbox: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _SANDBOX_WAIT_SECONDS
    while time.monotonic() < deadline and sandbox.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise ServeError("The sandbox did not start. Its own message stands above.")


# Serving


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


def _serve_here(settings: Settings, neighbours: Neighbours, listener: socket.socket, announcement: str | None) -> None:
    def stop_now() -> bool:
        return server.hurried()

    config = uvicorn.Config(
        create_app(settings, neighbours, stop_now=stop_now),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
    )
    server = _Server(config, announcement=announcement, drain_seconds=settings.drain_seconds)
    # uvicorn raises the signal it obeyed once more when it has stopped; by default that would kill this process before
    # it has stopped what it started.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: None)
    server.run(sockets=[listener])


def _serve_with_workers(
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
    _serve_here(settings, neighbours, listener, announcement)


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
def _metrics_folder() -> Iterator[None]:
    """Let the workers' figures be added up: each keeps its own in a file here, and /metrics reads all of them."""
    folder = tempfile.mkdtemp(prefix="imagekeep-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(folder, ignore_errors=True)
