"""Does every promise hold when a process stands still past its leases, and then goes on as if nothing was?"""

import asyncio
import random
import signal

from tests.faults.fleet import Fleet, Replica, Trap
from tests.faults.frame import Figures, Piece
from tests.faults.play import Play, play_under_load
from tests.faults.stage import GENERATED_LEASE_SECONDS, PENDING_LEASE_SECONDS
from tests.faults.zygote import POINTS

_REPLICAS = 5
# At a named point, and wherever they happen to be.
_ARMED_MAX = 2
_AT_RANDOM_MAX = 1
_LEASE_SECONDS = max(PENDING_LEASE_SECONDS, GENERATED_LEASE_SECONDS)
_FROZEN_SECONDS = _LEASE_SECONDS + 0.3, _LEASE_SECONDS + 2.5
# To finish, with whatever it held, what others took over meanwhile.
_AWAKE_SECONDS = 1.5


def freezes(piece: Piece) -> Figures:
    """Stop `times` replicas past their leases, most of them at a named point; wake each, then replace it."""
    chance = random.Random(piece.seed)

    def trap(fleet: Fleet) -> Trap | None:
        if fleet.armed >= _ARMED_MAX:
            return None
        return Trap(chance.choice(list(POINTS)), chance.randrange(4), signal.SIGSTOP)

    return asyncio.run(play_under_load(piece, _freeze_times, trap=trap, size=_REPLICAS))


async def _freeze_times(play: Play) -> None:
    frozen: dict[Replica, asyncio.Task[None]] = {}
    while len(frozen) < play.piece.times:
        fresh = [replica for replica in play.fleet.stopped if replica not in frozen]
        for replica in fresh:
            frozen[replica] = asyncio.create_task(_wake_and_replace(play, replica))
        at_random = [
            each for each in play.fleet.serving if each not in frozen and each.pid not in play.fleet.armed_pids
        ]
        standing = play.fleet.stopped - play.fleet.sprung
        if at_random and len(standing) < _AT_RANDOM_MAX:
            play.fleet.send(play.chance.choice(at_random), signal.SIGSTOP)
        await asyncio.sleep(0.1)
    await asyncio.gather(*frozen.values())
    play.fleet.disarm()
    play.did["freezes"] = len(frozen)


async def _wake_and_replace(play: Play, replica: Replica) -> None:
    await asyncio.sleep(play.chance.uniform(*_FROZEN_SECONDS))
    play.fleet.send(replica, signal.SIGCONT)
    await asyncio.sleep(_AWAKE_SECONDS)
    play.fleet.send(replica, signal.SIGKILL)
