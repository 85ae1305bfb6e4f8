"""Who has left without an answer, and is it written down yet, so that their repeat gets it?"""

import asyncio
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

import structlog

from app.database.pool import Database
from app.errors import DatabaseUnavailable
from app.generations import repeats
from app.generations.repeats import Mark, Placed

log = structlog.get_logger(__name__)

_AGAIN_SECONDS = 0.5
# How long an order, or the end of this process, waits until it is written down who left: for a statement, not for an
# outage.
_HEARD_SECONDS_MAX = 2


class Departures:
    """The clients of this process that have left, until that is written down. To be closed."""

    def __init__(self, database: Database, *, join_within_seconds: float) -> None:
        self._database = database
        self._join_within_seconds = join_within_seconds
        self._leaving: dict[Mark, set[asyncio.Task[None]]] = {}
        self._closing = False

    def note(self, placed: Placed) -> None:
        """Write down, in the background, that the client of this order has no answer."""
        if self._may_be_joined(placed):
            self._begin(placed.mark, self._write(placed))

    def note_placing(self, mark: Mark, placing: asyncio.Future[Placed]) -> None:
        """As `note`, of an order that may not be placed yet. Nothing, where it is refused."""
        if not placing.done():
            self._begin(mark, self._write_once_placed(placing))
        elif not placing.cancelled() and placing.exception() is None:
            self.note(placing.result())

    async def heard(self, mark: Mark) -> None:
        """Wait until it is written down who left an equal order: this one may be theirs, sent again in that instant.

        As Chromium does (153) when a connection that it used before breaks. Another process can't know of it yet.
        """
        if leaving := self._leaving.get(mark):
            await asyncio.wait(leaving, timeout=_HEARD_SECONDS_MAX)

    async def close(self) -> None:
        """Write down what can be, also of orders that were cut off just now: their clients come again elsewhere."""
        self._closing = True
        give_up_at = time.monotonic() + _HEARD_SECONDS_MAX
        while (leaving := self._tasks()) and (seconds := give_up_at - time.monotonic()) > 0:
            await asyncio.wait(leaving, timeout=seconds)
        if leaving:
            log.warning("departures_not_noted", departures=len(leaving))
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)

    def _tasks(self) -> set[asyncio.Task[None]]:
        return {task for tasks in self._leaving.values() for task in tasks}

    def _may_be_joined(self, placed: Placed) -> bool:
        return placed.repeats is not None and self._join_within_seconds > 0

    def _begin(self, mark: Mark, writing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(writing)
        self._leaving.setdefault(mark, set()).add(task)
        task.add_done_callback(partial(self._forget, mark))

    def _forget(self, mark: Mark, task: asyncio.Task[None]) -> None:
        self._leaving[mark].discard(task)
        if not self._leaving[mark]:
            del self._leaving[mark]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("departure_crashed", exc_info=error)

    async def _write_once_placed(self, placing: asyncio.Future[Placed]) -> None:
        await asyncio.wait({placing})
        if not placing.cancelled() and placing.exception() is None and self._may_be_joined(placing.result()):
            await self._write(placing.result())

    async def _write(self, placed: Placed) -> None:
        assert placed.repeats is not None, "nobody joins what has a key"
        give_up_at = time.monotonic() + self._join_within_seconds
        while True:
            try:
                async with self._database.statement() as connection:
                    await repeats.leave(connection, placed.generation_id, repeats=placed.repeats)
                return
            except DatabaseUnavailable:
                if self._closing or time.monotonic() > give_up_at:
                    log.warning("departure_not_noted", generation_id=str(placed.generation_id))
                    return
            await asyncio.sleep(_AGAIN_SECONDS)
