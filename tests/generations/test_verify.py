"""Does a verification find what is wrong in the books, the rows and the storages, and nothing that is right?

Each test keeps real images in a folder or a bucket, spoils one thing, and reads the report.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from app.accounts import budgets
from app.accounts.keys import Caller
from app.database.pool import Database
from app.generations import images, records
from app.generations.findings import Report
from app.generations.records import Generation, Held, Image, Move
from app.generations.verify import Care, verify
from app.storage.base import LISTED_MAX, Storage, StoredObject
from app.storage.folder import FolderStorage
from tests.makers import PRICE_MICROS, make_caller, make_image, make_order, make_stores, reserve
from tests.s3_server import S3Server
from tests.storage.conftest import s3_server, s3_storage  # noqa: F401 - a fixture.
from tests.storage.hostile_store import Request, answering, hostile_store, refusing

pytestmark = pytest.mark.anyio

PICTURE = b"\x89PNG and what else makes a picture"
# Everything is old enough, and nobody is waited for, unless a test is about just that.
CARE = Care(lease_seconds=0, prefixes={}, pause_seconds=0)


@dataclass(frozen=True)
class Books:
    """A database with one user, whose orders are limited, as is the installation."""

    database: Database
    caller: Caller

    async def hold(self, *, n: int = 1) -> Generation:
        """A generation that is pending, its lease good for minutes."""
        async with self.database.statement() as connection:
            held = await reserve(connection, self.caller, make_order(n=n))
        assert isinstance(held, Held)
        return held.generation

    async def move(self, generation: Generation, to: Move) -> Generation:
        async with self.database.statement() as connection:
            moved = await records.move(connection, generation.id, to)
        assert moved is not None
        return moved

    async def keep(self, storage: Storage, *, n: int = 1, body: bytes = PICTURE) -> Generation:
        """A completed generation whose images are in `storage`."""
        generation = await self.hold(n=n)
        pictures = [picture_of(generation, storage, position, body) for position in range(n)]
        for picture in pictures:
            await storage.put(picture.storage_key, body, content_type="image/png")
        return await self.move(
            generation, Move("completed", leaving=("pending",), settled=(n, n * PRICE_MICROS), pictures=pictures)
        )

    async def execute(self, statement: str, **parameters: Any) -> None:
        async with self.database.statement() as connection:
            await connection.execute(text(statement), parameters)

    async def verify(self, *storages: Storage, care: Care = CARE) -> Report:
        return await verify(self.database, {storage.name: storage for storage in storages}, care)


def picture_of(generation: Generation, storage: Storage, position: int, body: bytes) -> Image:
    drawn = make_image(generation.id, position=position)
    return replace(
        drawn,
        id=secrets.token_hex(16),
        storage=storage.name,
        storage_key=f"{generation.storage_stem}-{position}.png",
        size_bytes=len(body),
        sha256=hashlib.sha256(body).digest(),
    )


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    database = Database(database_url, connections_max=5, timeout_seconds=10)
    async with database.transaction() as tx:
        caller = await make_caller(tx)
        await budgets.set_limits(tx, f"user:{caller.user_id}", {"images_total_max": 10_000})
        await budgets.set_limits(tx, "all", {"images_per_day_max": 10_000})
    yield Books(database, caller)
    await database.close()


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[FolderStorage]:
    storage = FolderStorage(tmp_path / "images")
    yield storage
    await storage.close()


@pytest.fixture(params=["folder", "bucket"])
async def storage(
    request: pytest.FixtureRequest,
    folder: FolderStorage,
    s3_server: S3Server,  # noqa: F811
) -> AsyncIterator[Storage]:
    """Either storage."""
    if request.param == "folder":
        yield folder
        return
    bucket = s3_storage(s3_server, s3_server.make_bucket(f"b-{secrets.token_hex(8)}"))
    yield bucket
    await bucket.close()


def told(report: Report) -> list[tuple[str, str]]:
    """Every violation by kind and subject."""
    return sorted((violation.kind, violation.subject) for violation in report.listed)


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
    s3_server: S3Server,  # noqa: F811
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


# What is wrong with images


async def test_an_image_whose_object_is_gone_is_told(books: Books, storage: Storage) -> None:
    gone, _ = await books.keep(storage), await books.keep(storage)
    await storage.delete(gone.images[0].storage_key)

    report = await books.verify(storage)

    assert not report.holds
    assert told(report) == [("image_missing", gone.images[0].id)]
    assert str(gone.id) in report.listed[0].detail


async def test_an_image_that_was_cut_is_told(books: Books, storage: Storage) -> None:
    cut = await books.keep(storage)
    await storage.put(cut.images[0].storage_key, PICTURE[:-1], content_type="image/png")

    report = await books.verify(storage)

    assert told(report) == [("image_size", cut.images[0].id)]


async def test_other_bytes_of_the_same_size_are_told_when_bytes_are_read(books: Books, storage: Storage) -> None:
    spoiled, _ = await books.keep(storage), await books.keep(storage)
    await storage.put(spoiled.images[0].storage_key, PICTURE[::-1], content_type="image/png")

    by_size = await books.verify(storage)
    by_bytes = await books.verify(storage, care=replace(CARE, with_bytes=True))

    assert by_size.holds
    assert told(by_bytes) == [("image_bytes", spoiled.images[0].id)]


async def test_an_erased_image_that_is_still_there_is_told(books: Books, storage: Storage) -> None:
    left = await books.keep(storage)
    await books.execute("UPDATE images SET deleted_at = now(), erased_at = now()")

    report = await books.verify(storage)

    assert told(report) == [("image_not_erased", left.images[0].id)]


async def test_an_image_outside_the_prefix_is_asked_for_by_itself(books: Books, storage: Storage) -> None:
    inside, gone = [await books.keep(storage) for _ in range(2)]
    await books.execute("UPDATE images SET storage_key = 'ours/' || storage_key WHERE id = :id", id=inside.images[0].id)
    await storage.put(f"ours/{inside.images[0].storage_key}", PICTURE, content_type="image/png")
    whole = await books.keep(storage)
    await storage.delete(gone.images[0].storage_key)

    report = await books.verify(storage, care=replace(CARE, prefixes={storage.name: "ours/"}))

    assert told(report) == [("image_missing", gone.images[0].id)]
    assert whole.images[0].id not in {violation.subject for violation in report.listed}


# Objects that no row knows


async def test_objects_that_no_row_knows_are_told_with_whose_they_were(books: Books, storage: Storage) -> None:
    failed = await books.move(await books.hold(), Move("failed", leaving=("pending",), settled=(0, 0)))
    unknown = await books.move(await books.hold(), Move("unknown", leaving=("pending",)))
    keys = {f"{failed.storage_stem}-0.png": "failed", f"{unknown.storage_stem}-0.webp": "unknown"}
    vanished = f"2026/11/22/{uuid4().hex}-0.jpg"
    for key in (*keys, vanished):
        await storage.put(key, PICTURE, content_type="image/png")

    report = await books.verify(storage)

    assert told(report) == sorted(("orphan", key) for key in (*keys, vanished))
    details = {violation.subject: violation.detail for violation in report.listed}
    assert all(details[key].endswith(f"which is {state}") for key, state in keys.items())
    assert details[vanished].endswith("of no generation")


async def test_what_a_late_put_left_of_a_picture_in_the_spool_is_no_orphan(books: Books, storage: Storage) -> None:
    kept = await books.keep(storage)
    await books.execute("UPDATE images SET storage = 'spool'")

    report = await books.verify(storage)

    assert await storage.head(kept.images[0].storage_key)
    assert told(report) == []


async def test_the_object_of_a_running_generation_is_no_orphan(books: Books, storage: Storage) -> None:
    running = await books.hold()
    await storage.put(f"{running.storage_stem}-0.png", PICTURE, content_type="image/png")

    assert (await books.verify(storage)).holds


async def test_an_object_younger_than_a_lease_is_no_orphan_yet(books: Books, storage: Storage) -> None:
    await storage.put(f"2026/11/22/{uuid4().hex}-0.png", PICTURE, content_type="image/png")

    report = await books.verify(storage, care=replace(CARE, lease_seconds=600))

    assert report.holds
    assert report.checked["objects_too_young"] == 1


async def test_the_old_object_that_a_move_left_is_an_orphan_of_its_generation(books: Books, storage: Storage) -> None:
    moved = await books.keep(storage)
    key = moved.images[0].storage_key
    await storage.put(f"pictures/{key}", PICTURE, content_type="image/png")
    await books.execute("UPDATE images SET storage_key = 'pictures/' || storage_key")

    report = await books.verify(storage)

    assert told(report) == [("orphan", key)]
    assert report.listed[0].detail.endswith(f"of generation {moved.id}, which is completed")


async def test_a_prefix_before_a_key_hides_no_running_generation(books: Books, storage: Storage) -> None:
    running = await books.hold()
    await storage.put(f"pictures/2026/{running.storage_stem}-0.png", PICTURE, content_type="image/png")

    assert (await books.verify(storage)).holds


# A storage that says little


async def test_a_bucket_that_does_not_list_is_asked_image_by_image_and_orphans_are_untold(books: Books) -> None:
    def answer(request: Request) -> None:
        if "list-type" in request.path:
            refusing(403, "AccessDenied")(request)
        elif request.path.endswith("-0.png"):
            answering(200, PICTURE)(request)
        else:
            refusing(403, "AccessDenied")(request)

    with hostile_store(answer) as bucket:
        generation = await books.hold(n=3)
        pictures = [picture_of(generation, bucket, position, PICTURE) for position in range(3)]
        await books.move(
            generation, Move("completed", leaving=("pending",), settled=(3, 3 * PRICE_MICROS), pictures=pictures)
        )

        report = await books.verify(bucket)

        assert report.holds
        assert report.checked["images"] == 3
        assert [(untold.what, untold.count) for untold in report.untold] == [("orphans", 0), ("images", 2)]
        assert all("s3:ListBucket" in untold.why for untold in report.untold)


async def test_a_bucket_that_does_not_list_still_shows_a_cut_image(books: Books) -> None:
    def answer(request: Request) -> None:
        (refusing(403, "AccessDenied") if "list-type" in request.path else answering(200, PICTURE[:9]))(request)

    with hostile_store(answer) as bucket:
        generation = await books.hold()
        pictures = [picture_of(generation, bucket, 0, PICTURE)]
        await books.move(generation, Move("completed", leaving=("pending",), settled=(1, 1), pictures=pictures))

        report = await books.verify(bucket)

        assert told(report) == [("image_size", pictures[0].id)]


# What is wrong with rows


async def test_a_completed_generation_without_all_its_images_is_told(books: Books, folder: FolderStorage) -> None:
    short, misplaced, _ = [await books.keep(folder, n=2) for _ in range(3)]
    await folder.delete(short.images[1].storage_key)
    await books.execute("DELETE FROM images WHERE id = :id", id=short.images[1].id)
    await books.execute("UPDATE images SET position = 2 WHERE id = :id", id=misplaced.images[1].id)

    report = await books.verify(folder)

    assert told(report) == sorted(("images_incomplete", str(generation.id)) for generation in (short, misplaced))


async def test_images_of_a_generation_that_did_not_complete_are_told(books: Books, folder: FolderStorage) -> None:
    generation = await books.keep(folder)
    await books.execute("UPDATE generations SET state = 'lost'")

    report = await books.verify(folder)

    assert ("images_uncalled_for", str(generation.id)) in told(report)


async def test_a_deleted_generation_that_keeps_an_image_or_its_words_is_told(
    books: Books, folder: FolderStorage
) -> None:
    wordy, seen, clean = [await books.keep(folder) for _ in range(3)]
    await images.delete(books.database, make_stores(books.database, folder), clean)
    await books.execute("UPDATE generations SET deleted_at = now() WHERE id = :id", id=wordy.id)
    await books.execute("UPDATE images SET deleted_at = now() WHERE generation_id = :id", id=wordy.id)
    await books.execute("UPDATE generations SET deleted_at = now(), prompt = NULL WHERE id = :id", id=seen.id)

    report = await books.verify(folder)

    assert told(report) == sorted(("deletion_incomplete", str(generation.id)) for generation in (wordy, seen))


async def test_a_counter_that_differs_from_the_generations_is_told(books: Books, folder: FolderStorage) -> None:
    await books.keep(folder)
    await books.execute("UPDATE budgets SET images_total = images_total + 1 WHERE scope = 'all'")

    report = await books.verify(folder)

    assert told(report) == [("budget_differs", "all")]
    assert report.listed[0].detail == "images_total says 2, the generations say 1"


async def test_a_lease_is_stale_once_nobody_took_over_for_another_lease(books: Books, folder: FolderStorage) -> None:
    left, waiting, _ = [await books.hold() for _ in range(3)]
    for generation, seconds in ((left, 61), (waiting, 50)):
        await books.execute(
            "UPDATE generations SET lease_until = now() - make_interval(secs => :seconds) WHERE id = :id",
            id=generation.id,
            seconds=seconds,
        )

    report = await books.verify(folder, care=replace(CARE, lease_seconds=60))

    assert told(report) == [("lease_stale", str(left.id))]


# Much of it, and while it moves


async def test_thousands_are_gone_through_page_by_page_and_each_fault_is_found(
    books: Books, folder: FolderStorage, tmp_path: Path
) -> None:
    keys = await _keep_many(books, tmp_path / "images", 2 * LISTED_MAX + 300)
    # At the edges of the pages, where one would be skipped if anywhere.
    gone = {keys[place] for place in (0, 999, 1000, 1999, 2000, len(keys) - 1)}
    for key in gone:
        await folder.delete(key)
    orphan = f"2026/11/22/{'f' * 32}-0.png"
    await folder.put(orphan, PICTURE, content_type="image/png")

    report = await books.verify(folder)

    ids = {key.rpartition("/")[2][:32] for key in gone}
    assert {subject for kind, subject in told(report) if kind == "image_missing"} == ids
    assert [subject for kind, subject in told(report) if kind == "orphan"] == [orphan]
    assert report.checked["images"] == report.checked["generations"] == len(keys)


async def test_of_thousands_of_faults_a_hundred_are_listed_and_all_are_counted(
    books: Books, folder: FolderStorage, tmp_path: Path
) -> None:
    keys = await _keep_many(books, tmp_path / "images", 300)
    for key in keys:
        (tmp_path / "images" / key).unlink()

    report = await books.verify(folder)

    assert report.violations == {"image_missing": 300}
    assert len(report.listed) == 100


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


async def _keep_many(books: Books, root: Path, count: int) -> Sequence[str]:
    """So many completed generations with their files, made in one go. Returns the keys in order."""
    ids = sorted(uuid4().hex for _ in range(count))
    await books.execute(
        "INSERT INTO generations (id, user_id, api_key_id, scopes, state, order_digest, model, size, quality, sandbox,"
        " held_images, held_micros, settled_images, settled_micros, day, storage_stem, created_at)"
        " SELECT id::uuid, :user_id, :api_key_id, '{}', 'completed', '', 'm', 's', 'q', false, 1, 1, 1, 1, now(),"
        " '2026/11/22/' || id, now() FROM unnest(CAST(:ids AS text[])) AS t(id)",
        user_id=books.caller.user_id,
        api_key_id=books.caller.api_key_id,
        ids=ids,
    )
    await books.execute(
        "INSERT INTO images (id, generation_id, position, storage, storage_key, content_type, extension, width, height,"
        " size_bytes, sha256) SELECT id, id::uuid, 0, 'folder', '2026/11/22/' || id || '-0.png', 'image/png', 'png',"
        " 1, 1, 0, '' FROM unnest(CAST(:ids AS text[])) AS t(id)",
        ids=ids,
    )
    keys = [f"2026/11/22/{UUID(one).hex}-0.png" for one in ids]
    (root / keys[0]).parent.mkdir(parents=True, exist_ok=True)
    for key in keys:
        (root / key).touch()
    return keys
