"""Does every call of the database end in time, whatever the network does, and does it tell what is in doubt?"""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from app.database.pool import Database
from app.errors import DatabaseUnavailable
from tests.service import rows
from tests.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 1.0
# The timeout, the half second that Postgres gets to tell first, and what a busy machine takes.
BOUND_SECONDS = 3.0


@pytest.fixture
def proxy(database_url: str) -> Iterator[TcpProxy]:
    url = make_url(database_url)
    with TcpProxy(url.host or "", url.port or 0) as opened:
        yield opened


@pytest.fixture
async def database(database_url: str, proxy: TcpProxy) -> AsyncIterator[Database]:
    """A pool of two connections through the proxy, one of which is open already."""
    url = make_url(database_url).set(port=proxy.port).render_as_string(hide_password=False)
    opened = Database(url, connections_max=2, timeout_seconds=TIMEOUT_SECONDS)
    assert await answers(opened)
    yield opened
    await opened.close()


async def answers(database: Database) -> bool:
    async with database.statement() as connection:
        return (await connection.execute(text("SELECT 1"))).scalar() == 1


async def away(database: Database) -> tuple[DatabaseUnavailable, float]:
    """What a statement raises, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable) as raised:
        await answers(database)
    return raised.value, time.monotonic() - began


async def cut_off(database: Database, query: str, spoil: Callable[[], None]) -> tuple[DatabaseUnavailable, float]:
    """What a statement raises when the network is spoilt just before it is sent, and after how many seconds."""
    began = time.monotonic()
    try:
        async with database.statement() as connection:
            spoil()
            await connection.execute(text(query))
    except DatabaseUnavailable as error:
        return error, time.monotonic() - began
    raise AssertionError("it was answered")


async def test_a_pooled_connection_that_has_gone_silent_is_told_in_time_and_nothing_is_in_doubt(
    database: Database, proxy: TcpProxy
) -> None:
    proxy.blackhole()

    error, seconds = await away(database)

    assert seconds < BOUND_SECONDS
    assert not error.in_doubt, "only the ping went out"


async def test_a_first_connection_that_gets_no_answer_is_told_in_time_and_nothing_is_in_doubt(
    database_url: str, proxy: TcpProxy
) -> None:
    proxy.blackhole()
    url = make_url(database_url).set(port=proxy.port).render_as_string(hide_password=False)
    database = Database(url, connections_max=2, timeout_seconds=TIMEOUT_SECONDS)

    error, seconds = await away(database)
    await database.close()

    assert seconds < BOUND_SECONDS
    assert not error.in_doubt


async def test_a_refused_connection_is_told_at_once_and_nothing_is_in_doubt(
    database: Database, proxy: TcpProxy
) -> None:
    proxy.refuse()

    error, seconds = await away(database)

    assert seconds < TIMEOUT_SECONDS
    assert not error.in_doubt


async def test_a_statement_without_an_answer_is_cut_off_in_doubt_and_its_connection_is_dropped(
    database: Database, proxy: TcpProxy
) -> None:
    error, seconds = await cut_off(database, "SELECT 1", proxy.blackhole)
    proxy.pass_through()

    assert TIMEOUT_SECONDS < seconds < BOUND_SECONDS
    assert error.in_doubt, "it may have been carried out"
    assert await answers(database)
    while proxy.connections > 1:
        await asyncio.sleep(0.01)


async def test_a_commit_without_an_answer_is_in_doubt(database: Database, proxy: TcpProxy) -> None:
    async def work() -> None:
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            proxy.blackhole()

    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable) as raised:
        await work()

    assert time.monotonic() - began < BOUND_SECONDS
    assert raised.value.in_doubt


async def test_an_answer_that_is_cut_after_its_commit_is_in_doubt(
    database: Database, proxy: TcpProxy, database_url: str
) -> None:
    add = "INSERT INTO users (id, name) VALUES (gen_random_uuid(), 'ada')"

    error, _ = await cut_off(database, add, lambda: proxy.cut_answers(after=b"INSERT INTO users"))

    assert error.in_doubt
    assert rows(database_url, "SELECT name FROM users") == [{"name": "ada"}]


async def test_a_statement_that_postgres_itself_finds_too_slow_is_not_in_doubt(database: Database) -> None:
    error, _ = await cut_off(database, "SELECT pg_sleep(30)", lambda: None)

    assert not error.in_doubt, "Postgres ended it, and said so"
    assert await answers(database)


@pytest.mark.parametrize(
    ("sqlstate", "in_doubt"),
    [("53100", False), ("53200", False), ("40P01", False), ("25006", False), ("08007", True), ("40003", True)],
    ids=["disk full", "out of memory", "deadlock", "read-only", "resolution unknown", "completion unknown"],
)
async def test_what_postgres_says_of_its_own_trouble_is_told_as_the_database_being_away(
    database: Database, sqlstate: str, in_doubt: bool
) -> None:
    trouble = f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"

    error, _ = await cut_off(database, trouble, lambda: None)

    assert (error.in_doubt, error.not_migrated) == (in_doubt, False)


@pytest.mark.parametrize(
    "query",
    ["SELECT * FROM no_such_table", "SELECT no_such_column FROM generations"],
    ids=["new", "of an earlier release"],
)
async def test_a_database_that_was_not_migrated_is_not_there_yet(database: Database, query: str) -> None:
    error, _ = await cut_off(database, query, lambda: None)

    assert (error.in_doubt, error.not_migrated) == (False, True)


async def test_an_error_that_nobody_foresaw_tells_what_was_wrong_and_not_the_row(database: Database) -> None:
    async with database.statement() as connection:
        await connection.execute(text("CREATE TABLE said (prompt text CHECK (length(prompt) < 3))"))

    with pytest.raises(IntegrityError) as raised:
        async with database.statement() as connection:
            await connection.execute(text("INSERT INTO said VALUES (:prompt)"), {"prompt": "fox-canary"})

    told = "".join(traceback.format_exception(raised.value))
    assert 'violates check constraint "said_prompt_check"' in told
    assert "fox-canary" not in told.replace('{"prompt": "fox-canary"}', "")


async def test_the_queue_for_a_connection_is_told_in_time_and_nothing_is_in_doubt(database: Database) -> None:
    async with database.statement(), database.statement():
        error, seconds = await away(database)

    assert seconds < BOUND_SECONDS
    assert not error.in_doubt
    assert await answers(database)


async def test_a_caller_that_is_cancelled_does_not_wait_for_a_silent_server(
    database: Database, proxy: TcpProxy
) -> None:
    proxy.blackhole()
    asked = asyncio.create_task(answers(database))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    asked.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asked

    assert time.monotonic() - began < TIMEOUT_SECONDS / 2


async def test_closing_does_not_wait_for_a_silent_server(database: Database, proxy: TcpProxy) -> None:
    proxy.blackhole()
    began = time.monotonic()

    await database.close()

    assert time.monotonic() - began < TIMEOUT_SECONDS / 2


async def test_many_callers_of_a_silent_server_are_all_told_in_time_and_the_pool_lives_on(
    database: Database, proxy: TcpProxy
) -> None:
    proxy.blackhole()
    began = time.monotonic()

    told = await asyncio.gather(*(answers(database) for _ in range(20)), return_exceptions=True)

    assert time.monotonic() - began < BOUND_SECONDS
    assert all(isinstance(error, DatabaseUnavailable) and not error.in_doubt for error in told)
    proxy.pass_through()
    assert await asyncio.gather(*(answers(database) for _ in range(20))) == [True] * 20


async def test_a_reset_in_the_middle_of_an_answer_is_in_doubt_and_the_pool_lives_on(
    database: Database, proxy: TcpProxy
) -> None:
    error, _ = await cut_off(database, "SELECT repeat('x', 10000)", lambda: proxy.reset_answers(after_bytes=100))
    proxy.pass_through()

    assert error.in_doubt
    assert await answers(database)


async def test_an_answer_that_trickles_in_is_cut_off_in_time(database: Database, proxy: TcpProxy) -> None:
    error, seconds = await cut_off(database, "SELECT repeat('x', 10000)", lambda: proxy.trickle(bytes_per_second=20))
    proxy.pass_through()

    assert seconds < BOUND_SECONDS
    assert error.in_doubt
    assert await answers(database)
