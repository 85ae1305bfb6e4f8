"""Does a verification find what is wrong in rows: images, deletions, counters and leases that cannot be so?

Each test keeps real images in a folder, spoils one thing, and reads the report.
"""

from dataclasses import replace

import pytest

from app.generations import images
from app.storage.folder import FolderStorage
from tests.generations.kept_images import CARE, Books, told
from tests.makers import make_stores

pytestmark = pytest.mark.anyio


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
