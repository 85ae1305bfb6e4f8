"""Is a storage that is opened late opened once, off the loop, and again when that failed?"""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.storage.base import Storage, StorageMisconfigured
from app.storage.deferred import DeferredStorage
from app.storage.folder import FolderStorage
from tests.storage.conftest import whole

pytestmark = pytest.mark.anyio


class Openings:
    """Opens a folder when told that it may, and counts how often it was asked to, and in which threads."""

    def __init__(self, root: Path) -> None:
        self.threads: list[int] = []
        self.faults: list[Exception] = []
        self.allowed = threading.Event()
        self._root = root

    def __call__(self) -> Storage:
        self.threads.append(threading.get_ident())
        assert self.allowed.wait(30)
        if self.faults:
            raise self.faults.pop()
        return FolderStorage(self._root)


@pytest.fixture
def openings(tmp_path: Path) -> Openings:
    return Openings(tmp_path / "pictures")


async def begun(condition: Callable[[], object]) -> None:
    """Return once it holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_it_has_its_name_and_ends_without_being_opened(openings: Openings) -> None:
    storage = DeferredStorage("folder", openings)

    assert storage.name == "folder"
    await storage.close()

    assert openings.threads == []


async def test_all_that_need_it_at_once_open_it_once_and_in_a_thread(openings: Openings) -> None:
    storage = DeferredStorage("folder", openings)
    puts = [asyncio.create_task(storage.put(f"{name}.png", b"picture", content_type="image/png")) for name in "abc"]
    await begun(lambda: openings.threads)

    openings.allowed.set()
    await asyncio.gather(*puts)

    assert await whole(storage, "c.png") == b"picture"
    assert len(openings.threads) == 1
    assert openings.threads[0] != threading.get_ident()
    await storage.close()


async def test_whoever_gives_up_waiting_leaves_it_to_the_others(openings: Openings) -> None:
    storage = DeferredStorage("folder", openings)
    hasty, patient = (asyncio.create_task(storage.put("a.png", b"picture", content_type="image/png")) for _ in "12")
    await begun(lambda: openings.threads)

    hasty.cancel()
    await asyncio.wait([hasty])
    openings.allowed.set()
    await patient

    assert hasty.cancelled()
    assert await whole(storage, "a.png") == b"picture"
    assert len(openings.threads) == 1
    await storage.close()


async def test_what_prevents_it_is_raised_and_the_next_call_tries_again(openings: Openings) -> None:
    storage = DeferredStorage("s3:pictures", openings)
    openings.faults.append(StorageMisconfigured("s3:pictures", "no such profile"))
    openings.allowed.set()

    with pytest.raises(StorageMisconfigured, match="no such profile"):
        await storage.check()
    await storage.check()

    assert len(openings.threads) == 2
    await storage.close()


async def test_closing_waits_for_nobody_who_lends_credentials(openings: Openings) -> None:
    storage = DeferredStorage("folder", openings)
    check = asyncio.create_task(storage.check())
    await begun(lambda: openings.threads)
    check.cancel()

    async with asyncio.timeout(5):
        await storage.close()

    openings.allowed.set()


def test_a_loop_that_ends_leaves_an_opening_behind(openings: Openings) -> None:
    async def ask() -> None:
        check = asyncio.create_task(DeferredStorage("folder", openings).check())
        await begun(lambda: openings.threads)
        check.cancel()

    asyncio.run(asyncio.wait_for(ask(), 5))

    openings.allowed.set()


async def test_one_that_could_not_be_opened_is_closed_without_a_word(openings: Openings) -> None:
    storage = DeferredStorage("folder", openings)
    openings.faults.append(StorageMisconfigured("folder", "no such profile"))
    openings.allowed.set()
    with pytest.raises(StorageMisconfigured):
        await storage.check()

    await storage.close()
    await storage.close()
