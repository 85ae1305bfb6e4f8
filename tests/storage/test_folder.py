"""What is promised of a folder alone: nothing but whole files inside it, and faults that name the cause."""

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.storage.base import ObjectMissing, Storage, StorageMisconfigured, StorageUnavailable
from app.storage.folder import FolderStorage
from tests.storage.conftest import whole

pytestmark = pytest.mark.anyio

KEY = "2026/11/22/ab12-0.png"


async def test_its_name_is_what_an_image_remembers(folder: FolderStorage) -> None:
    storage: Storage = folder

    assert storage.name == "folder"


async def test_an_object_is_one_file_for_the_service_alone(folder: FolderStorage, tmp_path: Path) -> None:
    await folder.put(KEY, b"picture", content_type="image/png")

    files = [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]
    assert files == [tmp_path / "pictures" / KEY]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700


async def test_a_symbolic_way_out_is_not_a_key(folder: FolderStorage, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")

    with pytest.raises(ValueError, match="not a storage key"):
        await folder.read("../secret.png")


@pytest.mark.parametrize("extension", ["gif", "txt", "bin"])
async def test_an_extension_that_is_no_picture_has_no_content_type(folder: FolderStorage, extension: str) -> None:
    await folder.put(f"a.{extension}", b"x", content_type="text/plain")

    assert (await folder.head(f"a.{extension}")).content_type is None


async def test_a_put_that_is_killed_leaves_the_old_object_and_no_half_one(
    folder: FolderStorage, tmp_path: Path
) -> None:
    old = b"old" * 1000
    await folder.put(KEY, old, content_type="image/png")

    for _ in range(5):
        _put_until_killed(tmp_path / "pictures")
        assert await whole(folder, KEY) in (old, b"\0" * 8_000_000)

    part_written = [path for path in (tmp_path / "pictures").rglob("*") if path.is_file() and path.name != "ab12-0.png"]
    for path in part_written:
        with pytest.raises(ValueError, match="not a storage key"):
            await folder.head(str(path.relative_to(tmp_path / "pictures")))


async def test_a_full_disk_is_unavailable_and_leaves_nothing(folder: FolderStorage, tmp_path: Path) -> None:
    await folder.put(KEY, b"old", content_type="image/png")

    with _files_end_at(1000), pytest.raises(StorageUnavailable, match="look at its disk"):
        await folder.put(KEY, b"n" * 100_000, content_type="image/png")

    assert await whole(folder, KEY) == b"old"
    assert os.listdir((tmp_path / "pictures" / KEY).parent) == ["ab12-0.png"]


async def test_a_file_in_the_folders_place_is_the_operators_fault(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("not a folder")
    storage = FolderStorage(tmp_path / "pictures")

    for call in (storage.check(), storage.put(KEY, b"x", content_type="image/png"), storage.head(KEY)):
        with pytest.raises(StorageMisconfigured, match=r"is not a folder: .*DATA_DIR"):
            await call


async def test_a_folder_that_cannot_be_made_is_told_by_the_first_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = FolderStorage(tmp_path / "file" / "pictures")

    with pytest.raises(StorageMisconfigured, match="could not be made"):
        await storage.check()


@pytest.mark.skipif(os.geteuid() == 0, reason="file modes do not bind root")
async def test_a_folder_without_the_right_to_write_is_the_operators_fault(
    folder: FolderStorage, tmp_path: Path
) -> None:
    (tmp_path / "pictures").chmod(0o500)

    for call in (folder.check(), folder.put(KEY, b"x", content_type="image/png")):
        with pytest.raises(StorageMisconfigured, match="cannot be used"):
            await call


async def test_an_unmounted_disk_is_no_missing_picture_and_is_not_written_over(
    folder: FolderStorage, tmp_path: Path
) -> None:
    await folder.put(KEY, b"picture", content_type="image/png")
    (tmp_path / "pictures").rename(tmp_path / "unmounted")

    for call in (folder.head(KEY), folder.read(KEY), folder.delete(KEY), folder.put(KEY, b"x", content_type="x/y")):
        with pytest.raises(StorageMisconfigured, match="mount its disk"):
            await call
    assert not (tmp_path / "pictures").exists()


async def test_a_folder_under_the_key_is_not_an_object(folder: FolderStorage) -> None:
    await folder.put(KEY, b"picture", content_type="image/png")

    await folder.delete("2026/11")

    with pytest.raises(ObjectMissing):
        await folder.read("2026/11")
    with pytest.raises(ObjectMissing):
        await folder.head(f"{KEY}/deeper.png")
    assert await whole(folder, KEY) == b"picture"


async def test_a_file_cut_while_it_is_read_is_unavailable(folder: FolderStorage, tmp_path: Path) -> None:
    await folder.put(KEY, bytes(1_000_000), content_type="image/png")
    stream = await folder.read(KEY)
    await anext(stream)

    os.truncate(tmp_path / "pictures" / KEY, 300_000)

    with pytest.raises(StorageUnavailable, match="ended 700000 bytes early"):
        async for _ in stream:
            pass


async def test_an_object_replaced_while_it_is_read_is_read_to_its_end(folder: FolderStorage) -> None:
    await folder.put(KEY, b"a" * 1_000_000, content_type="image/png")
    stream = await folder.read(KEY)

    await folder.put(KEY, b"b", content_type="image/png")

    assert b"".join([chunk async for chunk in stream]) == b"a" * 1_000_000


async def test_check_leaves_no_file_behind(folder: FolderStorage, tmp_path: Path) -> None:
    await folder.check()

    assert list((tmp_path / "pictures").iterdir()) == []


def _put_until_killed(root: Path) -> None:
    """Put 8 MB over and over in a process of its own, and kill it once a put is on its way."""
    program = (
        "import asyncio, pathlib, sys\n"
        "from app.storage.folder import FolderStorage\n"
        "async def main():\n"
        "    storage = FolderStorage(pathlib.Path(sys.argv[1]))\n"
        "    print('putting', flush=True)\n"
        "    while True:\n"
        f"        await storage.put({KEY!r}, bytes(8_000_000), content_type='image/png')\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE) as putter:
        assert putter.stdout is not None
        putter.stdout.readline()
        folder = (root / KEY).parent
        while not any(name.endswith(".part") for name in os.listdir(folder)):
            assert putter.poll() is None
        putter.kill()


@contextmanager
def _files_end_at(bytes_max: int) -> Iterator[None]:
    """Let no file of this process grow further, as on a full disk; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_part_written_file_and_a_folder_are_not_listed(folder: FolderStorage, tmp_path: Path) -> None:
    await folder.put(KEY, b"picture", content_type="image/png")
    (tmp_path / "pictures" / "2026/11/22" / ".ab12-1.png.0011.part").write_bytes(b"pict")
    (tmp_path / "pictures" / "2026/11/23").mkdir()

    assert [one.key async for one in folder.objects()] == [KEY]


async def test_a_folder_that_is_gone_does_not_list_as_an_empty_one(folder: FolderStorage, tmp_path: Path) -> None:
    (tmp_path / "pictures").rmdir()

    with pytest.raises(StorageMisconfigured, match="mount its disk"):
        await anext(folder.objects())
