"""How are orders handed to a client, several at a time, and what came back?"""

import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import IO, Any

from tests.clients.environments import CHECKOUT

# What the longest call may take: six tries with five seconds between them, on a busy machine.
_CALL_SECONDS_MAX = 120


@dataclass(frozen=True)
class Call:
    """One call that a person made: an order, with a key, and the client's own timeout where none is said."""

    base_url: str
    key: str = field(repr=False)
    order: dict[str, Any]
    timeout_seconds: float | None = None


@dataclass(frozen=True)
class Failure:
    """What a client made of an error: its own name for it, and what a person reads."""

    name: str
    status: int | None
    message: str


@dataclass(frozen=True)
class Outcome:
    """What came of a call: pictures, each a `url` or a `b64_json`; or a failure."""

    pictures: tuple[dict[str, str], ...] = ()
    failure: Failure | None = None


class Drives:
    """A client at work in a few processes of its own, each with one call at a time."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], count: int) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._all = [
            subprocess.Popen(
                command,
                cwd=CHECKOUT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
            )
            for _ in range(count)
        ]
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        for process in self._all:
            self._idle.put(process)
        self._callers = ThreadPoolExecutor(count)

    def make(self, calls: Sequence[Call]) -> list[Outcome]:
        """Make all calls, as many at a time as there are processes, and return what came of each, in order."""
        return [_outcome(said) for said in self._callers.map(self.ask, map(vars, calls))]

    def close(self) -> None:
        """End the processes."""
        self._callers.shutdown()
        for process in self._all:
            process.communicate()
        self._errors.close()

    def ask(self, line: dict[str, Any]) -> dict[str, Any]:
        """Hand one line to a process that has nothing to do, and return all that it says."""
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Timer(_CALL_SECONDS_MAX, process.kill)
        late.start()
        try:
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            late.cancel()
            self._idle.put(process)
        assert answer, f"the drive ended: {self._said()}"
        said: dict[str, Any] = json.loads(answer)
        return said

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-2_000:]


def _outcome(said: dict[str, Any]) -> Outcome:
    if "error" in said:
        return Outcome(failure=Failure(**said["error"]))
    return Outcome(tuple(said["pictures"]))
