"""Which generations is this process running, and who waits for them?

The work belongs to the process, not to the request: RESERVE, the paid call and the rehost run in a task of the
runner's own, and a handler only waits for it. A client that leaves changes nothing.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from app import telemetry
from app.accounts.keys import Caller, why_not_live
from app.database.pool import Database
from app.errors import (
    AppError,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InternalError,
    NotFound,
    Overloaded,
)
from app.generations import records, repeats
from app.generations.departures import Departures
from app.generations.driver import Driver, Unsent
from app.generations.order import Order, PricedOrder, check
from app.generations.records import Generation, Held, KeyNotLive, OverLimit
from app.generations.refusals import not_sent, over_limit, overloaded
from app.generations.repeats import Attempt, Joined, Known, Mark, Placed
from app.generations.stores import Stores
from app.generations.waiting import Watch
from app.upstream.breaker import Breaker
from app.upstream.catalog import Catalog

log = structlog.get_logger(__name__)

# What a full process looks up at a time for orders that may be repeats: a few for each connection to the database.
_REPEATS_ARRIVING_MAX = 32
_STOPPING = "This process is being stopped. Nothing was charged; try again, and another one answers."


class Runner:
    """The generations this process runs. Opened once; drained at the end."""

    def __init__(
        self,
        *,
        database: Database,
        driver: Driver,
        stores: Stores,
        breaker: Breaker,
        sandbox: bool,
        storage_prefix: str,
        pending_lease_seconds: float,
        in_flight_max: int,
        catalog: Catalog,
        join_within_seconds: float,
        waiters_max: int,
        closed: Callable[[], bool] = lambda: False,
    ) -> None:
        """`closed` tells that this process takes no new order any more, though it still answers."""
        self._database = database
        self._driver = driver
        self._stores = stores
        self._breaker = breaker
        self._sandbox = sandbox
        self._storage_prefix = storage_prefix
        self._pending_lease_seconds = pending_lease_seconds
        self._slots_free = in_flight_max
        self._catalog = catalog
        self._join_within_seconds = join_within_seconds
        self._pictures_in_flight = 0
        self._closed = closed
        self._watch = Watch(database)
        self._waiters_max = waiters_max
        self._waiters = 0
        self._arriving = 0
        # By user too: a waiter must not learn from the time it takes that somebody else's generation exists.
        self._running: dict[tuple[UUID, UUID], asyncio.Task[Any]] = {}
        self._owned: set[asyncio.Task[Any]] = set()
        # How many orders of this process are equal, and not at their end.
        self._marks: Counter[Mark] = Counter()
        self._departures = Departures(database, join_within_seconds=join_within_seconds)
        self._draining = False

    async def place(self, caller: Caller, order: Order, attempt: Attempt) -> Placed:
        """Hold the price and start a generation, or find the one that this order repeats.

        Returns once the price is held. Raises what order.check does, BudgetSpent, RateLimitExceeded, TooManyInFlight,
        ApiKeyInvalid, UserDisabled, IdempotencyKeyReused, Overloaded, StorageUnavailable or DatabaseUnavailable, or,
        while the breaker is open, UpstreamUnreachable, UpstreamAuthFailed or UpstreamBalanceExhausted; then nothing is
        held.
        """
        mark = _mark(caller, order)
        if attempt.idempotency_key is None and self._join_within_seconds > 0:
            await self._departures.heard(mark, equal_runs=self._marks[mark] > 0)
        try:
            priced = check(order, self._catalog)
            if (refusal := await self._refuse_unasked(priced.n)) is not None:
                raise refusal
        except AppError as refused:
            # A repeat needs no slot and no storage, and nothing of the catalog: its work is done, or has them.
            if (earlier := await self._find_earlier(caller, order, attempt)) is not None:
                return earlier
            telemetry.refusals_total.labels(refused.code, "").inc()
            raise
        self._slots_free -= 1
        self._pictures_in_flight += priced.n
        admitted = self._breaker.admit()
        placed: asyncio.Future[Placed] = asyncio.get_running_loop().create_future()
        # The handler may be gone when this is set; asyncio would then complain of an error that nobody fetched.
        placed.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._marks[mark] += 1
        self._own(self._reserve_and_drive(placed, mark, admitted, caller, priced, attempt))
        return await asyncio.shield(placed)

    @contextmanager
    def arriving(self, *, may_be_repeat: bool) -> Iterator[None]:
        """Count an order while it is found out whose it is, or raise Overloaded at once. Asks nobody.

        No more may arrive than slots are free: a slot that came free while a thousand wait outside would let all of
        them in, to queue for the database. Repeats need no slot, so a few arrive beside them.
        """
        most = max(0, self._slots_free) + (_REPEATS_ARRIVING_MAX if may_be_repeat else 0)
        refusal = None if may_be_repeat else self._refuse_full()
        if self._arriving >= most:
            refusal = refusal or overloaded()
        if refusal is not None:
            telemetry.refusals_total.labels(refusal.code, "").inc()
            raise refusal
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    @property
    def crowded(self) -> bool:
        """Whether as many clients wait as may, not counting those whose own order has a slot."""
        return self._waiters >= self._waiters_max

    async def wait(
        self, generation_id: UUID, user_id: UUID, *, seconds: float | None, has_slot: bool = False
    ) -> Generation:
        """Return a generation of this user once it has ended, or as it stands after `seconds`.

        None waits as long as its runner's lease holds, and as long again for somebody who takes it over; one that was
        left to recovery is returned as it stands. Raises NotFound for another user's, as for one that never was. Who
        waits is counted for `crowded`, unless the order `has_slot`, which bounds their number by itself.
        """
        counted = int(seconds != 0 and not has_slot)
        self._waiters += counted
        telemetry.waiters.inc(counted)
        try:
            return await self._wait(generation_id, user_id, seconds=seconds)
        finally:
            self._waiters -= counted
            telemetry.waiters.dec(counted)

    async def _wait(self, generation_id: UUID, user_id: UUID, *, seconds: float | None) -> Generation:
        # To the end is not for ever: where nobody can claim what its runner left, it would be left to nobody.
        deadline = time.monotonic() + (2 * self._pending_lease_seconds if seconds is None else seconds)
        task = self._running.get((user_id, generation_id))
        if task is not None:
            # A runner goes on for longer than its lease while storage and database are away. Nobody waits for that.
            await asyncio.wait({task}, timeout=self._pending_lease_seconds if seconds is None else seconds)
            if task.done():
                return _result(task)
        while True:
            async with self._database.statement() as connection:
                generation = await records.find(connection, generation_id, user_id=user_id)
            if generation is None:
                raise NotFound("There is no such generation.")
            remaining_seconds = deadline - time.monotonic()
            left_to_recovery = seconds is None and generation.attempts > 0
            if generation.ended or left_to_recovery or remaining_seconds <= 0:
                return generation
            await self._watch.sign(generation_id, or_left_to_recovery=seconds is None, seconds=remaining_seconds)

    def leave(self, caller: Caller, order: Order, placing: asyncio.Future[Placed]) -> None:
        """As `leave_unanswered`, of an order that may not be placed yet. Nothing, where it is refused."""
        self._departures.note_placing(_mark(caller, order), placing)

    def leave_unanswered(self, placed: Placed) -> None:
        """Write down, in the background, that the client of this order has no answer, so that its repeat joins."""
        self._departures.note(placed)

    async def drain(self, *, seconds: float, stop_now: Callable[[], bool] = lambda: False) -> None:
        """Take no more orders and wait for what is running, up to `seconds` or until `stop_now` says so.

        What is cut off then is visible: recovery finds its rows when their leases run out.
        """
        self._draining = True
        deadline = time.monotonic() + seconds
        if self._owned:
            log.info("draining", generations=len(self._owned))
        while self._owned and time.monotonic() < deadline and not stop_now():
            await asyncio.wait(set(self._owned), timeout=0.1)
        cut_off = set(self._owned)
        for task in cut_off:
            task.cancel()
        if cut_off:
            log.warning("drain_cut_off", generations=len(cut_off))
            await asyncio.wait(cut_off, timeout=5)
        await self._departures.close()
        await self._watch.close()

    async def _refuse_unasked(self, pictures: int) -> AppError | None:
        """Return why no order for so many pictures is taken just now, before anything is held; None when one is."""
        # Those that end while the spool is being read may be in neither count: whichever time had more of them counts.
        in_flight_before = self._pictures_in_flight
        try:
            pictures_max = await self._stores.pictures_max()
        except DatabaseUnavailable as error:
            return error
        if (refusal := self._refuse_full()) is not None:
            return refusal
        in_flight = max(in_flight_before, self._pictures_in_flight)
        if pictures_max is not None and in_flight + pictures > pictures_max:
            return self._stores.refusal()
        barred = self._breaker.barred()
        return not_sent(barred) if barred else None

    def _refuse_full(self) -> Overloaded | None:
        if self._closed() or self._draining:
            return overloaded(_STOPPING)
        if self._slots_free <= 0:
            return overloaded()
        return None

    async def _find_earlier(self, caller: Caller, order: Order, attempt: Attempt) -> Placed | None:
        """Return what a refused order repeats. One without a mark is not looked up: its refusal is to cost nothing."""
        key = attempt.idempotency_key
        if key is None and attempt.retry_count == 0:
            return None
        mark = _mark(caller, order)
        async with self._database.direct() as connection:
            if key is not None:
                known = await repeats.find_keyed(connection, caller, order.digest, key)
                return _repeat(known, mark) if known else None
            joined = await repeats.join(
                connection, caller, order.digest, attempt, join_within_seconds=self._join_within_seconds
            )
            return _repeat(joined, mark) if joined else None

    async def _reserve_and_drive(
        self,
        placed: asyncio.Future[Placed],
        mark: Mark,
        admitted: object | None,
        caller: Caller,
        order: PricedOrder,
        attempt: Attempt,
    ) -> Generation | None:
        try:
            started = time.monotonic()
            held = await self._reserve_for(placed, mark, caller, order, attempt)
            return await self._drive(held, started) if held else None
        finally:
            self._breaker.give_back(admitted)
            self._slots_free += 1
            self._pictures_in_flight -= order.n
            self._marks[mark] -= 1
            if not self._marks[mark]:
                del self._marks[mark]

    async def _reserve_for(
        self, placed: asyncio.Future[Placed], mark: Mark, caller: Caller, order: PricedOrder, attempt: Attempt
    ) -> Generation | None:
        """RESERVE, and tell `placed` how it went. Returns what is to be driven; None when nothing is."""
        try:
            answer = await self._reserve(caller, order, attempt)
            if isinstance(answer, Held):
                task = asyncio.current_task()
                assert task is not None
                log.debug("generation_reserved", generation_id=str(answer.generation.id))
                self._running[answer.generation.user_id, answer.generation.id] = task
                joinable = None if attempt.idempotency_key else 0
                placed.set_result(Placed(answer.generation.id, mark, answer.gauges, joinable))
                return answer.generation
            if isinstance(answer, Known | Joined):
                placed.set_result(_repeat(answer, mark))
                return None
            raise over_limit(answer) if isinstance(answer, OverLimit) else await self._not_live(caller)
        except AppError as error:
            telemetry.refusals_total.labels(error.code, error.details.get("limit", "")).inc()
            placed.set_exception(error)
            return None
        except BaseException:
            placed.set_exception(InternalError())
            raise

    async def _reserve(
        self, caller: Caller, order: PricedOrder, attempt: Attempt
    ) -> Held | Known | Joined | OverLimit | KeyNotLive:
        generation_id = uuid7()
        try:
            return await records.reserve(
                self._database.seat(caller.scopes),
                generation_id=generation_id,
                caller=caller,
                order=order,
                sandbox=self._sandbox,
                storage_stem=f"{self._storage_prefix}{datetime.now(UTC):%Y/%m/%d}/{secrets.token_hex(16)}",
                lease_seconds=self._pending_lease_seconds,
                attempt=attempt,
                join_within_seconds=self._join_within_seconds,
            )
        except DatabaseUnavailable as error:
            # Only then can something be held. For every refusal, thousands of these would queue for the database.
            if error.in_doubt:
                self._own(self._driver.give_back_unsent(Unsent(generation_id, caller.user_id, caller.api_key_id)))
            raise

    async def _not_live(self, caller: Caller) -> AppError:
        async with self._database.direct() as connection:
            return await why_not_live(connection, caller)

    async def _drive(self, generation: Generation, started: float) -> Generation:
        telemetry.generations_in_flight.inc()
        try:
            return await self._driver.drive(generation, held_seconds=lambda: time.monotonic() - started)
        finally:
            telemetry.generations_in_flight.dec()
            del self._running[generation.user_id, generation.id]

    def _own(self, work: Coroutine[Any, Any, Generation | None]) -> None:
        task = asyncio.create_task(work)
        self._owned.add(task)
        task.add_done_callback(self._disown)

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._owned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("generation_crashed", exc_info=error)


def _result(task: asyncio.Task[Any]) -> Generation:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, AppError):
        raise error
    if task.cancelled() or error is not None:
        raise InternalError from error
    generation = task.result()
    assert isinstance(generation, Generation), "only a driven generation is waited for"
    return generation


def _mark(caller: Caller, order: Order) -> Mark:
    return caller.api_key_id, order.digest


def _repeat(of: Known | Joined, mark: Mark) -> Placed:
    if isinstance(of, Joined):
        telemetry.repeats_total.labels("join").inc()
        return Placed(of.generation_id, mark, repeats=of.repeats, known=True)
    if not of.same_order:
        raise IdempotencyKeyReused(parameter="Idempotency-Key")
    telemetry.repeats_total.labels("key").inc()
    return Placed(of.generation_id, mark, known=True)
