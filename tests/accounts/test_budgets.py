"""Do the budgets hold what RESERVE took and MOVE settled, for every way to end?"""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import budgets, keys
from app.database.pool import Database
from app.generations import records
from app.generations.records import Held, KeyNotLive, Move, OverLimit
from app.generations.repeats import Known
from tests.accounts.scopes import row_of, set_limits
from tests.makers import PRICE_MICROS, make_caller, make_image, make_order, move, reserve

pytestmark = pytest.mark.anyio

LAST_NIGHT_OF_THE_MONTH = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("micros", "usd"),
    [(0, "0.00"), (1, "0.000001"), (1_000, "0.001"), (10_000, "0.01"), (12_500_000, "12.50"), (10**12, "1000000.00")],
)
async def test_money_is_told_with_all_its_digits_and_two_at_least(micros: int, usd: str) -> None:
    assert budgets.in_usd(micros) == usd


@pytest.mark.parametrize(
    ("state", "settled", "user_images", "all_images"),
    [
        ("completed", (1, PRICE_MICROS), 1, 1),
        ("failed", (0, 0), 0, 0),
        ("lost", (1, PRICE_MICROS), 0, 1),
        ("unknown", None, 1, 1),
    ],
)
async def test_each_end_settles_the_user_and_the_installation_as_it_should(
    database: Database,
    connection: AsyncConnection,
    state: records.State,
    settled: tuple[int, int] | None,
    user_images: int,
    all_images: int,
) -> None:
    caller = await make_caller(connection)
    await set_limits(database, f"user:{caller.user_id}", images_per_day_max=9)
    await set_limits(database, "all", images_per_day_max=9)
    held = await reserve(connection, caller)
    assert isinstance(held, Held)

    await move(connection, held.generation.id, Move(state, leaving=("pending",), settled=settled))

    for scope, images in ((f"user:{caller.user_id}", user_images), ("all", all_images)):
        row = await row_of(connection, scope)
        assert row["in_flight"] == 0
        assert (row["images_day"], row["images_month"], row["images_total"]) == (images, images, images)
        assert row["micros_month"] == images * PRICE_MICROS
    assert await budgets.differences(connection) == []


async def test_an_order_for_several_pictures_settles_those_that_came(
    database: Database, connection: AsyncConnection
) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", images_total_max=9)
    held = await reserve(connection, caller, make_order(n=4))
    assert isinstance(held, Held)
    pictures = [make_image(held.generation.id, position=position) for position in range(3)]

    await move(
        connection,
        held.generation.id,
        Move("completed", leaving=("pending",), settled=(3, 3 * PRICE_MICROS), pictures=pictures),
    )

    row = await row_of(connection, "all")
    assert (row["images_total"], row["micros_month"]) == (3, 3 * PRICE_MICROS)
    assert await budgets.differences(connection) == []


async def test_nothing_settles_twice(database: Database, connection: AsyncConnection) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", images_total_max=9)
    held = await reserve(connection, caller)
    assert isinstance(held, Held)
    failed = Move("failed", leaving=("pending",), settled=(0, 0))

    moves = [await move(connection, held.generation.id, failed) for _ in range(2)]

    assert moves[0] is not None
    assert moves[1] is None
    assert (await row_of(connection, "all"))["images_total"] == 0


async def test_what_is_given_back_after_midnight_does_not_lighten_the_new_day(
    database: Database, connection: AsyncConnection
) -> None:
    caller = await make_caller(connection)
    await set_limits(
        database, "all", images_per_day_max=9, images_per_month_max=9, micros_per_month_max=9 * PRICE_MICROS
    )
    before = await reserve(connection, caller, now=LAST_NIGHT_OF_THE_MONTH)
    await reserve(connection, caller, now=LAST_NIGHT_OF_THE_MONTH + timedelta(seconds=2))
    assert isinstance(before, Held)

    await move(connection, before.generation.id, Move("failed", leaving=("pending",), settled=(0, 0)))

    row = await row_of(connection, "all")
    assert (row["images_day"], row["images_month"], row["micros_month"]) == (1, 1, PRICE_MICROS)
    assert await budgets.differences(connection) == []


async def test_a_window_never_rolls_back(database: Database, connection: AsyncConnection) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", images_per_day_max=1)
    await reserve(connection, caller, now=LAST_NIGHT_OF_THE_MONTH + timedelta(seconds=2))

    late = await reserve(connection, caller, now=LAST_NIGHT_OF_THE_MONTH)

    assert isinstance(late, OverLimit)
    assert await budgets.differences(connection) == []


async def test_a_known_key_is_answered_although_the_quota_is_spent(
    database: Database, connection: AsyncConnection
) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", images_total_max=1)
    first = await reserve(connection, caller, idempotency_key="k")
    assert isinstance(first, Held)

    again = await reserve(connection, caller, idempotency_key="k")
    other = await reserve(connection, caller, make_order("a dog"), idempotency_key="k")

    assert again == Known(first.generation.id, same_order=True)
    assert other == Known(first.generation.id, same_order=False)


async def test_a_revoked_key_and_a_disabled_user_start_nothing(connection: AsyncConnection) -> None:
    revoked = await make_caller(connection, "revoked")
    disabled = await make_caller(connection, "disabled")
    await keys.revoke_key(connection, revoked.api_key_id)
    await keys.set_disabled(connection, await keys.find_user(connection, "disabled"), disabled=True)

    answers = [await reserve(connection, caller) for caller in (revoked, disabled)]

    assert answers == [KeyNotLive(), KeyNotLive()]


async def test_one_key_used_at_once_by_many_holds_once(database: Database, connection: AsyncConnection) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", images_total_max=9)

    async def one() -> object:
        async with database.statement() as own:
            return await reserve(own, caller, idempotency_key="k")

    answers = await asyncio.gather(*(one() for _ in range(40)))

    assert [type(answer) for answer in answers].count(Held) == 1
    assert [type(answer) for answer in answers].count(Known) == 39
    assert (await row_of(connection, "all"))["images_total"] == 1
    assert await budgets.differences(connection) == []


async def test_what_the_sandbox_made_leaves_the_books_when_a_real_key_comes(
    database: Database, connection: AsyncConnection
) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", images_total_max=9)
    running = await reserve(connection, caller)
    await reserve(connection, caller)
    assert isinstance(running, Held)
    await connection.execute(text("UPDATE generations SET sandbox = true"))

    async with database.transaction() as tx:
        left_out = await budgets.leave_sandbox_out(tx)
    await move(connection, running.generation.id, Move("failed", leaving=("pending",), settled=(0, 0)))

    row = await row_of(connection, "all")
    assert left_out == 2
    assert (row["in_flight"], row["images_total"], row["micros_month"]) == (0, 0, 0)
    assert await budgets.differences(connection) == []


async def test_a_start_that_finds_nothing_of_the_sandbox_waits_for_no_order_and_holds_none_up(
    database: Database, connection: AsyncConnection
) -> None:
    await reserve(connection, await make_caller(connection))

    async with database.transaction() as order, database.transaction() as tx:
        await order.execute(text("UPDATE generations SET attempts = attempts"))
        async with asyncio.timeout(3):
            left_out = await budgets.leave_sandbox_out(tx)
        locks = await connection.execute(
            text("SELECT count(*) FROM pg_locks WHERE relation = 'generations'::regclass AND mode = 'ExclusiveLock'")
        )

    assert left_out == 0
    assert locks.scalar() == 0


async def test_a_counter_that_was_tampered_with_is_found(database: Database, connection: AsyncConnection) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", images_total_max=9)
    await reserve(connection, caller)
    await connection.execute(text("UPDATE budgets SET images_total = 7"))

    found = await budgets.differences(connection)

    assert [(entry.scope, entry.counter, entry.counted, entry.recounted) for entry in found] == [
        ("all", "images_total", 7, 1)
    ]
