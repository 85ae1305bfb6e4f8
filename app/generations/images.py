"""What becomes of an image after it was made: how is it found, read, deleted, and moved to another storage?"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import structlog
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app import telemetry
from app.database.pool import Database
from app.database.tables import images as images_table
from app.errors import StorageUnavailable
from app.generations.records import IMAGE_COLUMNS, Generation, Image, columns_of
from app.generations.spool import SPOOL
from app.generations.stores import Stores
from app.storage.base import Chunks, ObjectMissing, Storage, StorageError

log = structlog.get_logger(__name__)

# One picture, to a storage that answers: longer, and its connection hangs.
_PATIENCE_SECONDS = 60


async def find(connection: AsyncConnection, image_id: str) -> Image | None:
    """Return an image by the id in its permanent URL, a deleted one too; None when there is none."""
    query = select(*(images_table.c[name] for name in IMAGE_COLUMNS)).where(images_table.c.id == image_id)
    row = (await connection.execute(query)).mappings().one_or_none()
    return Image(**row) if row is not None else None


async def read(
    database: Database, storages: Mapping[str, Storage], image: Image, *, start: int = 0, length: int | None = None
) -> AsyncIterator[bytes]:
    """Open an image wherever it lives and return its bytes in chunks, from `start` on, `length` of them or all.

    An image that is moved meanwhile is read on where it lives then. Raises StorageUnavailable before the first byte
    when its storage is not configured or doesn't answer, and also when the object is not there: a completed image's
    bytes are somewhere, so that is the operator's fault.
    """
    image, chunks = await _open(database, storages, image, start=start, length=length)
    return _read_on(database, storages, image, chunks, start=start)


async def _open(
    database: Database, storages: Mapping[str, Storage], image: Image, *, start: int, length: int | None
) -> tuple[Image, Chunks]:
    """Open an image where it lives, or where it lives now: it may have been moved since its row was read."""
    while True:
        storage = storages.get(image.storage)
        if storage is None:
            log.error("image_storage_not_configured", image_id=image.id, storage=image.storage)
            raise StorageUnavailable(retry_after_seconds=60)
        try:
            return image, await storage.read(image.storage_key, start=start, length=length)
        except StorageError as error:
            now = await _find_moved(database, image) if isinstance(error, ObjectMissing) else None
            if now is None:
                log.error("image_not_read", image_id=image.id, storage=image.storage, detail=str(error))
                raise StorageUnavailable(retry_after_seconds=10) from error
            image = now


async def _read_on(
    database: Database, storages: Mapping[str, Storage], image: Image, chunks: Chunks, *, start: int
) -> AsyncIterator[bytes]:
    end = start + chunks.bytes_total
    try:
        while True:
            try:
                async for chunk in chunks:
                    start += len(chunk)
                    yield chunk
                return
            except ObjectMissing:
                image, chunks = await _open(database, storages, image, start=start, length=end - start)
    finally:
        await chunks.aclose()


async def _find_moved(database: Database, image: Image) -> Image | None:
    """Return an image as it is now, if it lives elsewhere than it is known to; None when it does not."""
    async with database.statement() as connection:
        now = await find(connection, image.id)
    if now is None or now.deleted_at is not None:
        return None
    return now if (now.storage, now.storage_key) != (image.storage, image.storage_key) else None


async def delete(database: Database, stores: Stores, generation: Generation) -> None:
    """Delete a generation's images for good: its URLs answer 410 when this returns, and its prompts are gone.

    The bytes are erased at once where storage answers; else recovery goes on until they are. Raises
    DatabaseUnavailable.
    """
    async with database.statement() as connection:
        deleted = await _mark_deleted(connection, generation.id)
    for image in deleted:
        await _erase(database, stores, image)


async def erase_left_over(database: Database, stores: Stores, *, batch_max: int) -> int:
    """Erase the bytes of up to `batch_max` deleted images whose storage did not answer then. Returns how many went."""
    async with database.statement() as connection:
        left = await _to_erase(connection, list(stores.answering()), batch_max=batch_max)
    return sum([await _erase(database, stores, image) for image in left])


async def _erase(database: Database, stores: Stores, image: Image) -> bool:
    if image.storage == stores.spool.name:
        # The spool's copy goes at once. There may be one at home too, of a put whose answer came too late.
        async with database.statement() as connection:
            await _leave_spool(connection, image, storage=stores.home.name, storage_key=image.storage_key)
        image = replace(image, storage=stores.home.name)
    storage = stores.answering().get(image.storage)
    if storage is None:
        return False
    try:
        await storage.delete(image.storage_key)
    except StorageError as error:
        log.warning("image_not_erased", image_id=image.id, storage=image.storage, detail=str(error))
        return False
    async with database.statement() as connection:
        await _mark_erased(connection, image.id)
    return True


@dataclass(frozen=True)
class Moved:
    """What a move did: images carried over, bytes of them, and images that could not be, each with why."""

    images: int
    bytes: int
    failures: tuple[tuple[str, str], ...]


async def move_all(database: Database, stores: Stores, *, prefix: str, batch_max: int = 100) -> Moved:
    """Carry every image that lives elsewhere home, one by one, while the service runs.

    An image's URL works throughout: the row changes only when the copy is whole, and the old object goes last. It can
    be cut off and begun again. `prefix` goes before keys that don't have it.
    """
    images, size, after = 0, 0, ""
    failures: list[tuple[str, str]] = []
    while True:
        async with database.statement() as connection:
            batch = await _outside(connection, stores.home.name, after=after, batch_max=batch_max)
        if not batch:
            return Moved(images, size, tuple(failures))
        for image in batch:
            after = image.id
            try:
                if await _move(database, stores, image, prefix=prefix):
                    images, size = images + 1, size + image.size_bytes
            except StorageError as error:
                if await _is_there(database, image):
                    failures.append((image.id, str(error)))


async def empty_spool(
    database: Database, stores: Stores, *, batch_max: int, patience_seconds: float = _PATIENCE_SECONDS
) -> int:
    """Carry up to `batch_max` images from the spool home, and return how many arrived; none while home is failing.

    One that can't be moved stays, and holds up no other; when home itself is the cause, or none has arrived for
    `patience_seconds`, the rest waits for the next round. Several processes may do this at once. Raises
    DatabaseUnavailable.
    """
    if stores.failing:
        return 0
    async with database.statement() as connection:
        batch = await _spooled(connection, batch_max=batch_max)
    arrived, give_up_at = 0, time.monotonic() + patience_seconds
    for image in batch:
        try:
            async with asyncio.timeout(give_up_at - time.monotonic()):
                moved = await _move(database, stores, image, prefix="")
        except (StorageError, TimeoutError) as error:
            if await _is_there(database, image):
                log.error("image_stays_in_spool", image_id=image.id, detail=str(error) or "it took too long")
                if not await stores.answers():
                    break
            # A storage that is silent may answer when it is asked how it is: each image would be waited for.
            if time.monotonic() > give_up_at:
                break
        else:
            arrived += moved
            give_up_at = time.monotonic() + patience_seconds
    telemetry.unspooled_total.inc(arrived)
    return arrived


async def _is_there(database: Database, image: Image) -> bool:
    """Whether an image still lives where it is known to: it may have been moved, or deleted, by somebody else."""
    async with database.statement() as connection:
        now = await find(connection, image.id)
    return now == image


async def _move(database: Database, stores: Stores, image: Image, *, prefix: str) -> bool:
    """Carry one image home. False when it was moved or deleted meanwhile. Raises StorageError."""
    home, source = stores.home, stores.by_name.get(image.storage)
    if source is None:
        raise StorageError(image.storage, "is not configured")
    body = b"".join([chunk async for chunk in await source.read(image.storage_key)])
    if hashlib.sha256(body).digest() != image.sha256:
        raise StorageError(image.storage, f"{image.storage_key} does not hold the bytes that were stored; it stays")
    key = image.storage_key if image.storage_key.startswith(prefix) else prefix + image.storage_key
    await home.put(key, body, content_type=image.content_type, sha256=image.sha256)
    # Before anything points there: a store that kept half of a broken upload has been seen.
    if (kept := await home.head(key)).bytes != image.size_bytes:
        raise StorageError(home.name, f"{key} has {kept.bytes} bytes instead of {image.size_bytes}; move it again")
    async with database.statement() as connection:
        moved = await _set_home(connection, image, storage=home.name, storage_key=key)
        now = await find(connection, image.id)
    if moved and source is not stores.spool:
        await source.delete(image.storage_key)
    # Of two that move one image at once, both have put the same object: only a deletion makes it one too many.
    if not moved and (now is None or now.deleted_at is not None):
        await home.delete(key)
    return moved


# Statements on `images`


_MARK_DELETED = f"""
WITH g AS (
    UPDATE generations SET deleted_at = COALESCE(deleted_at, now()), prompt = NULL, revised_prompt = NULL
    WHERE id = :id RETURNING id
)
UPDATE images i SET deleted_at = COALESCE(i.deleted_at, now()) FROM g WHERE i.generation_id = g.id
RETURNING {columns_of("i", IMAGE_COLUMNS)}"""  # noqa: S608


async def _mark_deleted(connection: AsyncConnection, generation_id: UUID) -> Sequence[Image]:
    """Bury a generation: its prompts are gone at once, its URLs answer 410. Amounts stay, for the books.

    One statement. Returns its images, whose bytes are still to be erased.
    """
    rows = await connection.execute(text(_MARK_DELETED), {"id": generation_id})
    return [Image(**row) for row in rows.mappings()]


async def _to_erase(connection: AsyncConnection, storages: Sequence[str], *, batch_max: int) -> Sequence[Image]:
    """Return up to `batch_max` deleted images whose bytes may still be in one of these storages.

    In no order: the same few that can't be erased would else keep all others waiting for ever.
    """
    query = (
        select(*(images_table.c[name] for name in IMAGE_COLUMNS))
        .where(
            images_table.c.deleted_at.is_not(None),
            images_table.c.erased_at.is_(None),
            images_table.c.storage.in_(storages),
        )
        .order_by(func.random())
        .limit(batch_max)
    )
    return [Image(**row) for row in (await connection.execute(query)).mappings()]


async def _mark_erased(connection: AsyncConnection, image_id: str) -> None:
    """Note that a deleted image's bytes are gone from storage."""
    await connection.execute(update(images_table).where(images_table.c.id == image_id).values(erased_at=func.now()))


async def _outside(connection: AsyncConnection, storage: str, *, after: str, batch_max: int) -> Sequence[Image]:
    """Return up to `batch_max` images that live elsewhere than in `storage`, by id, from the one after `after` on."""
    query = (
        select(*(images_table.c[name] for name in IMAGE_COLUMNS))
        .where(images_table.c.storage != storage, images_table.c.deleted_at.is_(None), images_table.c.id > after)
        .order_by(images_table.c.id)
        .limit(batch_max)
    )
    return [Image(**row) for row in (await connection.execute(query)).mappings()]


async def _spooled(connection: AsyncConnection, *, batch_max: int) -> Sequence[Image]:
    """Return up to `batch_max` images that live in the spool. In no order, for the reason of `_to_erase`."""
    query = (
        select(*(images_table.c[name] for name in IMAGE_COLUMNS))
        .where(images_table.c.storage == SPOOL, images_table.c.deleted_at.is_(None))
        .order_by(func.random())
        .limit(batch_max)
    )
    return [Image(**row) for row in (await connection.execute(query)).mappings()]


# The row that points elsewhere and the copy in the spool that nobody needs then are one statement: between two, a crash
# would leave the copy behind. For an image that did not live there nothing is deleted.
_SET_HOME = """
WITH moved AS (
    UPDATE images SET storage = :storage, storage_key = :storage_key
    WHERE id = :id AND storage = :storage_before {condition} RETURNING id
), unspooled AS (
    DELETE FROM spool WHERE :storage_before = 'spool' AND storage_key = :key_before AND EXISTS (SELECT FROM moved)
)
SELECT count(*) FROM moved"""


async def _set_home(connection: AsyncConnection, image: Image, *, storage: str, storage_key: str) -> bool:
    """Note that an image lives elsewhere now. False when it was moved or deleted meanwhile, and nothing changed."""
    statement = _SET_HOME.format(condition="AND deleted_at IS NULL")
    return await _point(connection, statement, image, storage=storage, storage_key=storage_key)


async def _leave_spool(connection: AsyncConnection, image: Image, *, storage: str, storage_key: str) -> bool:
    """Erase a deleted image from the spool, and note where else a copy may be."""
    statement = _SET_HOME.format(condition="AND deleted_at IS NOT NULL")
    return await _point(connection, statement, image, storage=storage, storage_key=storage_key)


async def _point(connection: AsyncConnection, statement: str, image: Image, *, storage: str, storage_key: str) -> bool:
    parameters = {
        "id": image.id,
        "storage": storage,
        "storage_key": storage_key,
        "storage_before": image.storage,
        "key_before": image.storage_key,
    }
    return bool((await connection.execute(text(statement), parameters)).scalar())
