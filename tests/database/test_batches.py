"""Do statements that share a transaction succeed and fail apart, and does nobody wait long for another's budget?"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError

from app.database.direct import Row, prepare
from app.database.pool import Database
from app.errors import DatabaseUnavailable
from tests.service import rows
from tests.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 2.0
# The timeout, what Postgres gets to tell first, and what a busy machine takes.
BOUND_SECONDS = 5.0

ADD = prepare("INSERT INTO users (id, name) VALUES (gen_random_uuid(), :name) RETURNING name")
TRANSACTION = prepare("SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint), CAST(:number AS int)")
SLEEP = prepare("SELECT 'slept' FROM pg_sleep(:seconds)")
TAKE_SLOWLY = prepare(
    "WITH taken AS MATERIALIZED (SELECT scope FROM budgets WHERE scope = :scope FOR UPDATE)"
    " SELECT scope FROM taken, pg_sleep(0.01)"
)
# As the statements of an order do.
TAKE = prepare("SELECT scope FROM budgets WHERE scope = :scope FOR UPDATE")


@pytest.fixture
async def database(database_url: str, proxy: TcpProxy) -> AsyncIterator[Database]:
    url = make_url(database_url).set(port=proxy.port).render_as_string(hide_password=False)
    opened = Database(url, connections_max=4, timeout_seconds=TIMEOUT_SECONDS)
    yield opened
    await opened.close()


async def add(database: Database, name: str) -> Row | None:
    return await database.seat(("all",)).row(ADD, {"name": name})


async def busy(database: Database, seconds: float = 0.1) -> asyncio.Task[Row | None]:
    """A statement that is at work: what comes now goes together."""
    task = asyncio.create_task(database.seat(("all",)).row(SLEEP, {"seconds": seconds}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_what_comes_while_another_is_at_work_shares_one_transaction(database: Database) -> None:
    seat = database.seat(("all",))
    first = await busy(database)

    answers = await asyncio.gather(*(seat.row(TRANSACTION, {"number": number}) for number in range(20)))

    assert await first == ("slept",)
    assert [answer and answer[1] for answer in answers] == list(range(20))
    assert len({answer and answer[0] for answer in answers}) == 1


async def test_a_statement_that_nobody_is_before_is_a_transaction_of_its_own(database: Database) -> None:
    seat = database.seat(("all",))

    answers = [await seat.row(TRANSACTION, {"number": number}) for number in range(3)]

    assert len({answer and answer[0] for answer in answers}) == 3


async def test_one_that_fails_fails_alone(database: Database, database_url: str) -> None:
    first = await busy(database)

    answers = await asyncio.gather(
        *(add(database, name) for name in ("ada", "bob", "ada", "cleo")), return_exceptions=True
    )
    await first

    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    assert [type(error) for error in failed] == [IntegrityError]
    assert "Key (name)" not in str(failed[0]), "it quotes no row"
    assert rows(database_url, "SELECT name FROM users ORDER BY name") == [
        {"name": "ada"},
        {"name": "bob"},
        {"name": "cleo"},
    ]
    assert await add(database, "dora") == ("dora",)


@pytest.mark.parametrize("name", ["half a pair: \ud83e", object()], ids=["no text", "no value"])
async def test_one_that_can_not_be_sent_fails_alone(database: Database, name: object) -> None:
    first = await busy(database)
    fails = asyncio.create_task(database.seat(("all",)).row(ADD, {"name": name}))
    misses = asyncio.create_task(database.seat(("all",)).row(ADD, {}))

    answers = await asyncio.gather(add(database, "ada"), fails, misses, add(database, "bob"), return_exceptions=True)
    await first

    assert (answers[0], answers[3]) == (("ada",), ("bob",))
    assert isinstance(answers[1], UnicodeEncodeError | ProgrammingError)
    assert isinstance(answers[2], KeyError)
    assert await add(database, "cleo") == ("cleo",)


async def test_the_first_batch_of_a_connection_may_fail_and_the_next_one_works(database: Database) -> None:
    for names in (("ada", "ada"), ("bob", "cleo")):
        first = await busy(database)
        answers = await asyncio.gather(*(add(database, name) for name in names), return_exceptions=True)
        await first

    assert answers == [("bob",), ("cleo",)]


async def test_somebody_who_holds_one_budget_holds_up_no_other(database: Database, database_url: str) -> None:
    rows(database_url, "INSERT INTO budgets (scope, day) VALUES ('user:a', now()), ('user:b', now()) RETURNING scope")
    operator = Database(database_url, connections_max=1, timeout_seconds=20)
    async with operator.transaction() as tx:
        await tx.execute(text("SELECT FROM budgets WHERE scope = 'user:a' FOR UPDATE"))
        first = await busy(database)
        began = time.monotonic()
        held_up = asyncio.create_task(database.seat(("user:a",)).row(TAKE, {"scope": "user:a"}))
        other = await database.seat(("user:b",)).row(TAKE, {"scope": "user:b"})
        seconds = time.monotonic() - began
        is_held_up = not held_up.done()

    await operator.close()
    assert (other, is_held_up) == (("user:b",), True)
    assert seconds < TIMEOUT_SECONDS / 2, "that of Postgres for a lock is half of the timeout"
    assert await held_up == ("user:a",)
    await first


async def test_one_that_waits_alone_holds_up_no_other(database: Database) -> None:
    slow = await busy(database, seconds=1)
    began = time.monotonic()

    await add(database, "ada")

    assert time.monotonic() - began < 0.8
    assert await slow == ("slept",)


async def test_two_processes_that_lock_the_same_budgets_never_wait_for_each_other(
    database: Database, database_url: str
) -> None:
    rows(
        database_url,
        "INSERT INTO budgets (scope, day) SELECT 'user:' || n, now() FROM generate_series(0, 9) n RETURNING 1",
    )
    other = Database(database_url, connections_max=4, timeout_seconds=TIMEOUT_SECONDS)

    async def take(one: Database, numbers: list[int]) -> None:
        await asyncio.gather(
            *(one.seat((f"user:{number}",)).row(TAKE_SLOWLY, {"scope": f"user:{number}"}) for number in numbers)
        )

    for _ in range(5):
        await asyncio.gather(take(database, list(range(10))), take(other, list(reversed(range(10)))))
    await other.close()
    await database.close()
    # What a backend has counted is known once it has ended.
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    while rows(database_url, others):
        await asyncio.sleep(0.01)

    # One that gives up waiting for the other is rolled back.
    ended = rows(database_url, "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()")
    assert ended == [{"xact_rollback": 0}]


async def test_a_batch_whose_answer_is_lost_is_in_doubt_for_each(
    database: Database, database_url: str, proxy: TcpProxy
) -> None:
    first = await busy(database)
    proxy.cut_answers(after=b"cleo")

    answers = await asyncio.gather(*(add(database, name) for name in ("ada", "bob", "cleo")), return_exceptions=True)
    proxy.pass_through()
    await first

    assert [isinstance(answer, DatabaseUnavailable) and answer.in_doubt for answer in answers] == [True] * 3
    assert len({id(answer) for answer in answers}) == 3
    assert len(rows(database_url, "SELECT name FROM users")) == 3


@asynccontextmanager
async def stopping_postgres(database_url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A way to Postgres, and an event: once it is set, the server is told to stop while it commits a batch.

    It answers the COMMIT then, says so, and hangs up a little later, as Postgres 15 was seen to do.
    """
    told = asyncio.Event()
    url = make_url(database_url)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while sent := await reader.read(65_536):
            writer.write(sent)
        writer.write_eof()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(5)
            message = head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
            writer.write(message)
            if told.is_set() and message.endswith(b"COMMIT\0"):
                writer.write(b"E" + (len(FATAL) + 4).to_bytes(4, "big") + FATAL)
                await writer.drain()
                return await asyncio.sleep(0.1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(url.host, url.port)
        sending = asyncio.create_task(pass_on(reader, to_server))
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await answer(from_server, writer)
        sending.cancel()
        for each in (writer, to_server):
            each.close()
            with suppress(ConnectionError):
                await each.wait_closed()

    serving: set[asyncio.Task[None]] = set()
    server = await asyncio.start_server(
        lambda *streams: serving.add(asyncio.create_task(serve(*streams))), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    yield url.set(port=port).render_as_string(hide_password=False) + "?sslmode=disable&gssencmode=disable", told
    server.close()
    await asyncio.gather(*serving)


FATAL = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"


async def test_a_batch_that_is_committed_while_its_server_stops_is_in_doubt_and_not_done_again(
    database_url: str,
) -> None:
    async with stopping_postgres(database_url) as (url, told):
        database = Database(url, connections_max=2, timeout_seconds=TIMEOUT_SECONDS)
        # What SQLAlchemy asks over its first connection ends with a COMMIT too.
        await add(database, "before")
        first = await busy(database)
        told.set()

        answers = await asyncio.gather(
            *(add(database, name) for name in ("ada", "bob", "cleo")), return_exceptions=True
        )
        await asyncio.gather(first, return_exceptions=True)
        await database.close()

    assert [isinstance(answer, DatabaseUnavailable) and answer.in_doubt for answer in answers] == [True] * 3
    assert len(rows(database_url, "SELECT name FROM users")) == 4


async def test_what_nobody_waits_for_any_more_is_not_sent(database_url: str) -> None:
    database = Database(database_url, connections_max=1, timeout_seconds=TIMEOUT_SECONDS)
    async with database.statement():
        alone, together, stays = [asyncio.create_task(add(database, name)) for name in ("ada", "bob", "cleo")][:3]
        # The first waits for a connection by itself, then the others do together.
        await asyncio.sleep(0.4)
        alone.cancel()
        together.cancel()
        await asyncio.wait({alone, together})
    assert await stays == ("cleo",)
    await database.close()

    assert rows(database_url, "SELECT name FROM users") == [{"name": "cleo"}]


async def test_at_a_silent_server_all_are_told_in_time_and_only_what_was_sent_is_in_doubt(
    database: Database, proxy: TcpProxy
) -> None:
    first = await busy(database, seconds=0)
    await first
    proxy.blackhole()
    began = time.monotonic()

    answers = await asyncio.gather(*(add(database, f"user {number}") for number in range(100)), return_exceptions=True)

    assert time.monotonic() - began < BOUND_SECONDS
    assert all(isinstance(answer, DatabaseUnavailable) for answer in answers)
    in_doubt = [answer for answer in answers if isinstance(answer, DatabaseUnavailable) and answer.in_doubt]
    assert 0 < len(in_doubt) < 100
    proxy.pass_through()
    assert await add(database, "ada") == ("ada",)


async def test_one_that_is_cancelled_takes_no_other_along(database: Database) -> None:
    first = await busy(database)
    gone, stays = (asyncio.create_task(add(database, name)) for name in ("ada", "bob"))
    await asyncio.sleep(0)
    gone.cancel()

    with pytest.raises(asyncio.CancelledError):
        await gone

    assert (await stays, await first) == (("bob",), ("slept",))


async def test_closing_tells_who_waits_still_that_it_may_have_been_done(database_url: str) -> None:
    database = Database(database_url, connections_max=2, timeout_seconds=TIMEOUT_SECONDS)
    first = await busy(database, seconds=5)
    waiting = asyncio.create_task(add(database, "ada"))
    await asyncio.sleep(0.05)

    await database.close()

    for task in (first, waiting):
        with pytest.raises(DatabaseUnavailable):
            await asyncio.wait_for(task, 1)
