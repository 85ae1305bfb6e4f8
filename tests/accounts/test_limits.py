"""What does each limit let in, what does its refusal say, and what does a limit that is set or taken away change?"""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import budgets
from app.accounts.budgets import Limits
from app.database.pool import Database
from app.generations.records import Held, Move, OverLimit
from tests.accounts.scopes import row_of, set_limits
from tests.makers import PRICE_MICROS, make_caller, move, reserve

pytestmark = pytest.mark.anyio

# Far ahead: a limit is first counted by the database's own clock, and a window never goes back from there.
NOON = datetime(2126, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("limit", "maximum"),
    [
        ("in_flight_max", 3),
        ("requests_per_minute_max", 3),
        ("images_per_day_max", 3),
        ("images_per_month_max", 3),
        ("images_total_max", 3),
        ("micros_per_month_max", 3 * PRICE_MICROS),
    ],
)
@pytest.mark.parametrize("scope_kind", ["user", "key", "all"])
async def test_each_limit_of_each_scope_lets_in_what_it_says_and_names_itself_when_it_refuses(
    database: Database, connection: AsyncConnection, limit: str, maximum: int, scope_kind: str
) -> None:
    caller = await make_caller(connection)
    scope = {"user": f"user:{caller.user_id}", "key": f"key:{caller.api_key_id}", "all": "all"}[scope_kind]
    await set_limits(database, scope, **{limit: maximum})

    answers = [await reserve(connection, caller, now=NOON) for _ in range(4)]

    assert [type(answer) for answer in answers] == [Held, Held, Held, OverLimit]
    refused = answers[-1]
    assert isinstance(refused, OverLimit)
    assert (refused.gauge.scope, refused.gauge.name, refused.gauge.maximum) == (
        scope,
        limit.removesuffix("_max"),
        maximum,
    )
    assert await budgets.differences(connection) == []


@pytest.mark.parametrize(
    ("limit", "resets_in_seconds"),
    [
        ("images_per_day_max", 12 * 3600),
        ("images_per_month_max", (8 * 24 + 12) * 3600),
        ("micros_per_month_max", (8 * 24 + 12) * 3600),
        ("images_total_max", None),
        ("in_flight_max", 2),
        ("requests_per_minute_max", 60),
    ],
)
async def test_a_refusal_says_when_the_limit_resets(
    database: Database, connection: AsyncConnection, limit: str, resets_in_seconds: int | None
) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", **{limit: 0})

    refused = await reserve(connection, caller, now=NOON)

    assert isinstance(refused, OverLimit)
    assert refused.gauge.resets_in_seconds == resets_in_seconds


async def test_of_two_broken_limits_the_one_that_lasts_longer_is_named(
    database: Database, connection: AsyncConnection
) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", images_per_day_max=0)
    await set_limits(database, f"user:{caller.user_id}", images_per_month_max=0)

    refused = await reserve(connection, caller, now=NOON)

    assert isinstance(refused, OverLimit)
    assert refused.gauge.name == "images_per_month"


async def test_a_refused_order_holds_nothing_in_any_scope(database: Database, connection: AsyncConnection) -> None:
    caller = await make_caller(connection)
    await set_limits(database, f"user:{caller.user_id}", images_per_day_max=0)
    await set_limits(database, "all", images_per_day_max=5, requests_per_minute_max=5)

    await reserve(connection, caller, now=NOON)

    row = await row_of(connection, "all")
    assert (row["in_flight"], row["images_day"], row["images_total"], row["micros_month"]) == (0, 0, 0, 0)
    assert (await connection.execute(text("SELECT count(*) FROM generations"))).scalar() == 0


async def test_the_request_rate_lets_in_again_as_time_passes(database: Database, connection: AsyncConnection) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", requests_per_minute_max=2)
    for _ in range(2):
        await reserve(connection, caller, now=NOON)

    too_soon = await reserve(connection, caller, now=NOON + timedelta(seconds=29))
    later = await reserve(connection, caller, now=NOON + timedelta(seconds=31))

    assert isinstance(too_soon, OverLimit)
    assert isinstance(later, Held)


async def test_a_clock_that_was_set_back_refuses_for_a_minute_at_most(
    database: Database, connection: AsyncConnection
) -> None:
    caller = await make_caller(connection)
    await set_limits(database, "all", requests_per_minute_max=60)
    await reserve(connection, caller, now=NOON + timedelta(hours=3))

    answer = await reserve(connection, caller, now=NOON + timedelta(seconds=61))

    assert isinstance(answer, OverLimit)
    assert answer.gauge.resets_in_seconds == 1


async def test_many_orders_at_once_pass_a_limit_exactly(database: Database, connection: AsyncConnection) -> None:
    caller = await make_caller(connection)
    await set_limits(database, f"user:{caller.user_id}", images_per_day_max=100)
    await set_limits(database, "all", images_per_day_max=1000)

    async def one() -> object:
        async with database.statement() as own:
            return await reserve(own, caller)

    answers = await asyncio.gather(*(one() for _ in range(300)))

    assert [type(answer) for answer in answers].count(Held) == 100
    assert [type(answer) for answer in answers].count(OverLimit) == 200
    assert await budgets.differences(connection) == []


async def test_a_first_limit_counts_what_was_used_before_it(database: Database, connection: AsyncConnection) -> None:
    caller = await make_caller(connection)
    await reserve(connection, caller)
    ended = await reserve(connection, caller)
    assert isinstance(ended, Held)
    await move(connection, ended.generation.id, Move("failed", leaving=("pending",), settled=(0, 0)))

    await set_limits(database, f"user:{caller.user_id}", images_total_max=2)

    row = await row_of(connection, f"user:{caller.user_id}")
    assert (row["in_flight"], row["images_day"], row["images_total"]) == (1, 1, 1)


async def test_a_limit_that_is_set_while_orders_run_counts_each_of_them(
    database: Database, connection: AsyncConnection
) -> None:
    caller = await make_caller(connection)

    async def order() -> None:
        async with database.statement() as own:
            held = await reserve(own, caller)
            assert isinstance(held, Held)
            await move(own, held.generation.id, Move("failed", leaving=("pending",), settled=(0, 0)))
            await reserve(own, caller)

    async def limit() -> None:
        for maximum in (1000, None) * 5 + (1000,):
            await set_limits(database, f"user:{caller.user_id}", images_total_max=maximum)

    await asyncio.gather(limit(), *(order() for _ in range(60)))

    assert (await row_of(connection, f"user:{caller.user_id}"))["images_total"] == 60
    assert await budgets.differences(connection) == []


async def test_the_last_limit_that_goes_takes_the_row_along(database: Database, connection: AsyncConnection) -> None:
    await set_limits(database, "all", images_total_max=2, in_flight_max=1)

    await set_limits(database, "all", images_total_max=None)
    one_left = await budgets.limits_of(connection, "all")
    await set_limits(database, "all", in_flight_max=None)

    assert one_left == Limits(in_flight_max=1)
    assert (await connection.execute(text("SELECT count(*) FROM budgets"))).scalar() == 0
