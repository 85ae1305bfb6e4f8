"""Which replicas are running, and how are they signalled and replaced?"""

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

CHECKOUT = Path(__file__).parents[2]
_START_SECONDS_MAX = 60


@dataclass(frozen=True)
class Replica:
    """One process that serves, on a port of its own."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Trap:
    """A signal that a replica sends itself when it passes a named point for the `passes` + 1st time."""

    point: str
    passes: int
    number: int = signal.SIGKILL


class Fleet:
    """So many replicas on one database, each replaced the moment it ends. Opened once; closed without mercy.

    `warm_up` is the one order that is taken before there is any, as {prompt, headers}. `trap` is asked for each replica
    that is started. `ended` counts by exit status, negative for a signal; `trapped` those that a trap killed.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, Any],
        database_url: str,
        log: Path,
        size: int,
        env: Mapping[str, str],
        warm_up: Mapping[str, Any],
        trap: Callable[["Fleet"], Trap | None] = lambda _: None,
    ) -> None:
        self.size = size
        self.ended: Counter[int] = Counter()
        self.trapped: Counter[str] = Counter()
        self.stopped: set[Replica] = set()
        self.sprung: set[Replica] = set()
        self.unready: set[Replica] = set()
        self._settings = dict(settings)
        self._database_url = database_url
        self._log = log
        self._env = {"PATH": os.environ["PATH"], **env}
        self._warm_up = dict(warm_up)
        self._trap = trap
        self._traps: dict[int, Trap] = {}
        self._starting: dict[int, Replica] = {}
        self._serving: dict[int, Replica] = {}
        self._leaving: dict[int, Replica] = {}
        self._changed = asyncio.Event()
        self._requests = 0
        self._asked: dict[int, Trap | None] = {}

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._zygote = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.faults.zygote",
                cwd=CHECKOUT,
                env=self._env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self._listening = asyncio.create_task(self._listen())
        self._tell({"warm_up": self._warm_up, "settings": self._settings, "database_url": self._database_url})
        self.fill()
        await self.until(lambda: len(self._serving) == self.size)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.size = 0
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        try:
            await asyncio.wait_for(self._zygote.wait(), 10)
        except TimeoutError:
            self._zygote.kill()
            await self._zygote.wait()
        self._listening.cancel()
        with suppress(asyncio.CancelledError):
            await self._listening

    @property
    def serving(self) -> list[Replica]:
        """Those that take orders, as far as a balancer in front of them would know: the frozen ones too."""
        return list(self._serving.values())

    @property
    def balanced(self) -> list[Replica]:
        """Those that a balancer in front would send orders to, when it goes by what /readyz says."""
        return [each for each in (*self._serving.values(), *self._leaving.values()) if each not in self.unready]

    @property
    def pids(self) -> set[int]:
        """All there are, those that start or leave included."""
        return {*self._starting, *self._serving, *self._leaving}

    @property
    def armed_pids(self) -> set[int]:
        """Those that carry a trap that may still spring."""
        return set(self._traps) - {replica.pid for replica in self.sprung}

    @property
    def armed(self) -> int:
        """How many carry a trap that may still spring, those included that are being started."""
        return len(self.armed_pids) + sum(trap is not None for trap in self._asked.values())

    def send(self, replica: Replica, number: int) -> None:
        """Send a replica a signal. One that has ended already is left alone."""
        if number == signal.SIGTERM and (leaving := self._serving.pop(replica.pid, None)):
            self._leaving[replica.pid] = leaving
        if number == signal.SIGCONT:
            self.stopped.discard(replica)
        self._tell({"pid": replica.pid, "signal": number})

    def disarm(self) -> None:
        """Kill whoever carries a trap, stands still or was caught, and set no more traps."""
        self._trap = lambda _: None
        for replica in self._serving.values():
            if replica.pid in self._traps or replica in self.stopped:
                self.send(replica, signal.SIGKILL)

    def fill(self) -> None:
        """Start what is missing. Those that leave are replaced already."""
        for _ in range(self.size - len(self._starting) - len(self._serving) - len(self._asked)):
            self._requests += 1
            trap = self._trap(self)
            self._asked[self._requests] = trap
            told = None if trap is None else {"point": trap.point, "passes": trap.passes, "number": int(trap.number)}
            self._tell(
                {
                    "request": self._requests,
                    "settings": self._settings,
                    "database_url": self._database_url,
                    "trap": told,
                }
            )

    async def until(self, condition: Callable[[], bool], *, seconds: float = _START_SECONDS_MAX) -> None:
        """Return once it holds; it is looked at whenever a replica changes. Raises TimeoutError.

        Raises RuntimeError when the zygote has ended: no replica starts any more, and its own words stand in the log.
        """
        async with asyncio.timeout(seconds):
            while not condition():
                if self._listening.done():
                    raise RuntimeError(f"the zygote has ended: {self._log.read_text()[-2000:]}")
                self._changed.clear()
                await self._changed.wait()

    async def leave_none(self, *, seconds: float) -> None:
        """Send SIGTERM to all of them and wait for their ends."""
        self.size = 0
        for replica in self.serving:
            self.send(replica, signal.SIGTERM)
        await self.until(lambda: not self.pids, seconds=seconds)

    def _tell(self, what: Mapping[str, Any]) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(json.dumps(what).encode() + b"\n")

    async def _listen(self) -> None:
        assert self._zygote.stdout is not None
        async for line in self._zygote.stdout:
            self._note(json.loads(line))
            self.fill()
            self._changed.set()
        self._changed.set()

    def _note(self, said: Mapping[str, Any]) -> None:
        if "started" in said:
            pid = said["started"]
            self._starting[pid] = Replica(pid, said["port"])
            if (trap := self._asked.pop(said["request"])) is not None:
                self._traps[pid] = trap
        elif "ready" in said:
            if (replica := self._starting.pop(said["ready"], None)) is not None:
                self._serving[replica.pid] = replica
        elif "stopped" in said:
            if (replica := self._serving.get(said["stopped"])) is not None:
                self.stopped.add(replica)
                if replica.pid in self._traps:
                    self.sprung.add(replica)
        elif "ended" in said:
            self._bury(said["ended"], said["status"])

    def _bury(self, pid: int, status: int) -> None:
        gone = [found for room in (self._starting, self._serving, self._leaving) if (found := room.pop(pid, None))]
        for known in (self.stopped, self.sprung, self.unready):
            known.difference_update(gone)
        self.ended[status] += 1
        trap = self._traps.pop(pid, None)
        if trap is not None and status == -trap.number:
            self.trapped[trap.point] += 1


def chosen(chance: random.Random, replicas: list[Replica]) -> Replica | None:
    """One of them, as a balancer would choose; None while there is none."""
    return chance.choice(replicas) if replicas else None
