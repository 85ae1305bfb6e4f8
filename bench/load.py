"""How are orders put to something that listens, so many at a time, and what came of them?

Raw sockets and one loop: the load has a core with upstream and Postgres, and should not be what is measured.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import uvloop

from bench.wire import Message, MessageReader

# Enough of an answer to tell why an order failed. A picture in an answer is counted and dropped.
_ANSWER_BYTES_KEPT_MAX = 4_096
_PAUSE_AFTER_FAILURE_SECONDS = 0.05

# Makes the whole request for the order of this number.
MakeRequest = Callable[[int], bytes]


@dataclass(frozen=True)
class Load:
    """What came of one run. `late` is what completed after the last order was sent, and is not in `completed`."""

    # Until the last order was sent, and until the last one completed.
    seconds: float
    seconds_in_all: float
    completed: int
    late: int
    failed: dict[str, int]
    latencies_ms: Sequence[float] = field(repr=False)
    # What this process itself took.
    cpu_seconds: float

    @property
    def orders_per_second(self) -> float:
        """How many completed in a second, from the first that was sent to the last that came.

        Of what completed in time alone, too few would be counted where one order takes as long as the run.
        """
        return (self.completed + self.late) / self.seconds_in_all if self.seconds_in_all else 0.0

    def latency_ms(self, percent: float) -> float:
        """Return the time that so many percent of the completed orders did not exceed; 0 without any."""
        if not self.latencies_ms:
            return 0.0
        ordered = sorted(self.latencies_ms)
        return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass
class _Run:
    """One run as it goes. Shared by its connections."""

    make_request: MakeRequest
    orders_max: float
    ended: asyncio.Event
    going: bool = True
    sent: int = 0
    waiting: int = 0
    last_completed_at: float = 0
    completed: int = 0
    late: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    # What is open, and what is being opened in the place of what was closed.
    clients: set["_Client"] = field(default_factory=set)
    opening: set[asyncio.Task[None]] = field(default_factory=set)

    def may_send(self) -> bool:
        return self.going and self.sent < self.orders_max

    def note(self, failure: str | None, latency_ms: float) -> None:
        self.waiting -= 1
        if failure is not None:
            self.failed[failure] += 1
        else:
            self.completed += self.going
            self.late += not self.going
            self.latencies_ms.append(latency_ms)
            self.last_completed_at = time.perf_counter()
        if self.waiting == 0 and not self.may_send():
            self.ended.set()


class _Client(asyncio.Protocol):
    """One connection: sends an order, waits for its answer, sends the next."""

    def __init__(self, run: _Run, port: int) -> None:
        self._run = run
        self._port = port
        self._reader = MessageReader(kept_bytes_max=_ANSWER_BYTES_KEPT_MAX)
        self._transport: asyncio.Transport | None = None
        self._sent_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one without being called one.
        self._transport = cast(asyncio.Transport, transport)
        self._run.clients.add(self)

    def send(self) -> None:
        """Send the next order, if there is one to be sent and somebody to send it to."""
        run = self._run
        if self._transport is None or self._transport.is_closing() or not run.may_send():
            return
        request = run.make_request(run.sent)
        run.sent += 1
        run.waiting += 1
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        for answer in self._reader.feed(data):
            if answer.head.startswith(b"HTTP/1.1 1"):
                continue
            failure = _failure_of(answer)
            self._note(failure)
            if answer.closes and self._transport is not None:
                self._transport.close()
            elif failure is None:
                self.send()
            else:
                asyncio.get_running_loop().call_later(_PAUSE_AFTER_FAILURE_SECONDS, self.send)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._run.clients.discard(self)
        self._note("broken off")
        if self._run.may_send():
            opening = asyncio.get_running_loop().create_task(_open_another(self._run, self._port))
            self._run.opening.add(opening)
            opening.add_done_callback(self._run.opening.discard)

    def _note(self, failure: str | None) -> None:
        if self._sent_at is not None:
            sent_at, self._sent_at = self._sent_at, None
            self._run.note(failure, (time.perf_counter() - sent_at) * 1000)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _failure_of(answer: Message) -> str | None:
    status = answer.head[9:12].decode("ascii", "replace")
    return None if status == "200" else f"HTTP {status}"


async def _open(run: _Run, port: int) -> _Client | None:
    try:
        _, client = await asyncio.get_running_loop().create_connection(lambda: _Client(run, port), "127.0.0.1", port)
    except OSError as error:
        run.failed[type(error).__name__] += 1
        return None
    return client


async def _open_another(run: _Run, port: int) -> None:
    if (client := await _open(run, port)) is not None:
        client.send()


async def _load(
    port: int,
    make_request: MakeRequest,
    in_flight: int,
    seconds: float,
    orders_max: float,
    patience_seconds: float,
    arrive_over_seconds: float,
) -> Load:
    run = _Run(make_request, orders_max, asyncio.Event())
    opened = await asyncio.gather(*(_open(run, port) for _ in range(in_flight)))
    clients = [client for client in opened if client is not None]
    cpu_before, began = time.process_time(), time.perf_counter()
    for number, client in enumerate(clients):
        # The first ones at once where all are to come at once: a timer would let others in between.
        if wait_seconds := arrive_over_seconds * number / len(clients):
            asyncio.get_running_loop().call_later(wait_seconds, client.send)
        else:
            client.send()
    try:
        async with asyncio.timeout(seconds):
            await run.ended.wait()
    except TimeoutError:
        pass
    took = time.perf_counter() - began
    run.going = False
    try:
        async with asyncio.timeout(patience_seconds if run.waiting else 0.001):
            await run.ended.wait()
    except TimeoutError:
        if run.waiting:
            run.failed["no answer"] += run.waiting
    cpu_seconds = time.process_time() - cpu_before
    in_all = max(0.0, run.last_completed_at - began)
    kept = Load(took, in_all, run.completed, run.late, dict(run.failed), list(run.latencies_ms), cpu_seconds)
    # A loop that is closed while one of them is being opened waits for it for ever.
    if run.opening:
        await asyncio.wait(run.opening)
    for client in list(run.clients):
        client.close()
    return kept


def load(
    port: int,
    make_request: MakeRequest,
    *,
    in_flight: int,
    seconds: float,
    orders_max: float = math.inf,
    patience_seconds: float = 20,
    arrive_over_seconds: float = 0,
) -> Load:
    """Keep `in_flight` orders going for `seconds`, or until `orders_max` were sent, and wait for those under way.

    What has no answer after `patience_seconds` more has failed. The first orders come evenly over
    `arrive_over_seconds`.
    """
    return uvloop.run(_load(port, make_request, in_flight, seconds, orders_max, patience_seconds, arrive_over_seconds))
