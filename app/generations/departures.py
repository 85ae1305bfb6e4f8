"""Who has left without an answer, and is it written down yet, so that their repeat gets it?"""

import asyncio
import itertools
import math
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import structlog

from app.database.pool import Database
from app.errors import DatabaseUnavailable
from app.generations import repeats
from app.generations.repeats import Mark, Placed

log = structlog.get_logger(__name__)

_AGAIN_SECONDS = 0.5
# How much later than a repeat the end of the connection may be seen that it was sent for.
_SEEN_SECONDS = 0.05
# How long an order, or the end of this process, waits until it is written down who left: for a statement, not for an
# outage.
_HEARD_SECONDS_MAX = 2


class Departures:
    """The clients of this process that have left, until that is written down. To be closed."""

    def __init__(self, database: Database, *, join_within_seconds: float) -> None:
        self._database = database
        self._join_within_seconds = join_within_seconds
        # What writes a departure down, and the number of the order that was left.
        self._leaving: dict[Mark, dict[asyncio.Task[None], float]] = {}
        # By what places an order, in the order in which they came.
        self._numbers: WeakKeyDictionary[asyncio.Future[Placed], int] = WeakKeyDictionary()
        self._counted = itertools.count(1)
        self._closing = False

    def note(self, placed: Placed) -> None:
        """Write down, in the background, that the client of this order has no answer."""
        self._note(placed, 0)

    def note_placing(self, mark: Mark, placing: asyncio.Future[Placed]) -> None:
        """As `note`, of an order that may not be placed yet. Nothing, where it is refused."""
        # One that has not begun is younger than any that waits.
        number = self._numbers.get(placing, math.inf)
        if not placing.done():
            self._begin(mark, number, self._write_once_placed(placing))
        elif not placing.cancelled() and placing.exception() is None:
            self._note(placing.result(), number)

    async def heard(self, mark: Mark, *, equal_runs: bool) -> None:
        """Wait until it is written down who left an equal order: this one may be theirs, sent again in that instant.

        As Chromium does (153) when a connection that it used before breaks. It may be read before the end of that one
        is seen, so where an `equal_runs` that is given a moment. Another process can't know of it yet. To be called by
        the task that places the order, whose own departure is not waited for, nor that of an order that came later.
        """
        placing = asyncio.current_task()
        assert placing is not None
        number = self._numbers[placing] = next(self._counted)
        if equal_runs:
            await asyncio.sleep(_SEEN_SECONDS)
        if leaving := {task for task, of in self._leaving.get(mark, {}).items() if of < number}:
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

    def _note(self, placed: Placed, number: float) -> None:
        if self._may_be_joined(placed):
            self._begin(placed.mark, number, self._write(placed))

    def _begin(self, mark: Mark, number: float, writing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(writing)
        self._leaving.setdefault(mark, {})[task] = number
        task.add_done_callback(partial(self._forget, mark))

    def _forget(self, mark: Mark, task: asyncio.Task[None]) -> None:
        del self._leaving[mark][task]
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
                async with self._database.direct() as connection:
                    await repeats.leave(connection, placed.generation_id, repeats=placed.repeats)
                return
            except DatabaseUnavailable:
                if self._closing or time.monotonic() > give_up_at:
                    log.warning("departure_not_noted", generation_id=str(placed.generation_id))
                    return
            await asyncio.sleep(_AGAIN_SECONDS)
