"""Does a verification hold where everything is right, also while orders and deletions run beside it?

Each test keeps real images in a folder or a bucket, and reads the report.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from app.accounts import budgets
from app.generations import images
from app.storage.base import Storage, StoredObject
from app.storage.folder import FolderStorage
from tests.generations.kept_images import CARE, PICTURE, Books, told
from tests.makers import make_stores
from tests.s3_server import S3Server
from tests.storage.conftest import s3_storage

pytestmark = pytest.mark.anyio


# What is right


async def test_an_installation_that_is_whole_holds_and_says_what_was_checked(books: Books, storage: Storage) -> None:
    for n in (1, 3):
        await books.keep(storage, n=n)
    await books.hold()

    report = await books.verify(storage)

    assert report.holds
    assert (report.listed, report.untold, report.notes) == ([], [], [])
    assert {name: count for name, count in report.checked.items() if count} == {
        "budgets": 2,
        "generations": 3,
        "images": 4,
        "objects": 4,
    }


async def test_every_storage_that_is_configured_is_gone_through(
    books: Books,
    folder: FolderStorage,
    s3_server: S3Server,
) -> None:
    bucket = s3_storage(s3_server, s3_server.make_bucket(f"b-{secrets.token_hex(8)}"))
    spoiled = [await books.keep(folder), await books.keep(bucket)]
    await books.keep(bucket)
    await folder.delete(spoiled[0].images[0].storage_key)
    await bucket.delete(spoiled[1].images[0].storage_key)

    report = await books.verify(bucket, folder)
    await bucket.close()

    assert told(report) == sorted(("image_missing", generation.images[0].id) for generation in spoiled)
    assert report.checked["images"] == 3


async def test_what_is_deleted_and_not_yet_erased_is_fine_with_and_without_its_bytes(
    books: Books, storage: Storage
) -> None:
    await books.keep(storage)
    gone = await books.keep(storage)
    await books.execute("UPDATE images SET deleted_at = now()")
    await storage.delete(gone.images[0].storage_key)

    report = await books.verify(storage)

    assert report.holds
    assert report.checked["images"] == 0


async def test_objects_of_others_and_our_own_proof_of_writing_are_no_orphans(books: Books, storage: Storage) -> None:
    await storage.check()
    await storage.put("holiday/beach.png", PICTURE, content_type="image/png")

    report = await books.verify(storage)

    assert report.holds
    assert report.checked["objects_of_others"] in (1, 2), "a folder keeps no proof"


async def test_a_limit_that_was_lowered_below_its_use_is_noted_and_convicts_nobody(
    books: Books, folder: FolderStorage
) -> None:
    await books.keep(folder, n=3)
    async with books.database.transaction() as tx:
        await budgets.set_limits(tx, "all", {"images_per_day_max": 2})

    report = await books.verify(folder)

    assert report.holds
    assert [(note.subject, note.detail[:28]) for note in report.notes] == [("all", "images_per_day is at 3 of 2:")]


async def test_images_in_a_storage_that_is_not_configured_cannot_be_told_of(
    books: Books, folder: FolderStorage
) -> None:
    await books.keep(folder)
    await books.execute("UPDATE images SET storage = 's3:former'")
    await folder.delete(await _only_key(books))

    report = await books.verify(folder)

    assert report.holds
    assert [(untold.storage, untold.what, untold.count) for untold in report.untold] == [("s3:former", "images", 1)]


# While it moves


class ChangesAfterALook(FolderStorage):
    """A folder in which something happens right after the first look at a key, as it does beside a running service."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.then: Mapping[str, bytes | None] = {}

    async def head(self, key: str) -> StoredObject:
        try:
            return await super().head(key)
        finally:
            if key in self.then:
                body = self.then[key]
                await (self.delete(key) if body is None else self.put(key, body, content_type="image/png"))


async def test_what_is_set_right_after_the_first_look_is_not_told(books: Books, tmp_path: Path) -> None:
    folder = ChangesAfterALook(tmp_path / "images")
    late = (await books.keep(folder)).images[0].storage_key
    await folder.delete(late)
    erased = (await books.keep(folder)).images[0]
    await books.execute("UPDATE images SET deleted_at = now(), erased_at = now() WHERE id = :id", id=erased.id)
    folder.then = {late: PICTURE, erased.storage_key: None}

    report = await books.verify(folder)
    await folder.close()

    assert report.holds


async def test_orders_deletions_and_verifications_beside_each_other_all_hold(
    books: Books, folder: FolderStorage
) -> None:
    @asynccontextmanager
    async def at_work() -> AsyncIterator[None]:
        async def work() -> None:
            while True:
                kept = await books.keep(folder, n=2)
                await images.delete(books.database, make_stores(books.database, folder), kept)
                await books.keep(folder)

        tasks = [asyncio.create_task(work()) for _ in range(3)]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async with at_work():
        reports = [await books.verify(folder, care=replace(CARE, with_bytes=True)) for _ in range(8)]

    assert [told(report) for report in reports] == [[]] * 8
    assert reports[-1].checked["images"] > 0


async def _only_key(books: Books) -> str:
    async with books.database.statement() as connection:
        key: str = (await connection.execute(text("SELECT storage_key FROM images"))).scalar_one()
    return key
