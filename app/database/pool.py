"""How do we speak to Postgres without ever holding a connection longer than a statement?"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy.exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import DatabaseUnavailable

# A statement that outlives its caller's patience holds a row lock that others queue for.
_LOCK_SHARE = 0.5
# What a standby answers that was not promoted yet: for an order, as good as away.
_READ_ONLY = "25006"


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

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection on which each statement is its own transaction, committed when it returns.

        Raises DatabaseUnavailable when Postgres can't be reached or doesn't answer in time. Nothing but the database
        may be awaited inside.
        """
        with _translated():
            async with self._autocommit.connect() as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection inside one transaction: committed at the end, rolled back on an error. Raises as above."""
        with _translated():
            async with self._engine.begin() as connection:
                yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


class _translated:
    """Turns what SQLAlchemy raises for a database that isn't there into DatabaseUnavailable."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        broken_off = isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
        away = isinstance(error, sqlalchemy.exc.TimeoutError | sqlalchemy.exc.OperationalError)
        read_only = isinstance(error, sqlalchemy.exc.DBAPIError) and getattr(error.orig, "sqlstate", "") == _READ_ONLY
        if broken_off or away or read_only:
            unavailable = DatabaseUnavailable(retry_after_seconds=2)
            unavailable.in_doubt = broken_off
            raise unavailable from error
