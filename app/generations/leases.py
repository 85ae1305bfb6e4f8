"""How long does a step of a generation have, and how long does it wait before it is tried again?"""

import math
import random
from asyncio import timeout
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.generations.records import Generation
from app.generations.rehost import RehostFailed

# The system's own chance: the module's shared generator is somebody's seed in a test beside us.
_CHANCE = random.SystemRandom()

_PAUSE_SECONDS_FIRST, _PAUSE_SECONDS_MAX = 0.2, 15.0
# A step ends before its lease does, so that its runner and recovery don't work on the same row.
_LEASE_SHARE = 0.8
# What a look for stored pictures may take of its step before fetching begins: a storage that hangs would take it all.
_LOOK_SHARE = 0.2


@dataclass(frozen=True)
class Leases:
    """How long a runner's claim holds, by the database's clock, and how long a source lives that doesn't say."""

    pending_seconds: float
    generated_seconds: float
    source_lifetime_seconds: float
    # A reserved order that was not sent within this long is not sent at all: its lease must outlast the call.
    send_within_seconds: float = 30

    def step_seconds(self, generation: Generation) -> float:
        """Return how long one look or one try may take: what of the lease a step may use."""
        ordered_here = generation.state == "pending" and generation.attempts == 0
        return (self.pending_seconds if ordered_here else self.generated_seconds) * _LEASE_SHARE

    def look_seconds(self, generation: Generation) -> float:
        """Return how long a step may look for what is stored already, beside what else it has to do."""
        return self.step_seconds(generation) * _LOOK_SHARE

    def patience_seconds(self, generation: Generation, *, in_hand: bool) -> float:
        """Return how long to go on trying to keep a generation's pictures; `in_hand` tells of bytes not kept yet.

        A `generated` one is left to others before its lease ends. With what is in no row nobody else can go on:
        recovery would find nothing, and call it `unknown`. A URL is worth it while it may live, bytes as long as this
        process lives; meanwhile the order has its slot, which bounds the memory.
        """
        if generation.state == "generated":
            return self.step_seconds(generation)
        return math.inf if in_hand else self.source_lifetime_seconds


def pauses() -> Iterator[float]:
    """Yield for how many seconds to wait before each next try, without end; jittered, and soon about 15."""
    pause_seconds = _PAUSE_SECONDS_FIRST
    while True:
        yield pause_seconds * _CHANCE.uniform(0.5, 1.5)
        pause_seconds = min(pause_seconds * 2, _PAUSE_SECONDS_MAX)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Give what is awaited inside so long. Raises RehostFailed when it was not enough."""
    try:
        async with timeout(seconds):
            yield
    except TimeoutError as error:
        raise RehostFailed("time", "not done within its lease") from error
