"""How do we speak to Postgres without ever holding a connection longer than a statement?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import psycopg
import sqlalchemy.exc
from psycopg.abc import PQGen
from psycopg.waiting import wait_async
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import DatabaseUnavailable

# A statement that outlives its caller's patience holds a row lock that others queue for.
_LOCK_SHARE = 0.5
# What a standby answers that was not promoted yet: for an order, as good as away.
_READ_ONLY = "25006"
# What one answers that was made a moment ago, or by an earlier release, until a replica has migrated it: there is no
# such table, no such column.
_NOT_MIGRATED = ("42P01", "42703")
# What is said by one that doesn't know itself whether it has committed.
_COMMIT_UNKNOWN = ("08007", "40003")
# What our own deadline leaves Postgres to tell first that it was too slow: then the statement surely had no effect.
_MARGIN_SECONDS = 0.5

T = TypeVar("T")


class _DroppedWhenCutOff(psycopg.AsyncConnection[tuple[object, ...]]):
    """A connection that a cancelled caller leaves at once.

    psycopg's own asks the server to cancel the statement, over a second connection, and then waits for the end of the
    first: 5 s each, spent on a server that is cut off for not answering.
    """

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:  # noqa: ASYNC109
        """Wait for the server, as psycopg's own does but for a cancellation."""
        try:
            return await wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise


@dataclass
class _Lending:
    """How far it came: what is cut off before a connection was lent has surely sent no statement."""

    lent: bool = False


class Database:
    """The pool of connections of one process. Opened once, closed at the end."""

    def __init__(self, url: str, *, connections_max: int, timeout_seconds: float) -> None:
        statement_ms = int(timeout_seconds * 1000)
        self._engine: AsyncEngine = create_async_engine(
            url,
            pool_size=connections_max,
            max_overflow=0,
            pool_timeout=timeout_seconds,
            # A Postgres that was restarted leaves dead connections in the pool; without the ping the first caller of
            # each gets a 503 for a database that is up.
            pool_pre_ping=True,
            # Parameters hold prompts and digests; SQLAlchemy would print them into every error.
            hide_parameters=True,
            connect_args={
                "async_creator_fn": _DroppedWhenCutOff.connect,
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
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self.timeout_seconds = timeout_seconds

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection on which each statement is its own transaction, committed when it returns.

        Raises DatabaseUnavailable when Postgres can't be reached or doesn't answer in time: the wait for a free
        connection, connecting, and everything done inside share `timeout_seconds`. A connection that was cut off then
        is dropped. Nothing but the database may be awaited inside.
        """
        async with self._in_time() as lending, self._autocommit.connect() as connection:
            lending.lent = True
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection inside one transaction: committed at the end, rolled back on an error. Raises as above."""
        async with self._in_time() as lending, self._engine.begin() as connection:
            lending.lent = True
            yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[_Lending]:
        """Turn what is raised for a database that isn't there, or too slow, into DatabaseUnavailable."""
        lending = _Lending()
        try:
            # Postgres's own timeouts end a statement on a server that works. One that is frozen, or behind a network
            # that swallows everything, says nothing at all; and only a limit around the whole also bounds the sum of
            # the queue, the ping, the new connection and the statement.
            async with asyncio.timeout(self.timeout_seconds + _MARGIN_SECONDS):
                yield lending
        except TimeoutError as error:
            raise _unavailable(in_doubt=lending.lent) from error
        except sqlalchemy.exc.SQLAlchemyError as error:
            _withhold_row(error)
            broken_off = isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
            away = isinstance(error, sqlalchemy.exc.TimeoutError | sqlalchemy.exc.OperationalError)
            sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
            if broken_off or away or sqlstate in (_READ_ONLY, *_NOT_MIGRATED):
                unavailable = _unavailable(in_doubt=lending.lent and (broken_off or sqlstate in _COMMIT_UNKNOWN))
                unavailable.not_migrated = sqlstate in _NOT_MIGRATED
                raise unavailable from error
            raise


def _withhold_row(error: sqlalchemy.exc.SQLAlchemyError) -> None:
    """Cut an error of Postgres down to its first line: the DETAIL below it quotes the row, prompt and all."""
    cause = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else None
    if isinstance(cause, psycopg.Error) and cause.diag.message_primary is not None:
        cause.args = (cause.diag.message_primary,)
        error.args = (f"({type(cause).__name__}) {cause.diag.message_primary}",)


def _unavailable(*, in_doubt: bool) -> DatabaseUnavailable:
    unavailable = DatabaseUnavailable(retry_after_seconds=2)
    unavailable.in_doubt = in_doubt
    return unavailable
