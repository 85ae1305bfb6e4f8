"""How do tests run `imagekeep` as an operator does: real processes, real signals, none of our own environment?"""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx

from app.cli import main
from tests.sandbox_server import RunningSandbox
from tests.service import TT_API_KEY

T = TypeVar("T")

# Far more than a start takes on a busy machine of two cores. One whose host gave it next to nothing for three minutes
# took more than the 60 s that stood here.
START_SECONDS_MAX = 180
STOP_SECONDS_MAX = 60


class Installation:
    """A folder that `imagekeep serve` is started in, again and again, and the process that runs there now, if one does.

    The environment is PATH, PORT, and what the test gives; unless it says else, there is no notice before a stop, for
    nobody sends callers here, and no breaker, for tests order faults one after another.
    Each start leads a session of its own, as in a terminal.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], *, workers: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        quiet = {"DRAIN_NOTICE_SECONDS": "0", "BREAKER_SECONDS": "0"}
        self.env = {"PATH": os.environ["PATH"], "PORT": str(self.port), **quiet, **env}
        if "PYTHONPATH" in os.environ:
            # A copy of the code is being tried: without it the installed one would run.
            self.env["PYTHONPATH"] = os.environ["PYTHONPATH"]
        self.workers = workers
        self.key = ""
        self.banner: dict[str, Any] = {}
        self.starts = 0
        self.stderr = self.folder / "stderr.txt"
        self._process: subprocess.Popen[bytes] | None = None
        # Without verification no certificates are loaded, which would take longer than all the rest.
        self.client = httpx.Client(base_url=self.url, verify=False, trust_env=False, timeout=60)

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The process that serves, or the last one that did."""
        assert self._process is not None, "never started"
        return self._process

    @property
    def stdout(self) -> Path:
        """What the latest start wrote to its standard output."""
        return self.folder / f"stdout-{self.starts}.txt"

    @property
    def data(self) -> Path:
        """The data folder: DATA_DIR, or `data` where the process runs."""
        return self.folder / self.env.get("DATA_DIR", "data")

    def launch(self, *arguments: str) -> None:
        """Run `imagekeep serve`, and do not wait for it."""
        self.starts += 1
        with self.stdout.open("wb") as stdout, self.stderr.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve", "--workers", str(self.workers), *arguments],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def ensure(self, *, workers: int) -> None:
        """Have it run with so many workers, whatever it did before."""
        if self.process.poll() is not None or self.workers != workers:
            self.stop()
            self.workers = workers
            self.start()

    def start(self) -> None:
        """Launch it and return once its JSON banner is there, and with it the first user's key if it is new."""
        self.launch("--json")
        self.take_banner()

    def take_banner(self) -> None:
        """Return once the JSON banner of what was launched is there; remember its key."""
        self.banner = eventually(self._read_banner, seconds=START_SECONDS_MAX)
        self.key = self.banner["key"] or self.key
        self.client.headers["authorization"] = f"Bearer {self.key}"

    def _read_banner(self) -> dict[str, Any] | None:
        said = self.stdout.read_text()
        if said.endswith("\n"):
            banner: dict[str, Any] = json.loads(said)
            return banner
        assert self.process.poll() is None, f"it ended with {self.process.poll()}: {self.stderr.read_text()[-2000:]}"
        return None

    def order(self, prompt: str, *, headers: Mapping[str, str] | None = None, **body: Any) -> httpx.Response:
        """POST /images as the first user."""
        return self.client.post("/images", json={"prompt": prompt, **body}, headers=headers)

    def begin(self, prompt: str, *, headers: Mapping[str, str] | None = None, **body: Any) -> str:
        """Order without waiting for the image, and return the generation's id."""
        answer = self.order(prompt, headers={"prefer": "respond-async", **(headers or {})}, **body)
        # It may have ended by now.
        assert answer.status_code == 202 or "state" in answer.json(), answer.text
        generation_id: str = answer.json()["id"]
        return generation_id

    def generation(self, generation_id: str) -> dict[str, Any]:
        """A generation as its owner sees it."""
        answer: dict[str, Any] = self.client.get(f"/images/{generation_id}").raise_for_status().json()
        return answer

    def reaches(self, generation_id: str, state: str, *, seconds: float = 20) -> dict[str, Any]:
        """The generation once it stands there; fails when it doesn't get there in time."""

        def there() -> dict[str, Any] | None:
            found = self.generation(generation_id)
            return found if found["state"] == state else None

        return eventually(there, seconds=seconds)

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run another `imagekeep` command here, with the same settings."""
        said = [self.folder / f"{uuid4().hex}.{stream}" for stream in ("stdout", "stderr")]
        command = _commands().Process(target=run_command, args=(arguments, self.folder, self.env, *said))
        command.start()
        command.join(START_SECONDS_MAX)
        if command.exitcode is None:
            command.kill()
            raise AssertionError(f"{arguments} did not end: {said[1].read_text()[-2000:]}")
        return subprocess.CompletedProcess(arguments, command.exitcode, *(stream.read_text() for stream in said))

    def ask(self, *arguments: str) -> Any:
        """The JSON document that a command prints; the command must succeed and say nothing else."""
        done = self.run(*arguments, "--json")
        assert (done.returncode, done.stderr) == (0, ""), f"{arguments}: {done.returncode} {done.stderr}"
        return json.loads(done.stdout)

    def kill9(self) -> None:
        """Kill the process that was started with -9, and nothing beside it."""
        self.process.kill()
        self.process.wait(STOP_SECONDS_MAX)

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal sends SIGINT to every process of the foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def terminate(self) -> None:
        """Send SIGTERM to the process that was started, as `docker stop` and systemd do."""
        self.process.terminate()

    def ended(self, *, seconds: float = STOP_SECONDS_MAX) -> int:
        """Wait for the process's end and return its exit status."""
        return self.process.wait(seconds)

    def stop(self) -> None:
        """End it in good order, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self.terminate()
            assert self.ended() == 0

    def close(self) -> None:
        """Leave nothing behind, whatever the test did: every process that works in this folder is killed."""
        self.client.close()
        if self._process is not None:
            # A test may have frozen it; SIGKILL works on those too.
            self._process.kill()
            self._process.wait(STOP_SECONDS_MAX)
        for pid in processes_in(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run_command(arguments: Sequence[str], folder: Path, env: Mapping[str, str], stdout: Path, stderr: Path) -> None:
    """Be the `imagekeep` command, in a process that is to end afterwards."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for stream, path in ((0, Path(os.devnull)), (1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), stream)
    sys.argv = ["imagekeep", *arguments]
    main()


def _commands() -> ForkServerContext:
    """What starts processes that have imported the application already, which takes longer than any command."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def running_installation(
    folder: Path, *, env: Mapping[str, str] | None = None, workers: int = 1
) -> Iterator[Installation]:
    """A started installation in `folder`, with these variables and no others; an empty environment if none are given.

    Whatever the test leaves running is killed at the end.
    """
    installation = Installation(folder, env or {}, workers=workers)
    try:
        installation.start()
        yield installation
    finally:
        installation.close()


def beside(database_url: str, sandbox: RunningSandbox, **more: str) -> dict[str, str]:
    """The environment of an installation on a database and an upstream of the test's own."""
    return {
        "DATABASE_URL": database_url,
        "TT_API_KEY": TT_API_KEY,
        "TT_API_BASE_URL": sandbox.url,
        "ALLOW_PRIVATE_IMAGE_HOSTS": "true",
        "RECOVERY_INTERVAL_SECONDS": "0.3",
        **more,
    }


def eventually(look: Callable[[], T | None], *, seconds: float = 10) -> T:
    """Look until there is something to see, and return it; an AssertionError once `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.02)
    return seen


def processes_in(folder: Path) -> dict[int, str]:
    """Every process that works in this folder or below it, by id, with its command line; not those that are dead."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and (entry / "cwd").readlink().is_relative_to(folder):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def nothing_runs(installation: Installation) -> None:
    """No Postgres, no sandbox, no worker: at once, but for the moment in which a process sees that it is alone."""
    eventually(lambda: not processes_in(installation.folder), seconds=20)


def refuses(port: int) -> bool:
    """Whether nobody listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    """A port of 127.0.0.1 that stays free until it is used, also between a stop and the next start.

    From below the range that the kernel gives to outgoing connections, one of which could else sit on it just then.
    """
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
