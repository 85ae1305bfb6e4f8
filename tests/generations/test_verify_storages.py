"""Does a verification find what is wrong in a storage: images gone or spoiled, and objects that no row knows?

Each test keeps real images in a folder or a bucket, spoils one thing, and reads the report.
"""

from dataclasses import replace
from uuid import uuid4

import pytest

from app.generations.records import Move
from app.storage.base import Storage
from tests.generations.kept_images import CARE, PICTURE, Books, picture_of, told
from tests.makers import PRICE_MICROS
from tests.storage.hostile_store import Request, answering, hostile_store, refusing

pytestmark = pytest.mark.anyio


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
