"""How does a piece go: the stage, the load, the fault, then quiet, and a look at every promise?"""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tests.faults.disturbances import disturb, wrong_books
from tests.faults.fleet import Fleet, Trap
from tests.faults.frame import Figures, Piece
from tests.faults.invariants import broken_promises, gather
from tests.faults.load import Load
from tests.faults.stage import Stage, opened_stage
from tests.faults.told import warm_up

CLIENTS = 14
REPLICAS = 4
# Leases, the steps that recovery takes after them, and what a busy machine adds.
_QUIET_SECONDS_MAX = 60
_DRAIN_SECONDS_MAX = 40
# Nothing is away by then.
_URL_SECONDS_MAX = 5


@dataclass(frozen=True)
class Play:
    """A stage with replicas on it and clients in front. `did` is what the fault itself counts."""

    piece: Piece
    stage: Stage
    fleet: Fleet
    load: Load
    chance: random.Random
    did: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def opened_fleet(
    piece: Piece,
    *,
    in_s3: bool = False,
    more: Mapping[str, Any] = MappingProxyType({}),
    trap: Callable[[Fleet], Trap | None] = lambda _: None,
    size: int = REPLICAS,
) -> AsyncIterator[tuple[Stage, Fleet]]:
    """A stage, and replicas on it that serve. `more` are settings of theirs."""
    async with opened_stage(piece.folder, in_s3=in_s3, more=more) as stage:
        first = warm_up(stage.keys["free"][0])
        fleet = Fleet(
            settings=stage.settings,
            database_url=stage.database_url,
            log=piece.folder / "replicas.log",
            size=size,
            env=stage.env,
            warm_up={"prompt": first.prompt, "headers": first.headers},
            trap=trap,
        )
        async with fleet:
            yield stage, fleet


async def play_under_load(
    piece: Piece,
    faults: Callable[[Play], Awaitable[None]],
    *,
    in_s3: bool = False,
    trap: Callable[[Fleet], Trap | None] = lambda _: None,
    size: int = REPLICAS,
) -> Figures:
    """Play the faults under the whole load with all that disturbs it, and judge what is there afterwards."""
    async with opened_fleet(piece, in_s3=in_s3, trap=trap, size=size) as (stage, fleet):
        load = Load(stage, fleet, seed=piece.seed, clients=CLIENTS)
        play = Play(piece, stage, fleet, load, random.Random(piece.seed))
        started = time.monotonic()
        async with load, _disturbed(play):
            await faults(play)
        return await judged(play, time.monotonic() - started)


@asynccontextmanager
async def _disturbed(play: Play) -> AsyncIterator[None]:
    disturbing = asyncio.create_task(disturb(play.stage, play.fleet, play.load, seed=play.piece.seed))
    try:
        yield
    finally:
        disturbing.cancel()
        with suppress(asyncio.CancelledError):
            await disturbing


async def judged(play: Play, seconds_of_faults: float) -> Figures:
    """Let leases run out and recovery work, and return what was done and what is not as promised then."""
    stage, load, fleet = play.stage, play.load, play.fleet
    began = time.monotonic()
    # What a client saw broken already does not mend by waiting, and may never be quiet.
    while not load.broken and time.monotonic() < began + _QUIET_SECONDS_MAX and await asyncio.to_thread(_busy, stage):
        await asyncio.sleep(0.1)
    quiet_seconds = time.monotonic() - began
    shown = {(told.url, asked.tag): asked for asked in load.asked for told in asked.told if told.url}
    for (url, _), asked in shown.items():
        if not load.broken:
            await load.check_url(asked, url, seconds=_URL_SECONDS_MAX)
    await load.close()
    # What a replica still has in hand, a move that waited for the database say, it finishes now.
    with suppress(TimeoutError):
        await fleet.leave_none(seconds=_DRAIN_SECONDS_MAX)
    broken = [*load.broken, *await wrong_books(stage)]
    broken += broken_promises(await asyncio.to_thread(gather, stage, load.asked))
    broken += [f"{len(fleet.pids)} replicas did not drain"] if fleet.pids else []
    broken += [
        f"a replica ended by itself with {status}" for status in fleet.ended if status not in (0, -signal.SIGKILL)
    ]
    states = Counter(f"ended {row['state']}" for row in stage.rows("SELECT state FROM generations"))
    did = {
        **play.did,
        **{f"killed at {point}": count for point, count in sorted(fleet.trapped.items())},
        "orders": len(load.asked),
        "orders sent": load.sent,
        "generations": states.total(),
        **dict(sorted(states.items())),
        **dict(sorted(load.did.items())),
    }
    return Figures(did, {"seconds of faults": seconds_of_faults, "seconds to quiet": quiet_seconds}, tuple(broken))


def _busy(stage: Stage) -> bool:
    return bool(
        stage.rows(
            "SELECT id FROM generations WHERE state IN ('pending', 'generated')"
            " UNION ALL SELECT generation_id FROM images WHERE deleted_at IS NOT NULL AND erased_at IS NULL"
            # On its way home, or about to be swept away. What may be the only copy of an unknown one stays.
            " UNION ALL SELECT generation_id FROM images WHERE storage = 'spool' AND deleted_at IS NULL"
            " UNION ALL SELECT g.id FROM spool s JOIN generations g ON starts_with(s.storage_key, g.storage_stem)"
            " WHERE g.state <> 'unknown'"
        )
    )
