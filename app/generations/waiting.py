"""Who waits for generations that another process runs, without a question to the database from each of them?"""

import asyncio
from collections import Counter
from uuid import UUID

from sqlalchemy import text

from app.database.pool import Database
from app.errors import DatabaseUnavailable

_POLL_SECONDS = 0.5

# What is waited for: a generation, and whether being left to recovery is an end too.
_Awaited = tuple[UUID, bool]

_STANDINGS = text("SELECT id, lease_until IS NULL AS ended, attempts FROM generations WHERE id = ANY(:ids)")


class Watch:
    """One look at the database, twice a second, for all who wait here. Nobody waits, nobody looks. To be closed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiters: Counter[_Awaited] = Counter()
        self._signs: dict[_Awaited, asyncio.Future[DatabaseUnavailable | None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def sign(self, generation_id: UUID, *, or_left_to_recovery: bool, seconds: float | None) -> None:
        """Return when there is something new to read of a generation, or after `seconds`; None waits for ever.

        It has ended, or, if asked for, was left to recovery; or it should be looked at all the same. Raises
        DatabaseUnavailable.
        """
        awaited = (generation_id, or_left_to_recovery)
        sign = self._signs.setdefault(awaited, asyncio.get_running_loop().create_future())
        self._waiters[awaited] += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            await asyncio.wait({sign}, timeout=seconds)
        finally:
            self._waiters[awaited] -= 1
            if not self._waiters[awaited]:
                del self._waiters[awaited]
                self._signs.pop(awaited, None)
        if sign.done() and (error := sign.result()) is not None:
            raise DatabaseUnavailable(retry_after_seconds=error.retry_after_seconds) from error

    async def close(self) -> None:
        """Look no more. Who waits still is given a sign.

        A look outlasts the last who waited for it. Left to itself, it would hold a connection of a pool that is closed.
        """
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        # One that was cancelled before it began has given none.
        self._give(list(self._signs))

    async def _look(self) -> None:
        try:
            while self._signs:
                await asyncio.sleep(_POLL_SECONDS)
                await self._look_once()
        finally:
            self._looking = None
            # Whatever went wrong: they look for themselves then, and no one waits for a sign that nobody gives.
            self._give(list(self._signs))

    async def _look_once(self) -> None:
        ids = list({generation_id for generation_id, _ in self._signs})
        try:
            async with self._database.statement() as connection:
                standings = {row.id: row for row in await connection.execute(_STANDINGS, {"ids": ids})}
        except DatabaseUnavailable as error:
            self._give(list(self._signs), error)
            return
        for awaited in list(self._signs):
            generation_id, or_left_to_recovery = awaited
            if generation_id not in ids:
                continue
            standing = standings.get(generation_id)
            if standing is None or standing.ended or (or_left_to_recovery and standing.attempts):
                self._give([awaited])

    def _give(self, awaited: list[_Awaited], error: DatabaseUnavailable | None = None) -> None:
        for each in awaited:
            sign = self._signs.pop(each)
            if not sign.done():
                sign.set_result(error)
