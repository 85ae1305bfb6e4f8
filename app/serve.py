"""How does an installation start, stay up, and stop, with everything it brings along?

The parent starts what the settings leave open (a private Postgres, the sandbox), migrates once, and then serves: in its
own process, or with workers of which it keeps the asked number. Whatever ends it, nothing stays behind.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from app.database.embedded import open_embedded
from app.preparation import (
    FIRST_USER,
    FIRST_USER_IMAGES_PER_DAY_MAX,
    DatabaseNotThere,
    Failure,
    ServeError,
    prepare,
    preparing_later,
    require_bucket,
)
from app.server import BACKLOG, metrics_folder, serve_here, serve_with_workers, tell
from app.settings import Settings
from app.storage.base import StorageError
from app.telemetry import configure_logging
from app.upstream.catalog import load_catalog
from app.upstream.retirement import Retirement, retirements_of, today, warn_of
from app.wiring import Neighbours, images_folder, sandbox_port_note

log = structlog.get_logger(__name__)

_SANDBOX_WAIT_SECONDS = 15
# Whoever has waited for the start is answered before its core is taken for something else.
_FIRST_ANSWERS_SECONDS = 0.1


@dataclass(frozen=True)
class Banner:
    """What a start tells the person who ran it. `key` is set on the very first start only, and nowhere else kept."""

    url: str
    database: str
    storage: str
    upstream: str
    key: str | None
    retiring: Sequence[Retirement] = ()

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
            *(f"  retiring  {one.model}, {'since' if one.is_over else 'on'} {one.retires_on}" for one in self.retiring),
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
        retiring = [{"model": one.model, "retires_on": one.retires_on.isoformat()} for one in self.retiring]
        return json.dumps(told | {"retiring": retiring})


def serve(settings: Settings, *, as_json: bool) -> None:
    """Run the whole installation until SIGINT or SIGTERM, and print its banner once it answers.

    Raises ServeError, EmbeddedPostgresError or CatalogError before anything answers, and StorageMisconfigured before
    the banner. On the very first start that comes before anything answers as well.
    """
    configure_logging(level=settings.log_level, log_format=settings.log_format, secrets=settings.secrets())
    catalog = load_catalog(settings.model_catalog)
    # The sandbox drops no model, and whoever tries it out has none to replace.
    retiring = retirements_of(catalog, today()) if settings.tt_api_key is not None else ()
    with ExitStack() as closing:
        listener = closing.enter_context(_bind(settings.bind_host, settings.port))
        failure = Failure()
        neighbours, told, await_sandbox = _start_neighbours(settings, closing, failure)
        told = replace(told, retiring=retiring)
        announcement = _prepare_or_wait(settings, neighbours, failure, lambda key: _announcement(told, key, as_json))
        await_sandbox()
        for retirement in retiring:
            warn_of(retirement)
        if settings.workers == 1:
            answering = partial(_prove_and_tell, settings, announcement, failure)
            serve_here(settings, neighbours, listener, answering)
        else:
            require_bucket(settings)
            closing.enter_context(metrics_folder())
            serve_with_workers(settings, neighbours, listener, announcement)
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


def _prove_and_tell(settings: Settings, announcement: str | None, failure: Failure) -> None:
    """Announce it at once, or, with a bucket, once that could be reached with these settings. Tells `failure` if not.

    What boto3 takes for that, 0.4 s, was a fifth of a start. Nothing of it is needed before there is a picture.
    """

    def work() -> None:
        time.sleep(_FIRST_ANSWERS_SECONDS)
        try:
            require_bucket(settings)
        except StorageError as error:
            failure.tell(error)
        else:
            tell(announcement)

    if settings.s3_bucket is None:
        tell(announcement)
    else:
        threading.Thread(target=work, name="bucket", daemon=True).start()


@contextlib.contextmanager
def _bind(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            # Two that only bind both have the port, and the second to listen later is not told that it gets no
            # connection. Whoever calls before the start is over waits for its end.
            listener.listen(BACKLOG)
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
