"""How long does a step of a generation have, and how long does it wait before it is tried again?"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

# The system's own chance: the module's shared generator is somebody's seed in a test beside us.
_CHANCE = random.SystemRandom()

_PAUSE_SECONDS_FIRST, _PAUSE_SECONDS_MAX = 0.2, 15.0


@dataclass(frozen=True)
class Leases:
    """How long a runner's claim holds, by the database's clock, and how long a source lives that doesn't say."""

    pending_seconds: float
    generated_seconds: float
    source_lifetime_seconds: float
    # A reserved order that was not sent within this long is not sent at all: its lease must outlast the call.
    send_within_seconds: float = 30


def pauses() -> Iterator[float]:
    """Yield for how many seconds to wait before each next try, without end; jittered, and soon about 15."""
    pause_seconds = _PAUSE_SECONDS_FIRST
    while True:
        yield pause_seconds * _CHANCE.uniform(0.5, 1.5)
        pause_seconds = min(pause_seconds * 2, _PAUSE_SECONDS_MAX)
