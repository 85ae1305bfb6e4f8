"""Who finishes what a crash, a freeze or an outage left standing?

The generations table is the queue and every process runs this; there is no broker and no leader. A row whose lease has
run out is claimed by whoever comes first, and driven on by the same driver that the request would have used. What is
slow holds up only itself: a generation whose source is silent has one place of several, and the storage has none.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app import telemetry
from app.database.pool import Database
from app.errors import AppError
from app.generations import images, records, risk, spool
from app.generations.driver import Driver
from app.generations.records import Generation
from app.generations.stores import Stores
from app.generations.telling import tell_unforeseen
from app.generations.usage import all_unknown
from app.storage.base import StorageError

log = structlog.get_logger(__name__)

# The system's own chance: the module's shared generator is somebody's seed in a test beside us.
_CHANCE = random.SystemRandom()

# Generations claimed, images erased, or carried home, in one go.
_BATCH_MAX = 8


@dataclass(frozen=True)
class Recovered:
    """What one round did: generations claimed, those of them that ended, deleted images erased, spooled ones moved."""

    claimed: int
    ended: int
    erased: int
    unspooled: int = 0


async def recover_once(database: Database, driver: Driver, stores: Stores, *, lease_seconds: float) -> Recovered:
    """Claim one batch of generations whose lease has run out, drive each on, carry a batch of images from the spool
    to a storage that answers again, and erase what deletion left over: one after the other, and done when it returns.

    A generation that can't be driven is logged and left to the next round. Raises DatabaseUnavailable.
    """
    claimed = await _claim(database, lease_seconds=lease_seconds, places=_BATCH_MAX)
    ended = sum(await asyncio.gather(*(_drive_on(driver, generation) for generation in claimed)))
    # In this order: emptying the spool asks home how it is, and while that fails nothing is erased there.
    unspooled = await _empty_spool(database, stores)
    erased = await _erase(database, stores)
    await _show(database, stores)
    return Recovered(len(claimed), ended, erased, unspooled)


async def recover_for_ever(
    database: Database,
    driver: Driver,
    stores: Stores,
    *,
    places: int,
    lease_seconds: float,
    interval_seconds: float,
) -> None:
    """Recover at once and then about every `interval_seconds`, until cancelled; then nothing of it runs any more.

    Each part of it goes at its own pace, and none waits for another. Up to `places` generations are driven at once.
    """
    driving: dict[UUID, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:

        async def drive() -> bool:
            return await _fill_places(database, driver, group, driving, places=places, lease_seconds=lease_seconds)

        async def erase() -> bool:
            return await _erase(database, stores) == _BATCH_MAX

        async def empty_spool() -> bool:
            return await _empty_spool(database, stores) == _BATCH_MAX

        async def show() -> bool:
            await _show(database, stores)
            return False

        for part in (drive, erase, empty_spool, show):
            group.create_task(_again_and_again(part, interval_seconds))


async def _again_and_again(part: Callable[[], Awaitable[bool]], interval_seconds: float) -> None:
    """Do a part of recovery about every `interval_seconds`, and at once again when it says that there may be more."""
    while True:
        more = False
        try:
            more = await part()
        except AppError as error:
            log.warning("recovery_postponed", code=error.code)
        except Exception:
            # It ran unguarded once: the first error nobody foresaw ended recovery for good, without a word.
            log.exception("recovery_round_failed")
        if not more:
            # Jitter keeps replicas that were started together from asking together.
            await asyncio.sleep(interval_seconds * _CHANCE.uniform(0.5, 1.5))


async def _fill_places(
    database: Database,
    driver: Driver,
    group: asyncio.TaskGroup,
    driving: dict[UUID, asyncio.Task[None]],
    *,
    places: int,
    lease_seconds: float,
) -> bool:
    """Wait for a free place, claim as many generations as there are, and begin to drive them in tasks of `group`.

    Tells whether there may be more to claim.
    """
    if len(driving) >= places:
        await asyncio.wait(driving.values(), return_when=asyncio.FIRST_COMPLETED)
    free = places - len(driving)
    claimed = await _claim(database, lease_seconds=lease_seconds, places=free)
    for generation in claimed:
        # One that outlasts its lease is claimed while it is driven here. It has a new lease then, and needs no more: a
        # storage that hangs would else take place after place with the same few.
        if generation.id not in driving:
            driving[generation.id] = group.create_task(_drive_in_place(driver, generation, driving))
    return len(claimed) == free


async def _drive_in_place(driver: Driver, generation: Generation, driving: dict[UUID, asyncio.Task[None]]) -> None:
    try:
        await _drive_on(driver, generation)
    finally:
        del driving[generation.id]


async def _claim(database: Database, *, lease_seconds: float, places: int) -> Sequence[Generation]:
    try:
        # In a transaction: of a batch that can't be read, none is taken. By itself, the statement would have put off
        # all of its leases, round after round.
        async with database.transaction() as tx:
            claimed = await records.claim(tx, lease_seconds=lease_seconds, batch_max=places)
    except SQLAlchemyError as error:
        tell_unforeseen("batch_not_claimed", error)
        claimed = await _claim_one_by_one(database, lease_seconds=lease_seconds, places=places)
    if claimed:
        log.info("recovered", claimed=len(claimed))
    return claimed


async def _claim_one_by_one(database: Database, *, lease_seconds: float, places: int) -> Sequence[Generation]:
    """Claim past rows that can't be updated, or read: one would else fail every batch, and keep all others from it."""
    claimed: list[Generation] = []
    skipped = 0
    while len(claimed) < places and skipped < _BATCH_MAX:
        try:
            async with database.transaction() as tx:
                found = await records.claim(tx, lease_seconds=lease_seconds, batch_max=1, skipped=skipped)
        except SQLAlchemyError:
            skipped += 1
            continue
        if not found:
            break
        claimed += found
    return claimed


async def _drive_on(driver: Driver, generation: Generation) -> bool:
    """Drive one on, and tell whether it has ended."""
    try:
        driven = await driver.drive(generation)
    except Exception:
        # Of the others, none is to be cut off for what nobody foresaw of one.
        log.exception("recovery_failed", generation_id=str(generation.id))
        return False
    telemetry.recovered_total.labels(driven.state).inc()
    return driven.ended


async def _erase(database: Database, stores: Stores) -> int:
    erased = await images.erase_left_over(database, stores, batch_max=_BATCH_MAX)
    if erased:
        log.info("recovered", erased=erased)
    return erased


async def _empty_spool(database: Database, stores: Stores) -> int:
    if stores.failing:
        await stores.answers()
    unspooled = await images.empty_spool(database, stores, batch_max=_BATCH_MAX)
    if unspooled:
        log.info("recovered", unspooled=unspooled)
    return unspooled


async def _show(database: Database, stores: Stores) -> None:
    await _tell(database, stores)
    await _show_unknown(database)


async def _tell(database: Database, stores: Stores) -> None:
    """Clear the spool of what nobody needs, and set the figures of what is in it and of what is not kept yet."""
    async with database.statement() as connection:
        await spool.sweep(connection, batch_max=_BATCH_MAX)
        at_risk = await risk.at_risk(connection)
    telemetry.at_risk_generations.set(at_risk.generations)
    telemetry.at_risk_seconds.set(at_risk.seconds)
    try:
        await stores.look()
    except StorageError as error:
        log.warning("spool_not_read", detail=str(error))


async def _show_unknown(database: Database) -> None:
    async with database.statement() as connection:
        unknown = await all_unknown(connection)
    telemetry.unknown_generations.set(unknown.generations)
    telemetry.unknown_held_micros.set(unknown.micros)
    telemetry.unknown_oldest_seconds.set(unknown.oldest_seconds)
