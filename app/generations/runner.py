"""Which generations is this process running, and who waits for them?

The work belongs to the process, not to the request: RESERVE, the paid call and the rehost run in a task of the
runner's own, and a handler only waits for it. A client that leaves changes nothing.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from app import telemetry
from app.accounts.budgets import Gauge, in_usd
from app.accounts.keys import Caller
from app.database.pool import Database
from app.errors import (
    ApiKeyInvalid,
    AppError,
    BudgetSpent,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InternalError,
    NotFound,
    Overloaded,
    RateLimitExceeded,
    TooManyInFlight,
    error_of_code,
)
from app.generations import records, repeats
from app.generations.driver import Driver
from app.generations.order import Order, PricedOrder, check
from app.generations.records import Generation, Held, KeyNotLive, OverLimit
from app.generations.repeats import Attempt, Joined, Known
from app.generations.stores import Stores
from app.upstream.breaker import Barred, Breaker
from app.upstream.catalog import Catalog

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.5
_OVERLOADED_RETRY_SECONDS = 2
_STOPPING = "This process is being stopped. Nothing was charged; try again, and another one answers."


@dataclass(frozen=True)
class Placed:
    """An order that was taken. `gauges` are empty for a repeat, which is charged nothing.

    `repeats` tells how many repeats its generation had then; None where none may join, because it has a key.
    """

    generation_id: UUID
    gauges: tuple[Gauge, ...] = ()
    repeats: int | None = None


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
        # By user too: a waiter must not learn from the time it takes that somebody else's generation exists.
        self._running: dict[tuple[UUID, UUID], asyncio.Task[Any]] = {}
        self._owned: set[asyncio.Task[Any]] = set()
        self._draining = False

    async def place(self, caller: Caller, order: Order, attempt: Attempt) -> Placed:
        """Hold the price and start a generation, or find the one that this order repeats.

        Returns once the price is held. Raises what order.check does, BudgetSpent, RateLimitExceeded, TooManyInFlight,
        ApiKeyInvalid, IdempotencyKeyReused, Overloaded, StorageUnavailable or DatabaseUnavailable, or, while the
        breaker is open, UpstreamUnreachable, UpstreamAuthFailed or UpstreamBalanceExhausted; then nothing is held.
        """
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
        self._own(self._reserve_and_drive(placed, admitted, caller, priced, attempt))
        return await asyncio.shield(placed)

    async def wait(self, generation_id: UUID, user_id: UUID, *, seconds: float | None) -> Generation:
        """Return a generation of this user once it has ended, or as it stands after `seconds`.

        None waits as long as its runner works on it; one that was left to recovery is returned as it stands. Raises
        NotFound for another user's, as for one that never was.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        task = self._running.get((user_id, generation_id))
        if task is not None:
            await asyncio.wait({task}, timeout=seconds)
            if task.done():
                return _result(task)
        while True:
            async with self._database.statement() as connection:
                generation = await records.find(connection, generation_id, user_id=user_id)
            if generation is None:
                raise NotFound("There is no such generation.")
            remaining_seconds = _POLL_SECONDS if deadline is None else deadline - time.monotonic()
            left_to_recovery = deadline is None and generation.attempts > 0
            if generation.ended or left_to_recovery or remaining_seconds <= 0:
                return generation
            await asyncio.sleep(min(_POLL_SECONDS, remaining_seconds))

    def leave_unanswered(self, placed: Placed) -> None:
        """Write down, in the background, that the client of this order has no answer, so that its repeat joins."""
        if placed.repeats is not None and self._join_within_seconds > 0:
            self._own(self._leave(placed.generation_id, placed.repeats))

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

    async def _refuse_unasked(self, pictures: int) -> AppError | None:
        """Return why no order for so many pictures is taken just now, before anything is held; None when one is."""
        # Those that end while the spool is being read may be in neither count: whichever time had more of them counts.
        in_flight_before = self._pictures_in_flight
        try:
            pictures_max = await self._stores.pictures_max()
        except DatabaseUnavailable as error:
            return error
        if self._closed() or self._draining:
            return Overloaded(_STOPPING, retry_after_seconds=_OVERLOADED_RETRY_SECONDS)
        if self._slots_free <= 0:
            return Overloaded(retry_after_seconds=_OVERLOADED_RETRY_SECONDS)
        in_flight = max(in_flight_before, self._pictures_in_flight)
        if pictures_max is not None and in_flight + pictures > pictures_max:
            return self._stores.refusal()
        barred = self._breaker.barred()
        return _not_sent(barred) if barred else None

    async def _find_earlier(self, caller: Caller, order: Order, attempt: Attempt) -> Placed | None:
        """Return what a refused order repeats. One without a mark is not looked up: its refusal is to cost nothing."""
        key = attempt.idempotency_key
        if key is None and attempt.retry_count == 0:
            return None
        async with self._database.statement() as connection:
            if key is not None:
                known = await repeats.find_keyed(connection, caller, order.digest, key)
                return _repeat(known) if known else None
            joined = await repeats.join(
                connection, caller, order.digest, attempt, join_within_seconds=self._join_within_seconds
            )
            return _repeat(joined) if joined else None

    async def _leave(self, generation_id: UUID, repeats_then: int) -> None:
        give_up_at = time.monotonic() + self._join_within_seconds
        while True:
            try:
                async with self._database.statement() as connection:
                    await repeats.leave(connection, generation_id, repeats=repeats_then)
                return
            except DatabaseUnavailable:
                if self._draining or time.monotonic() > give_up_at:
                    log.warning("departure_not_noted", generation_id=str(generation_id))
                    return
            await asyncio.sleep(_POLL_SECONDS)

    async def _reserve_and_drive(
        self,
        placed: asyncio.Future[Placed],
        admitted: object | None,
        caller: Caller,
        order: PricedOrder,
        attempt: Attempt,
    ) -> Generation | None:
        try:
            started = time.monotonic()
            held = await self._reserve_for(placed, caller, order, attempt)
            return await self._drive(held, started) if held else None
        finally:
            self._breaker.give_back(admitted)
            self._slots_free += 1
            self._pictures_in_flight -= order.n

    async def _reserve_for(
        self, placed: asyncio.Future[Placed], caller: Caller, order: PricedOrder, attempt: Attempt
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
                placed.set_result(Placed(answer.generation.id, answer.gauges, joinable))
                return answer.generation
            if isinstance(answer, Known | Joined):
                placed.set_result(_repeat(answer))
                return None
            raise _refusal(answer) if isinstance(answer, OverLimit) else ApiKeyInvalid
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
            async with self._database.statement() as connection:
                return await records.reserve(
                    connection,
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
                self._own(self._driver.give_back_unsent(generation_id))
            raise

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


def _repeat(of: Known | Joined) -> Placed:
    if isinstance(of, Joined):
        telemetry.repeats_total.labels("join").inc()
        return Placed(of.generation_id, repeats=of.repeats)
    if not of.same_order:
        raise IdempotencyKeyReused(parameter="Idempotency-Key")
    telemetry.repeats_total.labels("key").inc()
    return Placed(of.generation_id)


def _not_sent(barred: Barred) -> AppError:
    # What was drawn up for an order that failed reads as if this one had been sent.
    messages = {
        "upstream_unreachable": "The image provider has failed several times in a row, so orders wait until it is "
        "well again. Nothing was ordered and nothing was charged. Try again.",
    }
    return error_of_code(barred.code)(messages.get(barred.code), retry_after_seconds=barred.retry_after_seconds)


def _refusal(over: OverLimit) -> AppError:
    gauge = over.gauge
    scope = gauge.scope.partition(":")[0]
    details = {"limit": gauge.name, "scope": scope, "maximum": gauge.maximum}
    whose = {"all": "This installation's", "key": "This API key's", "user": "Your"}[scope]
    if gauge.name == "in_flight":
        message = f"{whose} limit of {gauge.maximum} generations in flight is reached. Try again when one has ended."
        return TooManyInFlight(message, retry_after_seconds=gauge.resets_in_seconds, details=details)
    if gauge.name == "requests_per_minute":
        message = f"{whose} limit of {gauge.maximum} orders a minute is reached."
        return RateLimitExceeded(message, retry_after_seconds=min(60, gauge.resets_in_seconds or 60), details=details)
    what = {
        "images_per_day": f"images a day: {gauge.maximum}",
        "images_per_month": f"images a month: {gauge.maximum}",
        "images_total": f"images in total: {gauge.maximum}",
        "micros_per_month": f"USD a month: {in_usd(gauge.maximum)}",
    }[gauge.name]
    when = "" if gauge.resets_in_seconds is None else " It begins anew at the next UTC midnight."
    if gauge.name.endswith("_month"):
        when = " It begins anew on the first of next month, UTC."
    return BudgetSpent(
        f"{whose} budget is used up ({what}).{when}", retry_after_seconds=gauge.resets_in_seconds, details=details
    )
