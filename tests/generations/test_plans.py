"""Does an order read a few rows only, however many there are, over a connection that began in an empty database?

Postgres keeps the plan of a prepared statement as it was made. Made for empty tables, it may read them whole, and goes
on to while they grow: an hour's orders then cost Postgres more and more, until it counts them in its own time.
"""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import budgets
from app.accounts.keys import Caller
from app.database.pool import Database
from app.generations.records import Held, Move
from app.generations.repeats import Joined
from tests.makers import PRICE_MICROS, make_caller, make_image, move, reserve

pytestmark = pytest.mark.anyio

# From the sixth on Postgres keeps a plan.
PREPARING = 8
MANY = 400
# Of an order's statements, and of what each looks up.
FEW = 30

READ = text("""
SELECT sum(t.seq_tup_read + t.idx_tup_fetch)
    + (SELECT sum(pg_stat_get_xact_tuples_returned(i.indexrelid)) FROM pg_index i
        WHERE i.indrelid IN ('generations'::regclass, 'budgets'::regclass))
FROM pg_stat_xact_user_tables t WHERE t.relname IN ('generations', 'budgets')""")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """One connection, which every statement goes over."""
    opened = Database(database_url, connections_max=1, timeout_seconds=10)
    yield opened
    await opened.close()


@pytest.fixture
async def caller(database: Database) -> Caller:
    async with database.transaction() as tx:
        made = await make_caller(tx)
        await budgets.set_limits(tx, f"user:{made.user_id}", {"images_total_max": 10_000})
    return made


async def order(connection: AsyncConnection, caller: Caller, *, key: str | None = None) -> None:
    """One order's statements, for the same picture each time."""
    held = await reserve(connection, caller, idempotency_key=key, join_within_seconds=300)
    assert isinstance(held, Held)
    generation_id = held.generation.id
    generated = Move("generated", leaving=("pending",), source_urls=["https://a.example"], lease_seconds=60)
    assert await move(connection, generation_id, generated)
    picture = make_image(generation_id)
    completed = Move("completed", leaving=("generated",), settled=(1, PRICE_MICROS), pictures=[picture])
    assert await move(connection, generation_id, completed)


async def order_many(database: Database, caller: Caller, *, keyed: bool = False, from_number: int = 0) -> None:
    for number in range(from_number, from_number + MANY):
        async with database.statement() as connection:
            await order(connection, caller, key=f"key {number}" if keyed else None)


async def plant_budgets(database: Database) -> None:
    """Limits of other users."""
    async with database.transaction() as tx:
        await tx.execute(text("INSERT INTO budgets (scope) SELECT 'user:' || n FROM generate_series(1, 1000) AS n"))


@pytest.mark.parametrize("keyed", [False, True])
async def test_an_order_reads_a_few_rows_after_many(database: Database, caller: Caller, keyed: bool) -> None:
    await order_many(database, caller, keyed=keyed)
    await plant_budgets(database)

    async with database.transaction() as tx:
        before = (await tx.execute(READ)).scalar_one()
        await order(tx, caller, key="the last" if keyed else None)
        read = (await tx.execute(READ)).scalar_one() - before

    assert read < FEW


async def test_a_retry_reads_a_few_rows_after_many(database: Database, caller: Caller) -> None:
    for _ in range(PREPARING):
        async with database.statement() as connection:
            assert isinstance(await reserve(connection, caller, join_within_seconds=300), Held)
            assert isinstance(await reserve(connection, caller, retry_count=1, join_within_seconds=300), Joined)
    await order_many(database, caller)

    async with database.transaction() as tx:
        before = (await tx.execute(READ)).scalar_one()
        joined = await reserve(tx, caller, retry_count=1, join_within_seconds=300)
        read = (await tx.execute(READ)).scalar_one() - before

    assert isinstance(joined, Joined)
    # And the sixteen newest, each of them twice, in the index and in the table.
    assert read < FEW + 8 * 16
