"""How does a statement that every order runs go to Postgres with as little around it as can be?

Measured for RESERVE and two MOVEs through one limited row, CPU of this process: 6.6 ms as SQLAlchemy runs them, 2.0 ms
this way. Half of the difference is that text() reads a statement of 8,000 characters anew each time, and psycopg one of
more than 4,096; the rest is what SQLAlchemy puts around a connection, a statement and a row.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg import abc
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait, wait_async
from sqlalchemy import text
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg
from sqlalchemy.exc import DBAPIError, StatementError

from app.errors import DatabaseUnavailable

T = TypeVar("T")

_DIALECT = PGDialectAsync_psycopg(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]

# What is said by a server that doesn't know itself whether it has committed, or that was told to stop while it did.
COMMIT_UNKNOWN = ("08007", "40003", "57P01", "57P02")

_OPEN = (TransactionStatus.INTRANS, TransactionStatus.INERROR)

# One row, in the order in which the statement names its columns.
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Statement:
    """A statement as Postgres takes it, and which parameter is which of its numbers."""

    sql: bytes = field(repr=False)
    names: tuple[str, ...]
    # Under which a connection keeps it prepared.
    name: bytes


def prepare(written: str) -> Statement:
    """Return a statement that was written with `:name` for each parameter, as in SQLAlchemy's text().

    Parameters go to Postgres as text, without a type. So where nothing else tells which it is, cast it.
    """
    compiled = text(written).compile(dialect=_DIALECT)
    sql = str(compiled).encode()
    return Statement(sql, tuple(compiled.positiontup or ()), f"ik_{hashlib.sha256(sql).hexdigest()[:32]}".encode())


def array_of(texts: Iterable[str]) -> str:
    """Return what Postgres reads as an array of these texts, for a parameter that is cast to one.

    Given a list, psycopg looks through it twice for what is in it: with three of them in an order's statements that
    was a fiftieth of all that an order costs.
    source: postgresql.org/docs/current/arrays.html (8.15.6), 2026-11-23.
    """
    quoted = (one.replace("\\", "\\\\").replace('"', '\\"') for one in texts)
    return "{" + ",".join(f'"{one}"' for one in quoted) + "}"


class Runs(Protocol):
    """What runs a statement of an order: a connection, or a seat in a batch."""

    async def row(self, statement: Statement, parameters: Mapping[str, object]) -> Row | None:
        """As DirectConnection.row."""


# A statement with its parameters as Postgres takes them.
_Bound = tuple[Statement, Sequence[Buffer | None]]

_BEGIN: _Bound = (prepare("BEGIN ISOLATION LEVEL READ COMMITTED"), ())
_COMMIT: _Bound = (prepare("COMMIT"), ())


# What is said of a prepared statement that the server doesn't have: surely nothing was done.
_NOT_PREPARED = "26000"


class DriverConnection(psycopg.AsyncConnection[tuple[object, ...]]):
    """psycopg's connection, which a cancelled caller leaves at once, and which knows what DirectConnection needs of it.

    psycopg's own asks the server to cancel the statement, over a second connection, and then waits for the end of the
    first: 5 s each, spent on a server that is cut off for not answering.
    """

    # Which statements of ours the server has prepared.
    prepared: set[bytes]
    # How it speaks Python's types.
    transformer: abc.Transformer

    def __init__(self, pgconn: PGconn, *arguments: Any, **named: Any) -> None:
        """As psycopg makes it."""
        super().__init__(pgconn, *arguments, **named)
        self.prepared = set()
        self.transformer = Transformer(self)

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:  # noqa: ASYNC109
        """Wait for the server, as psycopg's own does but for a cancellation."""
        try:
            return await wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise


class NothingDone(Exception):
    """A transaction failed and was rolled back whole."""


class DirectConnection:
    """A connection without SQLAlchemy around it, and without psycopg's cursors: lent by `Database.direct`.

    A cursor for each statement, which sends and is waited for by itself, took as long as all that SQLAlchemy had left.
    Here all go out in one piece, by psycopg's own hold on libpq.
    """

    def __init__(self, driver_connection: DriverConnection) -> None:
        self._driver_connection = driver_connection

    async def row(self, statement: Statement, parameters: Mapping[str, object]) -> Row | None:
        """Run a statement in a transaction of its own, and return its first row; None without one.

        What `parameters` hold beyond the statement's own is left aside. Raises as SQLAlchemy does: DBAPIError of the
        kind that psycopg told.
        """
        try:
            bound = [self._bound(statement, parameters)]
            try:
                (answer,) = await self._answers(bound)
            except psycopg.Error as error:
                if error.sqlstate != _NOT_PREPARED:
                    raise
                # Somebody had the server forget it (DISCARD ALL, say).
                (answer,) = await self._answers(bound)
        except psycopg.Error as error:
            raise as_sqlalchemys(error, broken_off=self._driver_connection.closed) from error
        if isinstance(row := self._first_row(answer), StatementError):
            raise row
        return row

    async def rows(self, work: Sequence[tuple[Statement, Mapping[str, object]]]) -> list[Row | StatementError | None]:
        """Run statements in one transaction, sent at once, and return the first row of each, or why it can't be read.

        Raises NothingDone when one of them failed, whichever it was, and as `row` when it is not sure that nothing was
        done.
        """
        try:
            bound = [self._bound(statement, parameters) for statement, parameters in work]
        except Exception as error:
            # A parameter that is missing, or is no text: nothing was sent.
            raise NothingDone from error
        try:
            _, *answers, _ = await self._answers([_BEGIN, *bound, _COMMIT])
        except psycopg.Error as error:
            # Only a transaction that is still open was surely not committed: a server that is told to stop while it
            # commits answers the COMMIT, then says so, and it may take a while until it hangs up.
            if self._driver_connection.info.transaction_status not in _OPEN:
                await self._driver_connection.close()
                raise as_sqlalchemys(error, broken_off=True) from error
            with suppress(psycopg.Error):
                await self._driver_connection.rollback()
            raise NothingDone from error
        return [self._first_row(answer) for answer in answers]

    def _bound(self, statement: Statement, parameters: Mapping[str, object]) -> _Bound:
        values = [parameters[name] for name in statement.names]
        # As text, and of no type: Postgres takes each for what it is cast to, or compared with. A type that goes by the
        # value, as psycopg has for integers, would make another statement of each combination.
        return statement, self._driver_connection.transformer.dump_sequence(values, [PyFormat.TEXT] * len(values))

    async def _answers(self, bound: Sequence[_Bound]) -> list[PGresult]:
        """Send statements in one piece, prepared where they were not yet, and return the answer to each.

        Raises psycopg.Error of the first that failed: those after it were not looked at.
        """
        pgconn, steps = self._driver_connection.pgconn, list(self._steps(bound))
        try:
            pgconn.enter_pipeline_mode()
            for statement, values in steps:
                if values is None:
                    pgconn.send_prepare(statement.name, statement.sql)
                else:
                    pgconn.send_query_prepared(statement.name, values)
            pgconn.pipeline_sync()
            answers = await self._driver_connection.wait(_fetch(pgconn))
            pgconn.exit_pipeline_mode()
        except BaseException:
            # Whoever has it next would read the answers to this.
            pgconn.finish()
            raise
        for (statement, values), answer in zip(steps, answers, strict=False):
            if answer.status == ExecStatus.FATAL_ERROR:
                error = psycopg.errors.error_from_result(answer)
                if error.sqlstate == _NOT_PREPARED:
                    self._driver_connection.prepared.discard(statement.name)
                raise error
            if values is None:
                self._driver_connection.prepared.add(statement.name)
        if len(answers) > len(steps):
            # Of the commit that the end of all brings about.
            raise psycopg.errors.error_from_result(answers[-1])
        return [answer for (_, values), answer in zip(steps, answers, strict=True) if values is not None]

    def _steps(self, bound: Sequence[_Bound]) -> Iterator[tuple[Statement, Sequence[Buffer | None] | None]]:
        """Put before each statement that this connection doesn't know that it is to be prepared: no values."""
        begun: set[bytes] = set()
        for statement, values in bound:
            if statement.name not in self._driver_connection.prepared and statement.name not in begun:
                begun.add(statement.name)
                yield statement, None
            yield statement, values

    def _first_row(self, answer: PGresult) -> Row | StatementError | None:
        if answer.ntuples == 0:
            return None
        transformer = self._driver_connection.transformer
        try:
            transformer.set_pgresult(answer)
            return transformer.load_row(0, tuple)
        except psycopg.Error as error:
            # A time that Python has none for, say. What was done is done, and others share it.
            unreadable = as_sqlalchemys(error, broken_off=False)
            unreadable.__cause__ = error
            return unreadable
        finally:
            # A row holds a prompt, and a connection lives for weeks.
            transformer.set_pgresult(None)


def _fetch(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """Send what is to be sent, and return all answers. In psycopg's way: yields what it waits for."""
    answers: list[PGresult] = []
    ended = False
    while True:
        while pgconn.flush():
            if (yield Wait.RW) & Ready.R:
                pgconn.consume_input()
        while pgconn.is_busy():
            if (yield Wait.R):
                pgconn.consume_input()
        answer = pgconn.get_result()
        if answer is None and ended:
            raise psycopg.OperationalError("the answers have no end")
        # One None stands behind each answer.
        ended = answer is None
        if answer is not None and answer.status == ExecStatus.PIPELINE_SYNC:
            return answers
        if answer is not None:
            answers.append(answer)


def away(*, in_doubt: bool) -> DatabaseUnavailable:
    """Return what is raised for a Postgres that can't be reached or is too slow; `in_doubt`: it may have done it."""
    unavailable = DatabaseUnavailable(retry_after_seconds=2)
    unavailable.in_doubt = in_doubt
    return unavailable


def as_sqlalchemys(error: psycopg.Error, *, broken_off: bool) -> StatementError:
    """Return an error of psycopg's in the words that SQLAlchemy has for it."""
    return DBAPIError.instance("", None, error, psycopg.Error, hide_parameters=True, connection_invalidated=broken_off)
