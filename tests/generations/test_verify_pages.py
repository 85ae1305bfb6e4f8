"""Does a verification go through thousands of images page by page, and find each fault among them?"""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from app.storage.base import LISTED_MAX
from app.storage.folder import FolderStorage
from tests.generations.kept_images import PICTURE, Books, told

pytestmark = pytest.mark.anyio


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
