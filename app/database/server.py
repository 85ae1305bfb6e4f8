"""How is the private Postgres started on its data folder, and how does it end?"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from app.database.binaries import EmbeddedPostgresError
from app.database.cluster import (
    NAME,
    NOT_DURABLE,
    Launch,
    Place,
    last_words,
    launch_program,
    read_password,
    setting_options,
    try_lock,
)

HOST = "127.0.0.1"

# Covers replaying what was written before a power cut.
START_SECONDS_MAX = 120.0
# What Postgres gets to end by itself after its owner was killed. Telling one that is ending already does no harm.
LEFTOVER_SECONDS_MAX = 1.0
POLL_SECONDS = 0.02
PORT_TRIES_MAX = 3
# Ways to stop Postgres, the polite one first: break off connections and checkpoint; leave at once; be gone.
STOPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

SETTINGS = {
    "listen_addresses": HOST,
    # A socket's path may not exceed 107 bytes, and a data folder's may.
    "unix_socket_directories": "",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    # In Postgres's order "log" is above "error": starts, stops and crashes are told, and no statement that failed,
    # whose text and keys belong in no log. This also keeps the log small however long the server runs.
    "log_min_messages": "log",
    "log_checkpoints": "off",
    # Who breaks off while it says who it is, as a task that is cancelled does, keeps its process waiting for so long,
    # and that holds up CREATE and DROP DATABASE, and whatever else waits for every process. The usual minute is for
    # people.
    "authentication_timeout": "10s",
    # Parallel workers share memory through /dev/shm, which is tiny in containers, and no statement of ours needs them.
    "max_parallel_workers_per_gather": "0",
}


@dataclass(frozen=True)
class Server:
    """A Postgres that answered on `port`. `version` is such as "18.4"."""

    postmaster: "subprocess.Popen[bytes]"
    port: int
    version: str


def start_server(launch: Launch, closing: ExitStack, *, durable: bool, port: int | None = None) -> Server:
    """A Postgres that answers and that `closing` will stop, on `port` if one is given. Raises EmbeddedPostgresError."""
    place = launch.place
    password = read_password(place)
    options = setting_options(SETTINGS | ({} if durable else NOT_DURABLE))
    for _ in range(PORT_TRIES_MAX):
        chosen = port or _free_port()
        server = launch_program(launch, "postgres", [*options, "-c", f"port={chosen}"], folder=place.cluster)
        closing.callback(_stop, server)
        deadline = time.monotonic() + START_SECONDS_MAX
        while server.poll() is None and time.monotonic() < deadline:
            version = version_at(chosen, password)
            if version is not None:
                return Server(server, chosen, version)
            time.sleep(POLL_SECONDS)
        # Between our look for a free port and Postgres's taking it, somebody else may have.
        if server.poll() is None or "Address already in use" not in place.log.read_text(errors="replace"):
            break
    what = f"did not answer within {START_SECONDS_MAX:.0f} s" if server.poll() is None else "did not start"
    raise EmbeddedPostgresError(f"The private Postgres {what}. {last_words(place.log)}")


def version_at(port: int, password: str) -> str | None:
    """The version of the private Postgres, such as "18.4", if it answers on this port, else None."""
    try:
        connection = psycopg.connect(
            host=HOST,
            hostaddr=HOST,
            port=port,
            user=NAME,
            password=password,
            dbname=NAME,
            connect_timeout=2,
            sslmode="disable",
            gssencmode="disable",
            # The port may by now be a stranger's: it gets a proof of the password, never the password.
            require_auth="scram-sha-256",
        )
    except psycopg.OperationalError:
        return None
    with connection:
        return (connection.info.parameter_status("server_version") or "").split(" ")[0]


def clear_leftovers(place: Place, server_lock_fd: int) -> None:
    """Return once no Postgres of an owner that was killed is left, with the server lock ours.

    It gets time to end by itself, then is stopped. Raises EmbeddedPostgresError where it cannot be.
    """
    _await_lock(server_lock_fd, LEFTOVER_SECONDS_MAX)
    for stop_signal, seconds in STOPS:
        if _await_lock(server_lock_fd, 0):
            break
        pid = _postmaster_pid(place.cluster)
        if pid is not None and _is_postgres_of(place.cluster, pid):
            with suppress(ProcessLookupError):
                os.kill(pid, stop_signal)
        _await_lock(server_lock_fd, seconds)
    if not _await_lock(server_lock_fd, 0):
        raise EmbeddedPostgresError(
            f"A Postgres that an earlier run left on {place.cluster} does not stop. End it by hand, then start again."
        )
    # Nobody of ours is left. Postgres itself sees through a dead number in this file, but not through one that has
    # been given to another process since; and a Postgres that somebody started by hand must stay.
    pid = _postmaster_pid(place.cluster)
    if pid is not None and not _is_postgres_of(place.cluster, pid):
        (place.cluster / "postmaster.pid").unlink()


def _await_lock(fd: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not try_lock(fd):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _postmaster_pid(cluster: Path) -> int | None:
    try:
        return int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def _is_postgres_of(cluster: Path, pid: int) -> bool:
    # In doubt yes: what is then left undone is said by Postgres itself, and done by a person.
    if sys.platform != "linux":
        asked = subprocess.run(["ps", "-p", str(pid), "-o", "comm="], capture_output=True, text=True, check=False)  # noqa: S603, S607
        return "postgres" in asked.stdout
    with suppress(FileNotFoundError, ProcessLookupError):
        try:
            return Path(f"/proc/{pid}/cwd").samefile(cluster)
        except PermissionError:
            # Another user's process, or we are root in a container that may not look into others.
            return Path(f"/proc/{pid}/comm").read_text() == "postgres\n"
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _stop(server: subprocess.Popen[bytes]) -> None:
    for stop_signal, seconds in STOPS:
        server.send_signal(stop_signal)
        with suppress(subprocess.TimeoutExpired):
            server.wait(seconds)
            return
