"""How does an installation without a DATABASE_URL get a Postgres of its own, and which of its processes runs it?"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import structlog

from app.database.binaries import EmbeddedPostgresError, choose_user, find_binaries
from app.database.cluster import (
    NAME,
    Launch,
    Place,
    cluster_major,
    last_words,
    lock_file,
    make_cluster,
    new_log,
    read_password,
    try_lock,
)
from app.database.server import HOST, POLL_SECONDS, Server, clear_leftovers, start_server, version_at

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "open_embedded"]

log = structlog.get_logger(__name__)

Role = Literal["serve", "command"]

# A server that dies again and again is not mended by starting it.
RESTARTS_MAX = 5
RESTARTS_SECONDS = 300.0
RESTART_PAUSE_SECONDS = 1.0
_LOOK_SECONDS = 0.1

# How long (who asks, who holds the folder) waits. The first is just long enough for a new owner to replace the note
# that a dead one left.
PATIENCE_SECONDS: dict[tuple[Role, Role], float] = {
    ("serve", "serve"): 0.2,
    ("serve", "command"): 30.0,
    ("command", "serve"): 20.0,
    ("command", "command"): 600.0,
}


@dataclass(frozen=True)
class _Owner:
    """Who holds the data folder; the port is there once its Postgres answers."""

    role: Role
    pid: int
    port: int | None


@dataclass(frozen=True)
class _Starter:
    """What a start of the server takes, the first as well as one after a crash."""

    place: Place
    durable: bool
    binaries_dir: Path | None


class EmbeddedPostgres:
    """A Postgres that answers at `url` until `close`; its owner then stops it, a borrower only forgets it."""

    def __init__(self, url: str, server: Server | None, version: str, starter: _Starter, closing: ExitStack) -> None:
        """`version` is such as "18.4"; `closing` holds what `close` undoes; a borrower has no `server`."""
        self.url = url
        self.version = version
        self._server = server
        self._starter = starter
        self._closing = closing
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    def __repr__(self) -> str:
        """Without the URL, which holds the password."""
        return f"<EmbeddedPostgres {self.version}>"

    def __enter__(self) -> Self:
        """Open already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close, whatever happened."""
        self.close()

    def keep_up(self, give_up: Callable[[EmbeddedPostgresError], None]) -> None:
        """Start the server again, at the same URL, whenever it has died; what was committed is all there.

        From a thread that lives until `close`, and in it `give_up` is called once when too many starts in too short a
        time have not helped. For the owner alone.
        """
        assert self._server is not None, "a borrower starts nothing"
        self._keeper = threading.Thread(
            target=self._keep_up, args=(self._server, give_up), name="postgres-keeper", daemon=True
        )
        self._keeper.start()

    def close(self) -> None:
        """Return once Postgres has stopped, if it is ours to stop. A second call does nothing."""
        self._stopping.set()
        if self._keeper is not None:
            # In the middle of a start it would leave a server behind. Where it ends, the kernel stops the server that
            # it has started; what is closed next waits for that.
            self._keeper.join()
        self._closing.close()

    def _keep_up(self, server: Server, give_up: Callable[[EmbeddedPostgresError], None]) -> None:
        starts: list[float] = []
        while not self._stopping.wait(_LOOK_SECONDS):
            if server.postmaster.poll() is None:
                continue
            starts = [at for at in starts if time.monotonic() - at < RESTARTS_SECONDS]
            if len(starts) == RESTARTS_MAX:
                give_up(self._given_up(server))
                break
            starts.append(time.monotonic())
            log.error("postgres_died", exit_code=server.postmaster.returncode, restart=len(starts), of=RESTARTS_MAX)
            try:
                server = _run_postgres(self._starter, self._closing, port=server.port)
            except (EmbeddedPostgresError, OSError) as error:
                log.error("postgres_not_restarted", detail=str(error))
                self._stopping.wait(RESTART_PAUSE_SECONDS)
            else:
                log.warning("postgres_restarted", port=server.port)
        # The kernel watches this thread: ended before, it would take the server along that it has started.
        self._stopping.wait()

    def _given_up(self, server: Server) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(
            f"The private Postgres died (exit status {server.postmaster.returncode}), and starting it again "
            f"{RESTARTS_MAX} times in {RESTARTS_SECONDS:.0f} s did not help. {last_words(self._starter.place.log)}"
        )


def is_made(data_dir: Path) -> bool:
    """Return whether a Postgres was ever made under `data_dir`."""
    return Place(data_dir.absolute()).cluster.exists()


def open_embedded(
    data_dir: Path, *, role: Role, durable: bool = True, binaries_dir: Path | None = None
) -> EmbeddedPostgres:
    """A Postgres that answers, with everything it keeps under `data_dir`: made at the first call, found again later.

    One process owns the folder at a time. `serve` refuses a second `serve` and waits for a command; `command` borrows
    the Postgres of a `serve` and waits for another command. The owner's Postgres ends with it, on Linux even when it
    is killed with -9; so it must be called from the main thread, the one whose end the kernel watches.
    `durable=False` may lose everything with the machine, and is for tests. `binaries_dir` is a folder with `initdb`
    and `postgres`, as `pg_config --bindir` prints it. Raises EmbeddedPostgresError.
    """
    assert threading.current_thread() is threading.main_thread(), "Postgres would stop when this thread ends"
    place = Place(data_dir.absolute())
    with ExitStack() as closing:
        try:
            place.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner_fd = closing.enter_context(lock_file(place.owner_lock))
        except OSError as error:
            raise EmbeddedPostgresError(
                f"The data folder {place.data_dir} cannot be written ({error.strerror}). Run imagekeep as the user "
                "that made it, or choose another DATA_DIR."
            ) from error
        starter = _Starter(place, durable, binaries_dir)
        borrowed = _own_or_borrow(owner_fd, starter, role)
        if borrowed is not None:
            return borrowed
        # Only the note is wiped, the file stays: a lock on a file that is no longer there would exclude nobody.
        closing.callback(os.ftruncate, owner_fd, 0)
        server = _run_postgres(starter, closing)
        _write_owner(owner_fd, _Owner(role, os.getpid(), server.port))
        url = _url(server.port, read_password(place))
        return EmbeddedPostgres(url, server, server.version, starter, closing.pop_all())


def _own_or_borrow(owner_fd: int, starter: _Starter, role: Role) -> EmbeddedPostgres | None:
    place = starter.place
    started = time.monotonic()
    while not try_lock(owner_fd):
        owner = _read_owner(owner_fd)
        if role == "command" and owner is not None and owner.role == "serve" and owner.port is not None:
            password = read_password(place)
            version = version_at(owner.port, password)
            if version is not None:
                return EmbeddedPostgres(_url(owner.port, password), None, version, starter, ExitStack())
        # A note is missing only for the moment between locking the file and writing it.
        if owner is not None and time.monotonic() - started > PATIENCE_SECONDS[role, owner.role]:
            raise EmbeddedPostgresError(_refusal(owner, place, role))
        time.sleep(POLL_SECONDS)
    _write_owner(owner_fd, _Owner(role, os.getpid(), None))
    return None


def _refusal(owner: _Owner, place: Place, role: Role) -> str:
    if owner.role == "command":
        return f"A command with pid {owner.pid} is still using {place.data_dir}. Try again when it has ended."
    if role == "serve":
        return (
            f"Imagekeep is already running as pid {owner.pid} on {place.data_dir}. Stop that one first, give this one "
            "another DATA_DIR, or set DATABASE_URL, which several can share."
        )
    return f"Imagekeep is running as pid {owner.pid}, but its Postgres does not answer. {place.log} may say why."


def _read_owner(fd: int) -> _Owner | None:
    try:
        return _Owner(**json.loads(os.pread(fd, 1000, 0)))
    except ValueError:
        return None


def _write_owner(fd: int, owner: _Owner) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(asdict(owner)).encode(), 0)


def _run_postgres(starter: _Starter, closing: ExitStack, *, port: int | None = None) -> Server:
    place = starter.place
    with lock_file(place.server_lock) as server_lock_fd:
        clear_leftovers(place, server_lock_fd)
        run_as = choose_user(place.cluster)
        binaries = find_binaries(starter.binaries_dir, run_as, cluster_major(place.cluster))
        with new_log(place.log) as log_fd:
            launch = Launch(binaries, run_as, place, log_fd, server_lock_fd)
            if not place.cluster.exists():
                make_cluster(launch, durable=starter.durable)
            return start_server(launch, closing, durable=starter.durable, port=port)


def _url(port: int, password: str) -> str:
    return f"postgresql+psycopg://{NAME}:{password}@{HOST}:{port}/{NAME}"
