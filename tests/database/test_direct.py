"""Do statements reach Postgres as they were meant, and answers come back whole, without a cursor in between?"""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError

from app.database.direct import DirectConnection, NothingDone, prepare
from app.database.pool import Database
from tests.service import rows

pytestmark = pytest.mark.anyio

SAY = prepare("SELECT CAST(:word AS text)")
PREPARED = prepare("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'ik%'")
COUNT = prepare("SELECT CAST(:number AS int) + 1")
LEVEL = prepare("SELECT current_setting('transaction_isolation')")


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[DirectConnection]:
    """The only connection of a pool."""
    database = Database(database_url, connections_max=1, timeout_seconds=20)
    async with database.direct() as lent:
        yield lent
    await database.close()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("text", "a fox, 'quoted', \\ and é🦊\n"),
        ("text", ""),
        ("text", None),
        ("int", -1),
        ("bigint", 2**62),
        ("double precision", 0.1),
        ("boolean", True),
        ("boolean", False),
        ("bytea", b"\x00\\'\xff"),
        ("uuid", UUID("01234567-89ab-cdef-0123-456789abcdef")),
        ("timestamptz", datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)),
        ("jsonb", None),
    ],
)
async def test_a_value_comes_back_as_it_was_given(connection: DirectConnection, kind: str, value: object) -> None:
    statement = prepare(f"SELECT CAST(:value AS {kind})")

    answers = [await connection.row(statement, {"value": value}) for _ in range(2)]
    together = await connection.rows([(statement, {"value": value})] * 2)

    assert [*answers, *together] == [(value,)] * 4


async def test_one_statement_is_prepared_once_whatever_its_values_are(connection: DirectConnection) -> None:
    values: list[Any] = [1, 40_000, 3_000_000, None]

    for value in values:
        await connection.row(COUNT, {"number": value})
        await connection.rows([(COUNT, {"number": value})] * 3)
    row = await connection.row(PREPARED, {})

    # BEGIN, COMMIT, the statement, and the one that asks.
    assert row == (4,)


async def test_megabytes_go_out_and_come_back_at_once(connection: DirectConnection) -> None:
    words = [str(number) * 300_000 for number in range(10, 42)]

    answers = await connection.rows([(SAY, {"word": word}) for word in words])

    assert answers == [(word,) for word in words]


async def test_statements_without_a_row_have_none_and_keep_their_place(connection: DirectConnection) -> None:
    nothing = prepare("SELECT 1 WHERE CAST(:so AS boolean)")

    answers = await connection.rows(
        [(nothing, {"so": False}), (SAY, {"word": "a"}), (prepare("SET LOCAL work_mem = '1MB'"), {}), (LEVEL, {})]
    )

    assert answers == [None, ("a",), None, ("read committed",)]
    assert await connection.row(nothing, {"so": False}) is None


async def test_one_that_fails_leaves_the_connection_as_it_was(connection: DirectConnection) -> None:
    with pytest.raises(DataError):
        await connection.row(COUNT, {"number": "one"})
    with pytest.raises(NothingDone):
        await connection.rows([(SAY, {"word": "a"}), (COUNT, {"number": "one"}), (SAY, {"word": "b"})])
    with pytest.raises(NothingDone):
        await connection.rows([(prepare("SELECT from nowhere"), {}), (SAY, {"word": "b"})])

    assert await connection.rows([(SAY, {"word": "a"}), (COUNT, {"number": 1})]) == [("a",), (2,)]


async def test_a_batch_is_read_committed_whatever_the_database_is_set_to(database_url: str) -> None:
    database = Database(database_url, connections_max=1, timeout_seconds=20)
    async with database.statement() as opened:
        await opened.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"))

    async with database.direct() as connection:
        answers = await connection.rows([(SAY, {"word": "a"}), (LEVEL, {})])
    await database.close()

    assert answers == [("a",), ("read committed",)]


async def test_a_row_that_can_not_be_read_is_told_of_itself_alone(connection: DirectConnection) -> None:
    when = prepare("SELECT CAST(:when AS timestamptz)")

    first, second, third = await connection.rows(
        [(SAY, {"word": "a"}), (when, {"when": "infinity"}), (SAY, {"word": "b"})]
    )

    assert (first, third) == (("a",), ("b",))
    assert isinstance(second, DataError)
    with pytest.raises(DataError):
        await connection.row(when, {"when": "infinity"})


async def divide_by_zero(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.execute(text("SELECT 1 / 0"))


@pytest.mark.parametrize("fault", ["a batch that fails", "a transaction that fails", "DISCARD ALL", "DEALLOCATE ALL"])
async def test_statements_are_run_whatever_the_server_was_told_to_forget(database_url: str, fault: str) -> None:
    database = Database(database_url, connections_max=1, timeout_seconds=20)
    # psycopg prepares a statement of SQLAlchemy's the sixth time, unless it is told not to.
    for _ in range(8):
        async with database.statement() as opened:
            await opened.execute(text("SELECT count(*) FROM users WHERE name = :name"), {"name": "ada"})
    seat = database.seat(("all",))
    assert await seat.row(SAY, {"word": "a"}) == ("a",)

    if fault == "a batch that fails":
        async with database.direct() as connection:
            with pytest.raises(NothingDone):
                await connection.rows([(SAY, {"word": "a"}), (COUNT, {"number": "one"})])
    elif fault == "a transaction that fails":
        with pytest.raises(DataError):
            await divide_by_zero(database)
    else:
        async with database.statement() as opened:
            await opened.execute(text(fault))
    answers = await asyncio.gather(*(seat.row(SAY, {"word": word}) for word in "abcdef"))
    await database.close()

    assert answers == [(word,) for word in "abcdef"]


async def test_what_fails_at_the_commit_is_told_in_its_own_words_and_not_in_doubt(database_url: str) -> None:
    rows(database_url, "CREATE TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED); SELECT 1 AS n")
    database = Database(database_url, connections_max=1, timeout_seconds=20)
    add = prepare("INSERT INTO once SELECT CAST(:n AS int) FROM generate_series(1, 2)")
    async with database.direct() as connection:
        with pytest.raises(IntegrityError) as raised:
            await connection.row(add, {"n": 1})

        assert await connection.row(SAY, {"word": "b"}) == ("b",)
    await database.close()

    assert not raised.value.connection_invalidated


async def test_a_connection_that_was_closed_is_let_go_of(database_url: str) -> None:
    database = Database(database_url, connections_max=1, timeout_seconds=20)
    async with database.direct() as connection:
        await connection.row(SAY, {"word": "a"})
    async with database.statement() as opened:
        pooled = await opened.get_raw_connection()
        seen = weakref.ref(pooled.driver_connection)
    del opened, pooled, connection

    await database.close()
    gc.collect()

    assert seen() is None
