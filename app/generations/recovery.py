"""Who finishes what a crash, a freeze or an outage left standing?

The generations table is the queue and every process runs this; there is no broker and no leader. A row whose lease has
run out is claimed by whoever comes first, and driven on by the same driver that the request would have used.
"""

import asyncio
import random
from dataclasses import dataclass

import structlog

from app import telemetry
from app.database.pool import Database
from app.errors import AppError
from app.generations import images, records, risk, spool
from app.generations.driver import Driver
from app.generations.stores import Stores
from app.generations.usage import all_unknown
from app.storage.base import StorageError

log = structlog.get_logger(__name__)

# The system's own chance: the module's shared generator is somebody's seed in a test beside us.
_CHANCE = random.SystemRandom()

_BATCH_MAX = 8


@dataclass(frozen=True)
class Recovered:
    """What one round did: generations claimed, those of them that ended, deleted images erased, spooled ones moved."""

    claimed: int
    ended: int
    erased: int
    unspooled: int = 0

    @property
    def full(self) -> bool:
        """Whether there may be more to do at once."""
        return self.claimed == _BATCH_MAX or self.unspooled == _BATCH_MAX


async def recover_once(database: Database, driver: Driver, stores: Stores, *, lease_seconds: float) -> Recovered:
    """Claim one batch of generations whose lease has run out, drive each on, erase what deletion left over, and carry
    a batch of images from the spool to a storage that answers again.

    A generation that can't be driven is logged and left to the next round. Raises DatabaseUnavailable.
    """
    async with database.statement() as connection:
        claimed = await records.claim(connection, lease_seconds=lease_seconds, batch_max=_BATCH_MAX)
    driven = await asyncio.gather(*(driver.drive(generation) for generation in claimed), return_exceptions=True)
    ended = 0
    for generation, outcome in zip(claimed, driven, strict=True):
        if isinstance(outcome, BaseException):
            log.error("recovery_failed", generation_id=str(generation.id), exc_info=outcome)
            continue
        telemetry.recovered_total.labels(outcome.state).inc()
        ended += outcome.ended
    if stores.failing:
        await stores.answers()
    erased = await images.erase_left_over(database, stores, batch_max=_BATCH_MAX)
    unspooled = await images.empty_spool(database, stores, batch_max=_BATCH_MAX)
    await _tell(database, stores)
    await _show_unknown(database)
    if claimed or erased or unspooled:
        log.info("recovered", claimed=len(claimed), ended=ended, erased=erased, unspooled=unspooled)
    return Recovered(len(claimed), ended, erased, unspooled)


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


async def recover_for_ever(
    database: Database,
    driver: Driver,
    stores: Stores,
    *,
    lease_seconds: float,
    interval_seconds: float,
) -> None:
    """Recover at once and then about every `interval_seconds`, until cancelled. A full batch is followed at once."""
    while True:
        recovered = Recovered(0, 0, 0)
        try:
            recovered = await recover_once(database, driver, stores, lease_seconds=lease_seconds)
        except AppError as error:
            log.warning("recovery_postponed", code=error.code)
        except Exception:
            # It ran unguarded once: the first error nobody foresaw ended recovery for good, without a word.
            log.exception("recovery_round_failed")
        if not recovered.full:
            # Jitter keeps replicas that were started together from asking together.
            await asyncio.sleep(interval_seconds * _CHANCE.uniform(0.5, 1.5))
