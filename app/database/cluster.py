"""How is the private Postgres's data folder made, and how do its programs run on it?"""

import ctypes
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.database.binaries import BARE_ENVIRONMENT, Binaries, EmbeddedPostgresError, RunAs

NAME = "imagekeep"  # Of the database and of its one user.

NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

# linux/prctl.h: which signal the kernel sends us when the thread that made us ends.
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Place:
    """Where everything of the private Postgres is under the data folder."""

    data_dir: Path

    @property
    def cluster(self) -> Path:
        """Postgres's own data folder; once it stands there it is whole."""
        return self.data_dir / "postgres"

    @property
    def making(self) -> Path:
        """A cluster that initdb is filling, or was when it was interrupted."""
        return self.data_dir / "postgres.making"

    @property
    def password(self) -> Path:
        """The database user's password, readable by its owner alone."""
        return self.data_dir / "postgres.password"

    @property
    def owner_lock(self) -> Path:
        """Locked by the process that owns the folder, and its note of who that is."""
        return self.data_dir / "postgres.owner"

    @property
    def server_lock(self) -> Path:
        """Locked by Postgres itself: inherited by all its processes, and held until the last has ended."""
        return self.data_dir / "postgres.server"

    @property
    def log(self) -> Path:
        """What Postgres said since it was started; the log before that ends in .1."""
        return self.data_dir / "postgres.log"


@dataclass(frozen=True)
class Launch:
    """What every Postgres program of one start has in common."""

    binaries: Binaries
    run_as: RunAs
    place: Place
    log_fd: int
    server_lock_fd: int


@contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """The descriptor of a file to lock, which no child inherits unasked. Closing it unlocks."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Whether the lock is now ours. The kernel frees it however its holder ends."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def new_log(log: Path) -> Iterator[int]:
    """The descriptor of a fresh log; the one before is kept, and there are never more than two."""
    with suppress(FileNotFoundError):
        log.replace(log.with_name(f"{log.name}.1"))
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def last_words(log: Path) -> str:
    """The end of a log, in one line, and where the rest is."""
    lines = log.read_text(errors="replace").splitlines()
    return f"Its last words: {' / '.join(lines[-3:])} (all of them: {log})"


def cluster_major(cluster: Path) -> int | None:
    """The Postgres major that made this folder, None where there is none. Raises EmbeddedPostgresError for a ruin."""
    if not cluster.exists():
        return None
    try:
        return int((cluster / "PG_VERSION").read_text())
    except (OSError, ValueError) as error:
        raise EmbeddedPostgresError(
            f"{cluster} is not a Postgres data folder that can be read. Restore it from a backup, or move it away to "
            "start empty."
        ) from error


def read_password(place: Place) -> str:
    """The database user's password. Raises EmbeddedPostgresError where its file cannot be read."""
    try:
        return place.password.read_text()
    except OSError as error:
        raise EmbeddedPostgresError(
            f"{place.password}, which opens {place.cluster}, cannot be read ({error.strerror}). Restore it from "
            "the same backup as that folder."
        ) from error


def make_cluster(launch: Launch, *, durable: bool) -> None:
    """Make the data folder with an empty database in it; it appears whole or, whatever interrupts this, not at all.

    Raises EmbeddedPostgresError.
    """
    place, run_as = launch.place, launch.run_as
    _require_name(run_as)
    if place.making.exists():
        shutil.rmtree(place.making)
    place.making.mkdir(mode=0o700)
    if run_as.uid is not None and run_as.gid is not None:
        os.chown(place.making, run_as.uid, run_as.gid)
    password = secrets.token_urlsafe(32)
    _write_password(place.password, password)
    with _readable_by(run_as, password) as password_fd:
        # Before 17 Postgres has no C.UTF-8 of its own, and the system's may be missing; plain C is everywhere.
        locale = ["--locale-provider=builtin", "--locale=C.UTF-8"] if launch.binaries.major >= 17 else ["--no-locale"]
        arguments = [f"--username={NAME}", "--encoding=UTF8", *locale, "--auth=scram-sha-256"]
        arguments += [f"--pwfile=/dev/fd/{password_fd}", "--no-instructions", *([] if durable else ["--no-sync"])]
        _run(launch, "initdb", arguments, keep_fds=(password_fd,))
    # Without exit_on_error a statement that failed would still end in success.
    options = setting_options({"exit_on_error": "on"} | ({} if durable else NOT_DURABLE))
    _run(launch, "postgres", ["--single", *options, "postgres"], said=f"CREATE DATABASE {NAME};\n")
    place.making.rename(place.cluster)
    data_dir_fd = os.open(place.data_dir, os.O_RDONLY)
    os.fsync(data_dir_fd)
    os.close(data_dir_fd)


def setting_options(settings: dict[str, str]) -> list[str]:
    """Settings as Postgres's command line takes them."""
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def launch_program(
    launch: Launch,
    program: str,
    arguments: list[str],
    *,
    folder: Path,
    stdin: int = subprocess.DEVNULL,
    keep_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start a Postgres program on this data folder, as the chosen user, holding the server lock, writing to the log.

    On Linux it gets a SIGINT when the calling thread ends, however that ends.
    """
    run_as = launch.run_as
    # As another user Postgres may not walk down to a folder under /root. It is put into the folder while still root,
    # and this name for it needs no walking.
    walkable = run_as.uid is None or sys.platform != "linux"
    return subprocess.Popen(  # noqa: S603
        [launch.binaries.bin_dir / program, *arguments],
        cwd=folder,
        env=BARE_ENVIRONMENT | {"PGDATA": str(folder) if walkable else "/proc/self/cwd"},
        user=run_as.uid,
        group=run_as.gid,
        extra_groups=run_as.groups,
        stdin=stdin,
        stdout=launch.log_fd,
        stderr=launch.log_fd,
        pass_fds=(launch.server_lock_fd, *keep_fds),
        # Ctrl-C goes to the terminal's whole foreground, and would stop Postgres under the work being finished.
        start_new_session=True,
        preexec_fn=_stop_with_parent(),
    )


def _stop_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask_the_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
        # The parent may have ended before the kernel was asked, and would then never be missed.
        if os.getppid() != parent:
            os._exit(1)

    return ask_the_kernel


def _run(launch: Launch, program: str, arguments: list[str], *, said: str = "", keep_fds: tuple[int, ...] = ()) -> None:
    running = launch_program(
        launch, program, arguments, folder=launch.place.making, stdin=subprocess.PIPE, keep_fds=keep_fds
    )
    with running:
        running.communicate(said.encode())
    if running.returncode != 0:
        raise EmbeddedPostgresError(
            f"The data folder of the private Postgres cannot be made. {last_words(launch.place.log)}"
        )


def _require_name(run_as: RunAs) -> None:
    # initdb looks its user up and gives up without; containers run with a bare number are like that.
    uid = os.geteuid() if run_as.uid is None else run_as.uid
    try:
        pwd.getpwuid(uid)
    except KeyError as error:
        raise EmbeddedPostgresError(
            f"Postgres makes no data folder for uid {uid}, which has no name in /etc/passwd. Run imagekeep as a user "
            "that has one, or set DATABASE_URL to a Postgres of your own."
        ) from error


def _write_password(path: Path, password: str) -> None:
    # One that an interrupted first start left opens nothing, so it may go.
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(password)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _readable_by(run_as: RunAs, secret: str) -> Iterator[int]:
    # initdb takes a password from a file only, and as another user it can read none of ours. A pipe can be given away.
    read_fd, write_fd = os.pipe()
    try:
        with open(write_fd, "w") as file:
            file.write(secret)
        if run_as.uid is not None and run_as.gid is not None:
            os.fchown(read_fd, run_as.uid, run_as.gid)
        yield read_fd
    finally:
        os.close(read_fd)
