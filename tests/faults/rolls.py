"""Is any order lost on its way when replicas are replaced one by one, as a deployment does it?"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx

from tests.faults.fleet import Fleet, Replica
from tests.faults.frame import Figures, Piece
from tests.faults.load import Load
from tests.faults.play import Play, judged, opened_fleet
from tests.faults.told import NO_FAULTS

_REPLICAS = 3
_CLIENTS = 12
_PATIENCE_SECONDS = 40.0
_LOOK_SECONDS = 0.1
_DRAIN_SECONDS_MAX = 60
_ORDERS_BETWEEN = 3
# Nothing may run out of time here but by a fault of ours.
_SETTINGS = {
    "upstream_timeout_seconds": 20,
    "pending_lease_seconds": 25,
    "database_timeout_seconds": 15,
    "drain_notice_seconds": 2,
}


def rolls(piece: Piece) -> Figures:
    """Replace `times` replicas by SIGTERM under load: every order is answered with its picture."""
    return asyncio.run(_roll(piece))


async def _roll(piece: Piece) -> Figures:
    async with opened_fleet(piece, more=_SETTINGS, size=_REPLICAS) as (stage, fleet):
        load = Load(
            stage,
            fleet,
            seed=piece.seed,
            clients=_CLIENTS,
            faults=NO_FAULTS,
            patience_seconds=(_PATIENCE_SECONDS, _PATIENCE_SECONDS),
            order_seconds_max=1.5,
            users=("free",),
            first_keys_only=True,
        )
        play = Play(piece, stage, fleet, load, random.Random(piece.seed))
        started = time.monotonic()
        async with load, _balanced(fleet):
            for _ in range(piece.times):
                await _replace_one(play)
        seconds = time.monotonic() - started
        figures = await judged(play, seconds)
    failed = [
        f"{order.tag}: {[told for told in order.told if told.status not in (200, 202)]} {order.unanswered}"
        for order in load.asked[1:]
        if order.unanswered or not order.told or any(told.status not in (200, 202) for told in order.told)
    ]
    return Figures(figures.did, figures.worst, (*figures.broken, *failed))


async def _replace_one(play: Play) -> None:
    fleet, load = play.fleet, play.load
    oldest = fleet.serving[0]
    fleet.size += 1
    fleet.fill()
    await fleet.until(lambda: len(fleet.serving) == fleet.size)
    enough = load.answered + _ORDERS_BETWEEN
    while load.answered < enough:
        await asyncio.sleep(0.02)
    fleet.size -= 1
    fleet.send(oldest, signal.SIGTERM)
    await fleet.until(lambda: oldest not in fleet.balanced and oldest.pid not in fleet.pids, seconds=_DRAIN_SECONDS_MAX)
    play.did["rolls"] += 1


@asynccontextmanager
async def _balanced(fleet: Fleet) -> AsyncIterator[None]:
    """Ask every replica's /readyz over and over, as a balancer does, and send nothing to those that aren't ready."""
    async with httpx.AsyncClient(
        verify=False, trust_env=False, timeout=5, limits=httpx.Limits(max_keepalive_connections=0)
    ) as client:
        looking = asyncio.create_task(_look_for_ever(fleet, client))
        try:
            yield
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking


async def _look_for_ever(fleet: Fleet, client: httpx.AsyncClient) -> None:
    while True:
        await asyncio.gather(*(_look_at(fleet, client, replica) for replica in fleet.balanced))
        await asyncio.sleep(_LOOK_SECONDS)


async def _look_at(fleet: Fleet, client: httpx.AsyncClient, replica: Replica) -> None:
    try:
        ready = (await client.get(f"{replica.url}/readyz")).status_code == 200
    except httpx.TransportError:
        ready = False
    if not ready:
        fleet.unready.add(replica)
