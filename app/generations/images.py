"""What becomes of an image after it was made: how is it found, read, deleted, and moved to another storage?"""

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database.pool import Database
from app.database.tables import images as images_table
from app.errors import StorageUnavailable
from app.generations.records import IMAGE_COLUMNS, Generation, Image
from app.storage.base import Storage, StorageError

log = structlog.get_logger(__name__)


async def find(connection: AsyncConnection, image_id: str) -> Image | None:
    """Return an image by the id in its permanent URL, a deleted one too; None when there is none."""
    query = select(*(images_table.c[name] for name in IMAGE_COLUMNS)).where(images_table.c.id == image_id)
    row = (await connection.execute(query)).mappings().one_or_none()
    return Image(**row) if row is not None else None


async def read(
    storages: Mapping[str, Storage], image: Image, *, start: int = 0, length: int | None = None
) -> AsyncIterator[bytes]:
    """Open an image wherever it lives and return its bytes in chunks, from `start` on, `length` of them or all.

    Raises StorageUnavailable before the first byte when its storage is not configured or doesn't answer, and also when
    the object is not there: a completed image's bytes are somewhere, so that is the operator's fault.
    """
    storage = storages.get(image.storage)
    if storage is None:
        log.error("image_storage_not_configured", image_id=image.id, storage=image.storage)
        raise StorageUnavailable(retry_after_seconds=60)
    try:
        return await storage.read(image.storage_key, start=start, length=length)
    except StorageError as error:
        log.error("image_not_read", image_id=image.id, storage=image.storage, detail=str(error))
        raise StorageUnavailable(retry_after_seconds=10) from error


async def delete(database: Database, storages: Mapping[str, Storage], generation: Generation) -> None:
    """Delete a generation's images for good: its URLs answer 410 when this returns, and its prompts are gone.

    The bytes are erased at once where storage answers; else recovery goes on until they are. Raises
    DatabaseUnavailable.
    """
    async with database.statement() as connection:
        deleted = await _mark_deleted(connection, generation.id)
    for image in deleted:
        await _erase(database, storages, image)


async def erase_left_over(database: Database, storages: Mapping[str, Storage], *, batch_max: int) -> int:
    """Erase the bytes of up to `batch_max` deleted images whose storage did not answer then. Returns how many went."""
    async with database.statement() as connection:
        left = await _to_erase(connection, list(storages), batch_max=batch_max)
    return sum([await _erase(database, storages, image) for image in left])


async def _erase(database: Database, storages: Mapping[str, Storage], image: Image) -> bool:
    storage = storages.get(image.storage)
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


async def move_all(
    database: Database, storages: Mapping[str, Storage], home: Storage, *, prefix: str, batch_max: int = 100
) -> Moved:
    """Carry every image that lives elsewhere to `home`, one by one, while the service runs.

    An image's URL works throughout: the row changes only when the copy is whole, and the old object goes last. It can
    be cut off and begun again. `prefix` goes before keys that don't have it.
    """
    images, size, after = 0, 0, ""
    failures: list[tuple[str, str]] = []
    while True:
        async with database.statement() as connection:
            batch = await _outside(connection, home.name, after=after, batch_max=batch_max)
        if not batch:
            return Moved(images, size, tuple(failures))
        for image in batch:
            after = image.id
            try:
                images += await _move(database, storages, home, image, prefix=prefix)
                size += image.size_bytes
            except StorageError as error:
                failures.append((image.id, str(error)))


async def _move(
    database: Database, storages: Mapping[str, Storage], home: Storage, image: Image, *, prefix: str
) -> bool:
    source = storages.get(image.storage)
    if source is None:
        raise StorageError(image.storage, "is not configured")
    body = b"".join([chunk async for chunk in await source.read(image.storage_key)])
    if hashlib.sha256(body).digest() != image.sha256:
        raise StorageError(image.storage, f"{image.storage_key} does not hold the bytes that were stored; it stays")
    key = image.storage_key if image.storage_key.startswith(prefix) else prefix + image.storage_key
    await home.put(key, body, content_type=image.content_type)
    # Before anything points there: a store that kept half of a broken upload has been seen.
    if (kept := await home.head(key)).bytes != image.size_bytes:
        raise StorageError(home.name, f"{key} has {kept.bytes} bytes instead of {image.size_bytes}; move it again")
    async with database.statement() as connection:
        moved = await _set_home(connection, image, storage=home.name, storage_key=key)
    # The side that lost goes: the old object, or the copy of an image that was deleted meanwhile.
    await (source.delete(image.storage_key) if moved else home.delete(key))
    return moved


# Statements on `images`


async def _mark_deleted(connection: AsyncConnection, generation_id: UUID) -> Sequence[Image]:
    """Bury a generation: its prompts are gone at once, its URLs answer 410. Amounts stay, for the books.

    One statement. Returns its images, whose bytes are still to be erased.
    """
    rows = await connection.execute(
        text(
            "WITH g AS (UPDATE generations SET deleted_at = COALESCE(deleted_at, now()), prompt = NULL,"
            " revised_prompt = NULL WHERE id = :id RETURNING id)"
            " UPDATE images i SET deleted_at = COALESCE(i.deleted_at, now()) FROM g WHERE i.generation_id = g.id"
            " RETURNING i.*"
        ),
        {"id": generation_id},
    )
    return [Image(**{name: row[name] for name in IMAGE_COLUMNS}) for row in rows.mappings()]


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


async def _set_home(connection: AsyncConnection, image: Image, *, storage: str, storage_key: str) -> bool:
    """Note that an image lives elsewhere now. False when it was moved or deleted meanwhile, and nothing changed."""
    moved = await connection.execute(
        update(images_table)
        .where(
            images_table.c.id == image.id, images_table.c.storage == image.storage, images_table.c.deleted_at.is_(None)
        )
        .values(storage=storage, storage_key=storage_key)
    )
    return bool(moved.rowcount)
