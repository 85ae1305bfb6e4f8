"""Does all hold that is promised of the books, the generations, their images, and what storage keeps of them?

`imagekeep verify` is `reconcile`'s big sister. It only reads, beside a running service or without one. Whatever looks
wrong is looked at again before it is told, so that nothing that was just moving is called broken.
"""

from asyncio import sleep
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text

from app.accounts import budgets as accounts_budgets
from app.database.pool import Database
from app.database.tables import budgets, images
from app.generations.findings import Checked, Finding, Note, Report, Untold, Violation, sum_up
from app.generations.stored import check_storage
from app.storage.base import Storage

_PAGE_ROWS = 1000


@dataclass(frozen=True)
class Care:
    """How a verification looks: what its caller knows of this installation, and how much it may take."""

    # The longest a runner's claim holds. Younger than that, an object may belong to an order under way.
    lease_seconds: float
    # Where each storage is listed; all of it unless said. A bucket may be shared with others.
    prefixes: Mapping[str, str]
    # Read every image and hold it against its SHA-256, instead of believing the size.
    with_bytes: bool = False
    # How long what looks wrong is given to be set right by whoever was just at it.
    pause_seconds: float = 2


async def verify(database: Database, storages: Mapping[str, Storage], care: Care) -> Report:
    """Check every invariant of the rows, and every image in every one of these storages; change nothing.

    No connection is held while storage is asked, and both sides are gone through a page at a time. Raises
    DatabaseUnavailable, and StorageError when a storage can't be asked at all.
    """
    return await sum_up(_everything(database, storages, care))


async def _everything(database: Database, storages: Mapping[str, Storage], care: Care) -> AsyncIterator[Finding]:
    async for finding in _budgets(database):
        yield finding
    async for finding in _leases(database, care):
        yield finding
    async for finding in _generations(database):
        yield finding
    async for finding in _elsewhere(database, storages):
        yield finding
    for storage in storages.values():
        async for finding in check_storage(
            database,
            storage,
            prefix=care.prefixes.get(storage.name, ""),
            young_seconds=care.lease_seconds,
            with_bytes=care.with_bytes,
            pause_seconds=care.pause_seconds,
        ):
            yield finding


async def _budgets(database: Database) -> AsyncIterator[Finding]:
    async with database.statement() as connection:
        scopes = (await connection.execute(select(budgets.c.scope))).scalars().all()
        differences = await accounts_budgets.differences(connection)
        gauges = await accounts_budgets.gauges_of(connection, scopes)
    yield Checked("budgets", len(scopes))
    for difference in differences:
        detail = f"{difference.counter} says {difference.counted}, the generations say {difference.recounted}"
        yield Violation("budget_differs", difference.scope, detail)
    for gauge in gauges:
        if gauge.used is not None and gauge.used > gauge.maximum:
            # What a limit was yesterday is written down nowhere, so this alone convicts nobody.
            detail = f"{gauge.name} is at {gauge.used} of {gauge.maximum}: its limit was lowered since, or did not hold"
            yield Note(gauge.scope, detail)


async def _leases(database: Database, care: Care) -> AsyncIterator[Finding]:
    stale = await _stale(database, care.lease_seconds)
    if stale:
        await sleep(care.pause_seconds)
        now_stale = await _stale(database, care.lease_seconds)
        stale = {generation_id: detail for generation_id, detail in now_stale.items() if generation_id in stale}
    for generation_id, detail in stale.items():
        yield Violation("lease_stale", str(generation_id), detail)


async def _stale(database: Database, lease_seconds: float) -> dict[UUID, str]:
    """Return what no recovery has claimed for a whole lease after its own had run out."""
    async with database.statement() as connection:
        rows = await connection.execute(
            text(
                "SELECT id, state, extract(epoch FROM now() - lease_until)::bigint AS seconds FROM generations"
                " WHERE lease_until < now() - make_interval(secs => :lease_seconds)"
            ),
            {"lease_seconds": lease_seconds},
        )
        return {
            row["id"]: f"{row['state']}, its lease ran out {row['seconds']} s ago: `imagekeep recover`, or start"
            for row in rows.mappings()
        }


_GENERATIONS = """
SELECT g.id, g.state, g.settled_images, g.deleted_at IS NOT NULL AS deleted,
    g.prompt IS NOT NULL OR g.revised_prompt IS NOT NULL AS has_words,
    count(i.id) AS images, count(i.id) FILTER (WHERE i.deleted_at IS NULL) AS live,
    count(i.id) FILTER (WHERE i.position BETWEEN 0 AND g.settled_images - 1) AS in_place
FROM (SELECT * FROM generations WHERE id > :after ORDER BY id LIMIT :rows) g
LEFT JOIN images i ON i.generation_id = g.id
GROUP BY g.id, g.state, g.settled_images, g.deleted_at, g.prompt, g.revised_prompt ORDER BY g.id"""


async def _generations(database: Database) -> AsyncIterator[Finding]:
    """Hold each generation against its images. One statement a page, so what it sees was true at one moment."""
    after = UUID(int=0)
    while True:
        async with database.statement() as connection:
            page = (await connection.execute(text(_GENERATIONS), {"after": after, "rows": _PAGE_ROWS})).mappings().all()
        if not page:
            return
        after = page[-1]["id"]
        yield Checked("generations", len(page))
        for row in page:
            if (wrong := _wrong(row)) is not None:
                yield wrong


def _wrong(row: Mapping[Any, Any]) -> Violation | None:
    subject = str(row["id"])
    if row["state"] != "completed" and row["images"]:
        return Violation("images_uncalled_for", subject, f"{row['state']}, and yet it has {row['images']} images")
    if row["state"] == "completed" and not row["settled_images"] == row["images"] == row["in_place"] > 0:
        detail = f"settled for {row['settled_images']} images, has {row['images']}, {row['in_place']} of them in place"
        return Violation("images_incomplete", subject, detail)
    if row["deleted"] and (row["live"] or row["has_words"]):
        return Violation(
            "deletion_incomplete", subject, f"deleted, and yet {row['live']} images or its prompt are left"
        )
    return None


async def _elsewhere(database: Database, storages: Mapping[str, Storage]) -> AsyncIterator[Finding]:
    """Count the images in storages that these settings don't open."""
    query = (
        select(images.c.storage, func.count())
        .where(images.c.storage.not_in(list(storages)), images.c.deleted_at.is_(None))
        .group_by(images.c.storage)
    )
    async with database.statement() as connection:
        rows = (await connection.execute(query)).all()
    for storage, count in rows:
        yield Untold(storage, "images", count, "it is not configured")
