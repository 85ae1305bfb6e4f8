"""Does every promise hold while replicas and Postgres are killed, at random and where it hurts most?"""

import asyncio
import random
import signal
import time

from tests.faults.fleet import Fleet, Trap, chosen
from tests.faults.frame import Figures, Piece
from tests.faults.play import Play, play_under_load
from tests.faults.zygote import POINTS

_KILLS_PER_SECOND = 5
# On a machine with other work a kill waits until there was something to kill, but not for ever.
_ANSWERS_PER_KILL = 3
_PATIENCE_SECONDS = 3
_KILLS_PER_CRASH = 5
_ARMED_MAX = 2
_POINT_SECONDS_MAX = 120


def kills(piece: Piece) -> Figures:
    """Kill -9 a random replica, `times` times."""
    return asyncio.run(play_under_load(piece, _kill_times))


def kills_s3(piece: Piece) -> Figures:
    """The same with a real S3 server as storage."""
    return asyncio.run(play_under_load(piece, _kill_times, in_s3=True))


def points(piece: Piece) -> Figures:
    """Kill -9 replicas the moment they pass a named point, `times` times at each. Two replicas are left alone."""
    chance = random.Random(piece.seed)

    def trap(fleet: Fleet) -> Trap | None:
        wanting = [point for point in POINTS if fleet.trapped[point] < piece.times]
        if not wanting or fleet.armed >= _ARMED_MAX:
            return None
        return Trap(chance.choice(wanting), chance.randrange(3))

    async def until_all_were_hit(play: Play) -> None:
        trapped = play.fleet.trapped
        while any(trapped[point] < piece.times for point in POINTS):
            hit = trapped.total()
            await play.fleet.until(lambda hit=hit: trapped.total() > hit, seconds=_POINT_SECONDS_MAX)  # type: ignore[misc]
        play.did["kills"] = trapped.total()

    return asyncio.run(play_under_load(piece, until_all_were_hit, trap=trap))


def crashes(piece: Piece) -> Figures:
    """Crash Postgres `times` times and start it again on its port, with kills of replicas in between."""
    return asyncio.run(play_under_load(piece, _crash_times))


async def _kill_times(play: Play) -> None:
    for _ in range(play.piece.times):
        await _kill_one(play)


async def _crash_times(play: Play) -> None:
    for _ in range(play.piece.times):
        for _ in range(_KILLS_PER_CRASH):
            await _kill_one(play)
        await asyncio.to_thread(play.stage.postgres.crash)
        play.did["crashes of Postgres"] += 1
        await asyncio.sleep(play.chance.uniform(0, 1.5))
        # One that dies, and one that starts, while the database is away.
        if (replica := chosen(play.chance, play.fleet.serving)) is not None:
            play.fleet.send(replica, signal.SIGKILL)
            play.did["kills"] += 1
        # From this thread: Postgres ends with the thread that started it.
        play.stage.postgres.start()
        while not await asyncio.to_thread(play.stage.postgres.answers):
            await asyncio.sleep(0.05)


async def _kill_one(play: Play) -> None:
    fleet, load = play.fleet, play.load
    enough = load.answered + play.chance.randrange(2 * _ANSWERS_PER_KILL)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    await asyncio.sleep(play.chance.expovariate(_KILLS_PER_SECOND))
    while load.answered < enough and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    # Two are left at any time.
    await fleet.until(lambda: len(fleet.serving) > 2)
    replica = play.chance.choice(fleet.serving)
    fleet.send(replica, signal.SIGKILL)
    await fleet.until(lambda: replica not in fleet.serving)
    play.did["kills"] += 1
