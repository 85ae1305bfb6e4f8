"""How are pictures kept in Postgres while storage takes none?

The spool is a storage like any other, so an image that lives in it is served, found, moved and deleted by the same
code. A picture is read in slices, each its own short statement: a client that reads slowly holds no connection.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Self

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.connections.connection import Body
from app.database.pool import Database
from app.database.tables import spool
from app.errors import DatabaseUnavailable
from app.storage.base import (
    CHUNK_BYTES,
    ListedObject,
    ObjectMissing,
    StorageUnavailable,
    StoredObject,
    require_key,
    require_range,
)

SPOOL = "spool"

# A put of 32 MiB has a connection for a second; orders that are reserved and settled meanwhile need the others.
_PUTS_MAX = 2

_PAGE_ROWS = 1000

_PAGE = text("""
SELECT storage_key, size_bytes, greatest(0, extract(epoch FROM now() - created_at)) AS age_seconds FROM spool
WHERE starts_with(storage_key, :prefix) AND storage_key COLLATE "C" > :after
ORDER BY storage_key COLLATE "C" LIMIT :rows""")


@dataclass(frozen=True)
class SpoolUse:
    """What is in the spool: images, and the bytes of them."""

    images: int
    bytes: int


class Spool:
    """The table `spool` as a storage. It does not own the database, and a put is never refused for want of room."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._puts = asyncio.Semaphore(_PUTS_MAX)

    @property
    def name(self) -> str:
        """`spool`: there is one per database."""
        return SPOOL

    async def put(self, key: str, body: Body, *, content_type: str, sha256: bytes | None = None) -> None:
        """As Storage.put: one statement, one transaction."""
        require_key(key)
        row = {"storage_key": key, "body": body, "content_type": content_type, "size_bytes": len(body)}
        replaced = {name: row[name] for name in ("body", "content_type", "size_bytes")}
        statement = insert(spool).values(row).on_conflict_do_update(index_elements=["storage_key"], set_=replaced)
        async with self._puts, self._statement() as connection:
            await connection.execute(statement)

    async def head(self, key: str) -> StoredObject:
        """As Storage.head; never raises CannotTell."""
        require_key(key)
        query = select(spool.c.size_bytes, spool.c.content_type).where(spool.c.storage_key == key)
        async with self._statement() as connection:
            found = (await connection.execute(query)).one_or_none()
        if found is None:
            raise _missing(key)
        return StoredObject(key, found.size_bytes, found.content_type)

    async def read(self, key: str, *, start: int = 0, length: int | None = None) -> "SpoolStream":
        """As Storage.read. The stream raises ObjectMissing when the picture leaves the spool before its end."""
        require_range(start, length)
        bytes_there = max(0, (await self.head(key)).bytes - start)
        return SpoolStream(self, key, start, bytes_there if length is None else min(length, bytes_there))

    async def read_slice(self, key: str, *, start: int, length: int) -> bytes:
        """Return `length` bytes of a picture from `start` on. Raises ObjectMissing, StorageUnavailable."""
        query = select(func.substring(spool.c.body, start + 1, length)).where(spool.c.storage_key == key)
        async with self._statement() as connection:
            found = (await connection.execute(query)).scalar_one_or_none()
        if found is None:
            raise _missing(key)
        return bytes(found)

    async def delete(self, key: str) -> None:
        """As Storage.delete."""
        require_key(key)
        async with self._statement() as connection:
            await connection.execute(delete(spool).where(spool.c.storage_key == key))

    async def objects(self, prefix: str = "") -> AsyncIterator[ListedObject]:
        """As Storage.objects; never raises CannotTell."""
        parameters = {"prefix": prefix, "after": "", "rows": _PAGE_ROWS}
        while True:
            async with self._statement() as connection:
                page = (await connection.execute(_PAGE, parameters)).all()
            if not page:
                return
            for row in page:
                yield ListedObject(row.storage_key, row.size_bytes, float(row.age_seconds))
            parameters["after"] = page[-1].storage_key

    async def check(self) -> None:
        """As Storage.check, as far as can be told without writing."""
        await self.use()

    async def use(self) -> SpoolUse:
        """Return what is in the spool. It reads no bodies: they lie outside of the rows. Raises StorageUnavailable."""
        query = select(func.count(), func.coalesce(func.sum(spool.c.size_bytes), 0)).select_from(spool)
        async with self._statement() as connection:
            images, size_bytes = (await connection.execute(query)).one()
        return SpoolUse(images, int(size_bytes))

    async def close(self) -> None:
        """As Storage.close; the database is closed by who opened it."""

    @asynccontextmanager
    async def _statement(self) -> AsyncIterator[AsyncConnection]:
        with _translated():
            async with self._database.statement() as connection:
                yield connection


class SpoolStream(AsyncIterator[bytes]):
    """The chunks of one picture in the spool, 256 KiB each but for the last. Between two of them nothing is held."""

    def __init__(self, spool: Spool, key: str, start: int, bytes_total: int) -> None:
        self.bytes_total = bytes_total
        self._spool = spool
        self._key = key
        self._start = start
        self._end = start + bytes_total

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._start >= self._end:
            raise StopAsyncIteration
        length = min(CHUNK_BYTES, self._end - self._start)
        chunk = await self._spool.read_slice(self._key, start=self._start, length=length)
        if len(chunk) < length:
            raise StorageUnavailable(SPOOL, f"{self._key} ended {self._end - self._start - len(chunk)} bytes early")
        self._start += length
        return chunk

    async def aclose(self) -> None:
        """Nothing more comes. As often as you like."""
        self._end = self._start


_SWEEP = text("""
DELETE FROM spool WHERE storage_key IN (
    SELECT s.storage_key FROM spool s
    JOIN generations g ON g.storage_stem = regexp_replace(s.storage_key, '-[0-9]+[.][a-z]+$', '')
    -- While it is pending, generated or unknown, this may be the only copy of what was paid for.
    WHERE g.state IN ('completed', 'failed', 'lost') AND NOT EXISTS (
        SELECT FROM images i WHERE i.storage = 'spool' AND i.storage_key = s.storage_key AND i.erased_at IS NULL)
    LIMIT :batch_max)""")


async def sweep(connection: AsyncConnection, *, batch_max: int) -> int:
    """Remove up to `batch_max` pictures from the spool that no image lives in, and return how many went.

    A put whose answer was lost leaves one, when the next try went elsewhere; so does a process that was killed between
    put and MOVE, once its generation has ended otherwise. One statement.
    """
    return (await connection.execute(_SWEEP, {"batch_max": batch_max})).rowcount


def _missing(key: str) -> ObjectMissing:
    return ObjectMissing(SPOOL, f"nothing under {key}")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DatabaseUnavailable as error:
        raise StorageUnavailable(SPOOL, "the database does not answer; try again") from error
    except SQLAlchemyError as error:
        # Raised as it is, it would end who holds the only copy of a paid picture and could still put it elsewhere.
        sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
        raise StorageUnavailable(SPOOL, f"the database refuses ({type(error).__name__}, {sqlstate})") from error
