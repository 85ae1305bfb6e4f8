"""Does every call of the database end in time, whatever the network does, and does it tell what is in doubt?"""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from app.database.direct import array_of, prepare
from app.database.pool import Database
from app.errors import DatabaseUnavailable
from tests.service import rows
from tests.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 1.0
# The timeout, the half second that Postgres gets to tell first, and what a busy machine takes.
BOUND_SECONDS = 3.0


@pytest.fixture
async def database(database_url: str, proxy: TcpProxy) -> AsyncIterator[Database]:
    """A pool of two connections through the proxy, one of which is open already."""
    url = make_url(database_url).set(port=proxy.port).render_as_string(hide_password=False)
    opened = Database(url, connections_max=2, timeout_seconds=TIMEOUT_SECONDS)
    assert await answers(opened)
    yield opened
    await opened.close()


@pytest.fixture(params=["statement", "direct"])
def way(request: pytest.FixtureRequest) -> str:
    """In which of the two ways a statement goes to Postgres."""
    return str(request.param)


async def answers(database: Database) -> bool:
    async with database.statement() as connection:
        return (await connection.execute(text("SELECT 1"))).scalar() == 1


async def run(
    database: Database, way: str, query: str, parameters: dict[str, object], before: Callable[[], None] = lambda: None
) -> None:
    """Run a statement, and just before it is sent, what is to happen `before`."""
    if way == "direct":
        async with database.direct() as direct_connection:
            before()
            await direct_connection.row(prepare(query), parameters)
    else:
        async with database.statement() as connection:
            before()
            await connection.execute(text(query), parameters)


async def away(database: Database, way: str) -> tuple[DatabaseUnavailable, float]:
    """What a statement raises, and after how many seconds."""
    return await cut_off(database, way, "SELECT 1", lambda: None)


async def cut_off(
    database: Database, way: str, query: str, spoil: Callable[[], None]
) -> tuple[DatabaseUnavailable, float]:
    """What a statement raises when the network is spoilt just before it is sent, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable) as raised:
        await run(database, way, query, {}, spoil)
    return raised.value, time.monotonic() - began


async def test_a_connection_that_has_gone_silent_while_it_was_idle_is_told_in_time_and_nothing_is_in_doubt(
    database_url: str, proxy: TcpProxy, way: str
) -> None:
    url = make_url(database_url).set(port=proxy.port).render_as_string(hide_password=False)
    database = Database(url, connections_max=2, timeout_seconds=TIMEOUT_SECONDS, asked_after_idle_seconds=0)
    assert await answers(database)
    proxy.blackhole()

    error, seconds = await away(database, way)
    await database.close()

    assert seconds < BOUND_SECONDS
    assert not error.in_doubt, "only the question whether it is there went out"


async def test_connections_that_their_server_has_closed_are_not_lent(database_url: str, way: str) -> None:
    database = Database(database_url, connections_max=2, timeout_seconds=TIMEOUT_SECONDS)
    async with database.statement(), database.statement():
        pass
    # As a restart does; a second has not passed since they were used, so nobody asks them whether they are there.
    closed = rows(
        database_url,
        "SELECT pg_terminate_backend(pid, 5000) AS closed FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )

    await asyncio.gather(*(run(database, way, "SELECT 1", {}) for _ in range(2)))
    await database.close()

    assert closed == [{"closed": True}] * 2


async def test_a_first_connection_that_gets_no_answer_is_told_in_time_and_nothing_is_in_doubt(
    database_url: str, proxy: TcpProxy, way: str
) -> None:
    proxy.blackhole()
    url = make_url(database_url).set(port=proxy.port).render_as_string(hide_password=False)
    database = Database(url, connections_max=2, timeout_seconds=TIMEOUT_SECONDS)

    error, seconds = await away(database, way)
    await database.close()

    assert seconds < BOUND_SECONDS
    assert not error.in_doubt


async def test_a_refused_connection_is_told_at_once_and_nothing_is_in_doubt(
    database: Database, proxy: TcpProxy, way: str
) -> None:
    proxy.refuse()

    error, seconds = await away(database, way)

    assert seconds < TIMEOUT_SECONDS
    assert not error.in_doubt


async def test_a_statement_without_an_answer_is_cut_off_in_doubt_and_its_connection_is_dropped(
    database: Database, proxy: TcpProxy, way: str
) -> None:
    error, seconds = await cut_off(database, way, "SELECT 1", proxy.blackhole)
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
    database: Database, proxy: TcpProxy, database_url: str, way: str
) -> None:
    add = "INSERT INTO users (id, name) VALUES (gen_random_uuid(), :name)"

    with pytest.raises(DatabaseUnavailable) as raised:
        await run(database, way, add, {"name": "ada"}, lambda: proxy.cut_answers(after=b"ada"))

    assert raised.value.in_doubt
    assert rows(database_url, "SELECT name FROM users") == [{"name": "ada"}]


async def test_a_statement_that_postgres_itself_finds_too_slow_is_not_in_doubt(database: Database, way: str) -> None:
    error, _ = await cut_off(database, way, "SELECT pg_sleep(30)", lambda: None)

    assert not error.in_doubt, "Postgres ended it, and said so"
    assert await answers(database)


@pytest.mark.parametrize(
    ("sqlstate", "in_doubt"),
    [("53100", False), ("53200", False), ("40P01", False), ("25006", False), ("08007", True), ("40003", True)],
    ids=["disk full", "out of memory", "deadlock", "read-only", "resolution unknown", "completion unknown"],
)
async def test_what_postgres_says_of_its_own_trouble_is_told_as_the_database_being_away(
    database: Database, sqlstate: str, in_doubt: bool, way: str
) -> None:
    trouble = f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"

    error, _ = await cut_off(database, way, trouble, lambda: None)

    assert (error.in_doubt, error.not_migrated) == (in_doubt, False)


@pytest.mark.parametrize(
    "query",
    ["SELECT * FROM no_such_table", "SELECT no_such_column FROM generations"],
    ids=["new", "of an earlier release"],
)
async def test_a_database_that_was_not_migrated_is_not_there_yet(database: Database, query: str, way: str) -> None:
    error, _ = await cut_off(database, way, query, lambda: None)

    assert (error.in_doubt, error.not_migrated) == (False, True)


async def test_an_error_that_nobody_foresaw_tells_what_was_wrong_and_not_the_row(database: Database, way: str) -> None:
    async with database.statement() as connection:
        await connection.execute(text("CREATE TABLE said (prompt text CHECK (length(prompt) < 3))"))

    with pytest.raises(IntegrityError) as raised:
        await run(database, way, "INSERT INTO said VALUES (:prompt)", {"prompt": "fox-canary"})

    told = "".join(traceback.format_exception(raised.value))
    assert 'violates check constraint "said_prompt_check"' in told
    assert "fox-canary" not in told.replace('{"prompt": "fox-canary"}', "")


async def test_the_queue_for_a_connection_is_told_in_time_and_nothing_is_in_doubt(database: Database, way: str) -> None:
    async with database.statement(), database.statement():
        error, seconds = await away(database, way)

    assert seconds < BOUND_SECONDS
    assert not error.in_doubt
    assert await answers(database)


async def test_statements_that_wait_for_one_row_leave_connections_to_the_others(database_url: str) -> None:
    database = Database(database_url, connections_max=4, timeout_seconds=10)
    wait = prepare("SELECT 1 FROM pg_advisory_xact_lock(1)")

    async def wait_in(queue: str) -> None:
        async with database.direct(queue=queue) as connection:
            await connection.row(wait, {})

    async with database.transaction() as tx:
        await tx.execute(text("SELECT pg_advisory_xact_lock(1)"))
        waiting = [asyncio.create_task(wait_in("ada")) for _ in range(10)]
        while not rows(database_url, "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            await asyncio.sleep(0.01)
        async with database.direct(queue="bob") as connection:
            assert await connection.row(prepare("SELECT 2"), {}) == (2,)
        held_up = rows(database_url, "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    await asyncio.gather(*waiting)
    await database.close()

    assert len(held_up) <= 2


async def test_the_queue_for_a_row_is_told_in_time_and_nothing_is_in_doubt(database_url: str) -> None:
    database = Database(database_url, connections_max=4, timeout_seconds=TIMEOUT_SECONDS)

    async def ask() -> None:
        async with database.direct(queue="ada") as connection:
            await connection.row(prepare("SELECT 1"), {})

    async with database.direct(queue="ada"), database.direct(queue="ada"):
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable) as raised:
            await ask()
    await ask()
    await database.close()

    assert time.monotonic() - began < BOUND_SECONDS
    assert not raised.value.in_doubt


async def test_a_caller_that_is_cancelled_does_not_wait_for_a_silent_server(
    database: Database, proxy: TcpProxy, way: str
) -> None:
    proxy.blackhole()
    asked = asyncio.create_task(run(database, way, "SELECT 1", {}))
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
    assert all(isinstance(error, DatabaseUnavailable) for error in told)
    in_doubt = [error for error in told if isinstance(error, DatabaseUnavailable) and error.in_doubt]
    assert len(in_doubt) == 1, "one connection was there; those that had none to send on have sent nothing"
    proxy.pass_through()
    assert await asyncio.gather(*(answers(database) for _ in range(20))) == [True] * 20


async def test_a_reset_in_the_middle_of_an_answer_is_in_doubt_and_the_pool_lives_on(
    database: Database, proxy: TcpProxy, way: str
) -> None:
    error, _ = await cut_off(database, way, "SELECT repeat('x', 10000)", lambda: proxy.reset_answers(after_bytes=100))
    proxy.pass_through()

    assert error.in_doubt
    assert await answers(database)


async def test_an_answer_that_trickles_in_is_cut_off_in_time(database: Database, proxy: TcpProxy, way: str) -> None:
    error, seconds = await cut_off(
        database, way, "SELECT repeat('x', 10000)", lambda: proxy.trickle(bytes_per_second=20)
    )
    proxy.pass_through()

    assert seconds < BOUND_SECONDS
    assert error.in_doubt
    assert await answers(database)


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [""],
        ["NULL", "null"],
        ["user:1", "all"],
        ['say "fox"', "back\\slash", '\\"', "a,b", "{c}", " d ", "line\nbreak\ttab", "é🦊"],
        ["https://pictures.example/a.png?se=2099-01-01T00%3A00%3A00Z&sig=a+b/c=="],
    ],
)
async def test_texts_come_as_an_array_of_the_same_texts(database: Database, texts: list[str]) -> None:
    async with database.direct() as connection:
        row = await connection.row(prepare("SELECT CAST(:texts AS text[])"), {"texts": array_of(texts)})

    assert row == (texts,)
