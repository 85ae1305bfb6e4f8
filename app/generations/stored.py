"""Does a storage hold what the rows say, whole, and nothing of ours beside it?

Rows and objects are gone through side by side in the order of their keys, a page of each at a time. A storage that does
not list its keys is asked for each image alone; what no row knows stays unseen there.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, collate, select, text

from app.database.pool import Database
from app.database.tables import images
from app.generations.findings import Checked, Finding, Untold, Violation
from app.generations.picture import EXTENSIONS
from app.generations.records import RUNNING
from app.generations.spool import SPOOL
from app.storage.base import CannotTell, ListedObject, ObjectMissing, Storage

_PAGE_ROWS = 1000
_LOOKS_AT_ONCE = 8

# What we name our objects; a bucket may hold what is somebody else's, and our own proof that we may write.
_OURS = re.compile(rf"(?P<stem>(?:.+/)?\d{{4}}/\d\d/\d\d/[0-9a-f]{{32}})-\d+\.(?:{'|'.join(EXTENSIONS)})")
_STEM_PARTS = 4

_WITHOUT_LISTING = "without s3:ListBucket it does not say whether they are there"


@dataclass(frozen=True)
class _Row:
    """What an image's row says of where it is and what it is."""

    id: str
    generation_id: UUID
    storage: str
    storage_key: str
    size_bytes: int
    sha256: bytes
    deleted: bool
    erased: bool


@dataclass(frozen=True)
class _Sight:
    """What storage showed under a key: so many bytes, their SHA-256 if they were read; None where nothing is."""

    size_bytes: int | None
    sha256: bytes | None = None
    told: bool = True


@dataclass(frozen=True)
class _Owner:
    """Whose an object is: whether an image's row names it, and the generation it was made for, if there is one."""

    named: bool
    generation_id: UUID | None
    state: str | None


_Pair = tuple[_Row | None, ListedObject | None]


async def check_storage(
    database: Database,
    storage: Storage,
    *,
    prefix: str,
    young_seconds: float,
    with_bytes: bool,
    pause_seconds: float,
) -> AsyncIterator[Finding]:
    """Hold every image that lives in `storage` against what is there, and everything there against the rows.

    Objects under `prefix` are listed; images elsewhere are asked for one by one. An object younger than `young_seconds`
    may belong to an order under way. What looks wrong must do so twice, `pause_seconds` apart. Raises
    DatabaseUnavailable, and StorageError when the storage can't be asked.
    """
    rows = _rows(database, storage.name)
    if (why := await _unlisted(storage, prefix)) is None:
        pairs = _side_by_side(rows, storage.objects(prefix))
    else:
        yield Untold(storage.name, "orphans", 0, why)
        pairs = _alone(rows)
    async for batch in _batches(pairs):
        known = [(row, listed) for row, listed in batch if row is not None]
        yield Checked("images", sum(not row.deleted for row, _ in known))
        yield Checked("objects", sum(listed is not None for _, listed in batch))
        doubtful = [row for row, listed in known if with_bytes or not _fits(row, listed)]
        async for finding in _wrong_images(database, storage, doubtful, with_bytes, pause_seconds):
            yield finding
        strays = [listed for row, listed in batch if row is None and listed is not None]
        async for finding in _orphans(database, storage, strays, young_seconds, pause_seconds):
            yield finding


async def _unlisted(storage: Storage, prefix: str) -> str | None:
    """Return why a storage does not list its keys; None when it does."""
    try:
        await anext(storage.objects(prefix), None)
    except CannotTell as error:
        return str(error)
    return None


# Both sides


async def _rows(database: Database, storage: str) -> AsyncIterator[_Row]:
    """Every image that lives in a storage, deleted ones too, by the bytes of its key."""
    key = collate(images.c.storage_key, "C")
    query = _select_rows().where(images.c.storage == storage, key > bindparam("after")).order_by(key).limit(_PAGE_ROWS)
    after = ""
    while True:
        async with database.statement() as connection:
            page = [_Row(**row) for row in (await connection.execute(query, {"after": after})).mappings()]
        for row in page:
            yield row
        if not page:
            return
        after = page[-1].storage_key


async def _reread(database: Database, rows: Sequence[_Row]) -> Mapping[str, _Row]:
    async with database.statement() as connection:
        found = await connection.execute(_select_rows().where(images.c.id.in_([row.id for row in rows])))
        return {row["id"]: _Row(**row) for row in found.mappings()}


def _select_rows() -> Select[Any]:
    plain = ("id", "generation_id", "storage", "storage_key", "size_bytes", "sha256")
    return select(
        *(images.c[name] for name in plain),
        images.c.deleted_at.is_not(None).label("deleted"),
        images.c.erased_at.is_not(None).label("erased"),
    )


async def _side_by_side(rows: AsyncIterator[_Row], objects: AsyncIterator[ListedObject]) -> AsyncIterator[_Pair]:
    """Pair what both sides have under one key; each must come ordered by the bytes of its keys."""
    row, listed = await anext(rows, None), await anext(objects, None)
    while row is not None or listed is not None:
        if listed is None or (row is not None and row.storage_key < listed.key):
            yield row, None
            row = await anext(rows, None)
        elif row is None or listed.key < row.storage_key:
            yield None, listed
            listed = await anext(objects, None)
        else:
            yield row, listed
            row, listed = await anext(rows, None), await anext(objects, None)


async def _alone(rows: AsyncIterator[_Row]) -> AsyncIterator[_Pair]:
    async for row in rows:
        yield row, None


async def _batches(pairs: AsyncIterator[_Pair]) -> AsyncIterator[list[_Pair]]:
    batch: list[_Pair] = []
    async for pair in pairs:
        batch.append(pair)
        if len(batch) == _PAGE_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


# Images


def _fits(row: _Row, listed: ListedObject | None) -> bool:
    if row.deleted:
        return listed is None or not row.erased
    return listed is not None and listed.bytes == row.size_bytes


async def _wrong_images(
    database: Database, storage: Storage, rows: Sequence[_Row], with_bytes: bool, pause_seconds: float
) -> AsyncIterator[Finding]:
    first = await _judge(database, storage, rows, with_bytes)
    for _, found in first:
        if isinstance(found, Untold):
            yield found
    wrong = [row for row, found in first if isinstance(found, Violation)]
    if wrong:
        await asyncio.sleep(pause_seconds)
        for _, found in await _judge(database, storage, wrong, with_bytes):
            yield found


async def _judge(
    database: Database, storage: Storage, rows: Sequence[_Row], with_bytes: bool
) -> list[tuple[_Row, Violation | Untold]]:
    sights = [
        sight
        for start in range(0, len(rows), _LOOKS_AT_ONCE)
        for sight in await asyncio.gather(
            *(_look(storage, row, with_bytes) for row in rows[start : start + _LOOKS_AT_ONCE])
        )
    ]
    # After looking: what was gone while its row still says it is there is gone indeed. Before, it may have been moved.
    now = await _reread(database, rows) if rows else {}
    judged = []
    for row, sight in zip(rows, sights, strict=True):
        current = now.get(row.id)
        if current is None or (current.storage, current.storage_key) != (row.storage, row.storage_key):
            continue
        if (found := _verdict(current, sight)) is not None:
            judged.append((row, found))
    return judged


async def _look(storage: Storage, row: _Row, with_bytes: bool) -> _Sight:
    try:
        if not with_bytes or row.deleted:
            return _Sight((await storage.head(row.storage_key)).bytes)
        digest, size_bytes = hashlib.sha256(), 0
        async for chunk in await storage.read(row.storage_key):
            digest.update(chunk)
            size_bytes += len(chunk)
        return _Sight(size_bytes, digest.digest())
    except ObjectMissing:
        return _Sight(None)
    except CannotTell:
        return _Sight(None, told=False)


def _verdict(row: _Row, sight: _Sight) -> Violation | Untold | None:
    where = f"{row.storage} {row.storage_key}"
    if row.deleted:
        # That storage doesn't say is all that is asked of an erased one: it would, if the object were there.
        left = row.erased and sight.size_bytes is not None
        return Violation("image_not_erased", row.id, f"{where}: still there, and its row says erased") if left else None
    if not sight.told:
        return Untold(row.storage, "images", 1, _WITHOUT_LISTING)
    if sight.size_bytes is None:
        return Violation("image_missing", row.id, f"{where}: nothing is there (generation {row.generation_id})")
    if sight.size_bytes != row.size_bytes:
        return Violation("image_size", row.id, f"{where}: {sight.size_bytes} bytes instead of {row.size_bytes}")
    if sight.sha256 is not None and sight.sha256 != row.sha256:
        return Violation("image_bytes", row.id, f"{where}: other bytes than were stored, as many of them")
    return None


# Objects that no row knows


async def _orphans(
    database: Database, storage: Storage, strays: Sequence[ListedObject], young_seconds: float, pause_seconds: float
) -> AsyncIterator[Finding]:
    ours = [stray for stray in strays if _OURS.fullmatch(stray.key)]
    yield Checked("objects_of_others", len(strays) - len(ours))
    settled = [stray for stray in ours if stray.age_seconds >= young_seconds]
    yield Checked("objects_too_young", len(ours) - len(settled))
    doubtful = await _unowned(database, storage.name, settled)
    if not doubtful:
        return
    await asyncio.sleep(pause_seconds)
    for stray, _ in doubtful:
        if not await _is_there(storage, stray.key):
            continue
        for _, owner in await _unowned(database, storage.name, [stray]):
            whose = (
                f"of generation {owner.generation_id}, which is {owner.state}" if owner.state else "of no generation"
            )
            yield Violation("orphan", stray.key, f"{storage.name}: {stray.bytes} bytes {whose}")


async def _is_there(storage: Storage, key: str) -> bool:
    try:
        await storage.head(key)
    except ObjectMissing:
        return False
    except CannotTell:
        # It was listed a moment ago.
        return True
    return True


async def _unowned(
    database: Database, storage: str, strays: Sequence[ListedObject]
) -> list[tuple[ListedObject, _Owner]]:
    """Return the objects that no image's row names and no running generation made."""
    if not strays:
        return []
    owners = await _owners(database, storage, [stray.key for stray in strays])
    return [(stray, owner) for stray in strays if not (owner := owners[stray.key]).named and owner.state not in RUNNING]


_OWNERS = """
SELECT k.key, bool_or(i.id IS NOT NULL) AS named, (array_agg(g.id) FILTER (WHERE g.id IS NOT NULL))[1] AS generation_id,
    max(g.state) AS state
FROM unnest(CAST(:keys AS text[]), CAST(:stems AS text[])) AS k(key, stem)
-- A put that answered too late left its object here and its picture in the spool, which will put it here again.
LEFT JOIN images i ON i.storage IN (:storage, :spool) AND i.storage_key COLLATE "C" = k.key
LEFT JOIN generations g ON g.storage_stem = k.stem
GROUP BY k.key"""


async def _owners(database: Database, storage: str, keys: Sequence[str]) -> Mapping[str, _Owner]:
    asked = [(key, stem) for key in keys for stem in _stems(key)]
    keys_asked, stems_asked = [key for key, _ in asked], [stem for _, stem in asked]
    parameters = {"storage": storage, "spool": SPOOL, "keys": keys_asked, "stems": stems_asked}
    async with database.statement() as connection:
        rows = (await connection.execute(text(_OWNERS), parameters)).mappings().all()
    return {row["key"]: _Owner(row["named"], row["generation_id"], row["state"]) for row in rows}


def _stems(key: str) -> Iterator[str]:
    """The stems that a generation may have been given whose picture has this key: a move puts a prefix before it."""
    ours = _OURS.fullmatch(key)
    assert ours is not None, "only objects of ours are asked for"
    parts = ours["stem"].split("/")
    for first in range(len(parts) - _STEM_PARTS + 1):
        yield "/".join(parts[first:])
