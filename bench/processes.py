"""How is a process started on a core of its own, and what did it and everything it started take?"""

import contextlib
import http.client
import os
import random
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STOP_SECONDS_MAX = 20
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Running:
    """A process that was started and answers on its port."""

    pid: int
    port: int
    # From the start of the process to its first answer.
    start_seconds: float


def allow_open_files() -> None:
    """Let this process, and all that it will start, open as many files as the system allows: connections are files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(frozen=True)
class Cores:
    """Which cores are whose: one for what is measured, the others for load, upstream, bucket and Postgres."""

    measured: frozenset[int]
    others: frozenset[int]

    @property
    def every(self) -> frozenset[int]:
        """All that there are."""
        return self.measured | self.others


def divide_cores() -> Cores:
    """Divide the cores that this process was given, and move it, with all that it will start, to the others.

    Where there is only one, all share it.
    """
    given = frozenset(os.sched_getaffinity(0))
    measured = frozenset({min(given)})
    cores = Cores(measured, given - measured or measured)
    os.sched_setaffinity(0, cores.others)
    return cores


@contextmanager
def running(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: Path,
    port: int,
    cores: Iterable[int],
    ready_path: str,
    patience_seconds: float = 120,
) -> Iterator[Running]:
    """Run a command on these cores until the block ends, from the moment that it answers `ready_path`, with no 5xx.

    It works in `folder` and says there what it has to say. Raises TimeoutError, or OSError when it ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with (folder / "said.txt").open("ab") as said:
        process = subprocess.Popen(
            [*command], cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
    os.sched_setaffinity(process.pid, cores)
    try:
        _await_answer(process, port, ready_path, patience_seconds, folder / "said.txt")
        yield Running(process.pid, port, time.perf_counter() - began)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS_MAX)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await_answer(
    process: "subprocess.Popen[bytes]", port: int, path: str, patience_seconds: float, said: Path
) -> None:
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise OSError(f"it ended with {process.returncode}: {said.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ask(port, path)[0] < 500:
                return
        time.sleep(0.01)
    raise TimeoutError(f"no answer within {patience_seconds:.0f} s: {said.read_text(errors='replace')[-2000:]}")


def ask(port: int, path: str) -> tuple[int, bytes]:
    """GET a path of 127.0.0.1, and return status and body. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def tree_of(pid: int) -> list[int]:
    """Return this process and everything below it that is alive."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (fields := _stat(int(entry))) is not None:
            parents.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid]
    for member in found:
        found.extend(parents.get(member, []))
    return found


def cpu_seconds(pid: int) -> float:
    """Return what this process, everything below it, and what they waited for have used, in user and kernel."""
    stats = [fields for member in tree_of(pid) if (fields := _stat(member)) is not None]
    return sum(int(ticks) for fields in stats for ticks in fields[11:15]) / _TICKS_PER_SECOND


def memory_bytes(pid: int) -> int:
    """Return what is resident of this process and everything below it."""
    pages = 0
    for member in tree_of(pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return pages * _PAGE_BYTES


def _stat(pid: int) -> list[str] | None:
    # What follows the name, which may hold anything: state, parent, ...; user and kernel time are the 12th and 13th.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


@contextmanager
def watched_memory(pid: int) -> Iterator[list[int]]:
    """Watch how much is resident, from a thread; the list holds the most there was when the block has ended."""
    highest = [memory_bytes(pid)]
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            highest[0] = max(highest[0], memory_bytes(pid))

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield highest
    finally:
        over.set()
        watching.join()


def free_port() -> int:
    """Return a port of 127.0.0.1 below those that the kernel gives to outgoing connections, so that it stays free."""
    while True:
        port = random.SystemRandom().randint(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
