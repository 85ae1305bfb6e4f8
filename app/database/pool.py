"""How do we speak to Postgres without ever holding a connection longer than a statement?"""

import asyncio
import select
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import psycopg
import sqlalchemy.exc
from sqlalchemy import event
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from app.database.batches import Batches, Seat
from app.database.direct import COMMIT_UNKNOWN, DirectConnection, DriverConnection, as_sqlalchemys, away

# A statement that outlives its caller's patience holds a row lock that others queue for.
_LOCK_SHARE = 0.5
# What a standby answers that was not promoted yet: for an order, as good as away.
_READ_ONLY = "25006"
# What one answers that was made a moment ago, or by an earlier release, until a replica has migrated it: there is no
# such table, no such column.
_NOT_MIGRATED = ("42P01", "42703")
# A connection that was idle for longer is asked whether it is still there before it is lent. Asked each time, it would
# double the round trips; a server that closes a connection is seen without a question.
_ASKED_AFTER_IDLE_SECONDS = 1.0
# Statements that wait for a row lock in Postgres cost it more, the more they are (three of an order: 2.3 ms by one
# connection, 3.2 by two, 5.1 by eight), and have connections that others could use.
_QUEUE_CONNECTIONS_MAX = 2
# What our own deadline leaves Postgres to tell first that it was too slow: then the statement surely had no effect.
_MARGIN_SECONDS = 0.5


@dataclass
class _Lending:
    """How far it came: what is cut off before a connection was lent has surely sent no statement."""

    lent: bool = False


class Database:
    """The pool of connections of one process. Opened once, closed at the end."""

    def __init__(
        self,
        url: str,
        *,
        connections_max: int,
        timeout_seconds: float,
        asked_after_idle_seconds: float = _ASKED_AFTER_IDLE_SECONDS,
    ) -> None:
        statement_ms = int(timeout_seconds * 1000)
        self._engine: AsyncEngine = create_async_engine(
            url,
            pool_size=connections_max,
            max_overflow=0,
            pool_timeout=timeout_seconds,
            # Set once for each connection, not each time it is lent; `transaction` asks for another level itself. What
            # was committed needs no ROLLBACK on its way back.
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            # Parameters hold prompts and digests; SQLAlchemy would print them into every error.
            hide_parameters=True,
            connect_args={
                "async_creator_fn": DriverConnection.connect,
                # psycopg forgets its prepared statements with each ROLLBACK, and tells Postgres to forget all: those of
                # DirectConnection, too. It has none of its own this way.
                "prepare_threshold": None,
                "connect_timeout": max(2, int(timeout_seconds)),
                "application_name": "imagekeep",
                # A peer that vanished without a word is found out in seconds; TCP alone takes a quarter of an hour.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": statement_ms,
                "options": f"-c statement_timeout={statement_ms} -c lock_timeout={int(statement_ms * _LOCK_SHARE)}"
                f" -c idle_in_transaction_session_timeout={statement_ms} -c timezone=UTC",
            },
        )
        self._transactional = self._engine.execution_options(isolation_level="READ COMMITTED")
        _look_before_lending(self._engine, asked_after_idle_seconds)
        self._queues: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()
        self._batches = Batches(self.direct, answer_seconds_max=timeout_seconds + 2 * _MARGIN_SECONDS)
        self.timeout_seconds = timeout_seconds

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection on which each statement is its own transaction, committed when it returns.

        Raises DatabaseUnavailable when Postgres can't be reached or doesn't answer in time: the wait for a free
        connection, connecting, and everything done inside share `timeout_seconds`. A connection that was cut off then
        is dropped. Nothing but the database may be awaited inside.
        """
        async with self._in_time() as lending, self._engine.connect() as connection:
            lending.lent = True
            yield connection

    @asynccontextmanager
    async def direct(self, *, queue: Hashable = None) -> AsyncIterator[DirectConnection]:
        """As `statement`, with nothing of SQLAlchemy's around it: for what every order runs. Raises as above.

        Those of one `queue` want the same row, so two at most have a connection, one to work and one to be next.
        """
        async with self._in_time() as lending, self._turn(queue):
            try:
                lent = await self._engine.raw_connection()
            except psycopg.Error as error:
                raise as_sqlalchemys(error, broken_off=True) from error
            driver_connection = lent.driver_connection
            assert isinstance(driver_connection, DriverConnection)
            try:
                lending.lent = True
                yield DirectConnection(driver_connection)
            finally:
                # One that was cut off is of no use to the next.
                await greenlet_spawn(lent.invalidate if driver_connection.closed else lent.close)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection inside one transaction: committed at the end, rolled back on an error. Raises as above."""
        async with self._in_time() as lending, self._transactional.begin() as connection:
            lending.lent = True
            yield connection

    @asynccontextmanager
    async def _turn(self, queue: Hashable) -> AsyncIterator[None]:
        if queue is None:
            yield
            return
        # Kept here too, until the last who waits has had it.
        turns = self._queues.setdefault(queue, asyncio.Semaphore(_QUEUE_CONNECTIONS_MAX))
        async with asyncio.timeout(self.timeout_seconds):
            await turns.acquire()
        try:
            yield
        finally:
            turns.release()

    def seat(self, scopes: tuple[str, ...]) -> Seat:
        """Return what runs an order's statements along with those of others; it locks the budgets of `scopes`."""
        return Seat(self._batches, scopes)

    async def close(self) -> None:
        """Close every connection."""
        await self._batches.close()
        await self._engine.dispose()

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[_Lending]:
        """Turn what is raised for a database that isn't there, or too slow, into DatabaseUnavailable."""
        lending = _Lending()
        try:
            # Postgres's own timeouts end a statement on a server that works. One that is frozen, or behind a network
            # that swallows everything, says nothing at all; and only a limit around the whole also bounds the sum of
            # the queue, the look at the connection, a new one and the statement.
            async with asyncio.timeout(self.timeout_seconds + _MARGIN_SECONDS):
                yield lending
        except TimeoutError as error:
            raise away(in_doubt=lending.lent) from error
        except sqlalchemy.exc.SQLAlchemyError as error:
            _withhold_row(error)
            broken_off = isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
            not_there = isinstance(error, sqlalchemy.exc.TimeoutError | sqlalchemy.exc.OperationalError)
            sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
            if broken_off or not_there or sqlstate in (_READ_ONLY, *_NOT_MIGRATED):
                unavailable = away(in_doubt=lending.lent and (broken_off or sqlstate in COMMIT_UNKNOWN))
                unavailable.not_migrated = sqlstate in _NOT_MIGRATED
                raise unavailable from error
            raise


def _look_before_lending(engine: AsyncEngine, asked_after_idle_seconds: float) -> None:
    """Let no caller have a connection that its server has closed: a Postgres that was restarted leaves a pool of them,
    and the first caller of each would get a 503 for a database that is up.
    """

    def note_return(_: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        entry.info["idle_since"] = time.monotonic()

    def look(connection: DBAPIConnection, entry: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        idle_since = entry.info.pop("idle_since", None)
        if idle_since is None:
            # It was opened just now.
            return
        is_idle = time.monotonic() - idle_since > asked_after_idle_seconds
        if _was_closed(connection.driver_connection) or (is_idle and not _answers(engine.dialect, connection)):
            # The others were opened before the same restart, most likely: they are opened anew as well.
            raise sqlalchemy.exc.InvalidatePoolError

    event.listen(engine.sync_engine, "checkin", note_return)
    event.listen(engine.sync_engine, "checkout", look)


def _was_closed(driver_connection: Any) -> bool:
    """Whether the server has closed an idle connection, as far as was heard of it. Asks nobody."""
    if driver_connection.closed:
        return True
    # What is there to be read of an idle connection is the server's last word: it has no other for an idle client.
    poll = select.poll()
    poll.register(driver_connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


def _answers(dialect: Dialect, connection: DBAPIConnection) -> bool:
    try:
        return dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error:
        return False


def _withhold_row(error: sqlalchemy.exc.SQLAlchemyError) -> None:
    """Cut an error of Postgres down to its first line: the DETAIL below it quotes the row, prompt and all."""
    cause = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else None
    if isinstance(cause, psycopg.Error) and cause.diag.message_primary is not None:
        cause.args = (cause.diag.message_primary,)
        error.args = (f"({type(cause).__name__}) {cause.diag.message_primary}",)
