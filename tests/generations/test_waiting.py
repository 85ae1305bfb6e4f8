"""Do those who wait for another process's generations learn of the end, at the price of one question for all?"""

import asyncio
import time
from uuid import uuid4

import pytest
from sqlalchemy import text

from app.accounts.keys import Caller
from app.database.pool import Database
from app.errors import DatabaseUnavailable
from app.generations.records import Held, Move
from app.generations.waiting import Watch
from tests.makers import make_caller, move, reserve
from tests.service import rows

pytestmark = pytest.mark.anyio

WAITERS = 500
FAILED = Move("failed", leaving=("pending",), settled=(0, 0), failure_code="upstream_failed")


@pytest.fixture
async def database(database_url: str) -> Database:
    return Database(database_url, connections_max=1, timeout_seconds=10)


@pytest.fixture
async def caller(database: Database) -> Caller:
    async with database.transaction() as tx:
        return await make_caller(tx)


async def pending(database: Database, caller: Caller) -> Held:
    async with database.statement() as connection:
        held = await reserve(connection, caller)
    assert isinstance(held, Held)
    return held


def commits(database_url: str) -> int:
    """Transactions of this database so far; each of its connections tells once a second."""
    query = "SELECT xact_commit AS n FROM pg_stat_database WHERE datname = current_database()"
    return int(rows(database_url, query)[0]["n"])


async def test_five_hundred_who_wait_ask_as_much_as_one_and_all_learn_of_the_end(
    database: Database, caller: Caller, database_url: str
) -> None:
    generations = [(await pending(database, caller)).generation for _ in range(10)]
    watch = Watch(database)
    before = commits(database_url)

    waiters = [
        asyncio.create_task(watch.sign(generations[number % 10].id, or_left_to_recovery=False, seconds=60))
        for number in range(WAITERS)
    ]
    await asyncio.sleep(3)
    asked = commits(database_url) - before
    undone = [waiter for waiter in waiters if not waiter.done()]
    async with database.statement() as connection:
        for generation in generations:
            await move(connection, generation.id, FAILED)
    began = time.monotonic()
    await asyncio.gather(*waiters)

    assert len(undone) == WAITERS
    assert asked < 60, "twice a second, and what the test itself asks"
    assert time.monotonic() - began < 5
    await database.close()


async def test_a_wait_ends_when_its_time_is_over(database: Database, caller: Caller) -> None:
    held = await pending(database, caller)
    watch = Watch(database)

    await watch.sign(held.generation.id, or_left_to_recovery=False, seconds=0.1)

    await database.close()


async def test_a_watch_that_is_closed_asks_nothing_any_more(database: Database, caller: Caller) -> None:
    held = await pending(database, caller)
    before = asyncio.all_tasks()
    watch = Watch(database)
    # It goes on to its next look when its only waiter has gone.
    await watch.sign(held.generation.id, or_left_to_recovery=False, seconds=0.1)

    await watch.close()

    assert asyncio.all_tasks() == before
    await database.close()


async def test_who_still_waits_on_a_watch_that_is_closed_looks_for_themselves(
    database: Database, caller: Caller
) -> None:
    held = await pending(database, caller)
    watch = Watch(database)
    waiter = asyncio.create_task(watch.sign(held.generation.id, or_left_to_recovery=False, seconds=60))
    await asyncio.sleep(0)

    await watch.close()

    await asyncio.wait_for(waiter, timeout=10)
    await database.close()


@pytest.mark.parametrize("or_left_to_recovery", [True, False])
async def test_being_left_to_recovery_is_an_end_for_those_who_want_it(
    database: Database, caller: Caller, or_left_to_recovery: bool
) -> None:
    held = await pending(database, caller)
    async with database.statement() as connection:
        await connection.execute(text("UPDATE generations SET attempts = 1"))
    watch = Watch(database)
    waiter = asyncio.create_task(watch.sign(held.generation.id, or_left_to_recovery=or_left_to_recovery, seconds=None))

    done, _ = await asyncio.wait({waiter}, timeout=10 if or_left_to_recovery else 2)

    assert bool(done) == or_left_to_recovery
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    await watch.close()
    await database.close()


async def test_all_who_wait_are_told_when_the_database_is_away() -> None:
    nowhere = Database("postgresql+psycopg://nobody@127.0.0.1:9/none", connections_max=1, timeout_seconds=10)
    watch = Watch(nowhere)

    told = await asyncio.gather(
        *(watch.sign(uuid4(), or_left_to_recovery=False, seconds=60) for _ in range(3)), return_exceptions=True
    )

    assert [type(error) for error in told] == [DatabaseUnavailable] * 3
    await nowhere.close()
