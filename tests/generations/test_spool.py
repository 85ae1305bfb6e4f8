"""Does every picture that storage did not take come home once, whole, whatever happens meanwhile?

Home is a folder that goes away; the rows and bodies are as the driver leaves them.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.connections.connection import Body
from app.database.pool import Database
from app.generations import images, records, spool
from app.generations.records import Image, Move
from app.storage.base import ObjectMissing, Storage, StorageError, StorageMisconfigured, StorageUnavailable
from app.storage.deferred import DeferredStorage
from app.storage.folder import FolderStorage
from tests.generations.parts import Parts, png
from tests.makers import make_image, make_stores
from tests.sandbox_server import RunningSandbox

pytestmark = pytest.mark.anyio


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _spooled(parts: Parts) -> Image:
    """An image that lives in the spool, as a driver leaves it when home is away."""
    parts.folder.rename(parts.folder.with_name("away"))
    ended = await parts.driver.drive(await parts.reserve())
    parts.folder.with_name("away").rename(parts.folder)
    assert ended.images[0].storage == "spool"
    return ended.images[0]


async def _found(parts: Parts, image: Image) -> Image:
    async with parts.database.statement() as connection:
        found = await images.find(connection, image.id)
    assert found is not None
    return found


async def _sweep(parts: Parts) -> int:
    async with parts.database.statement() as connection:
        return await spool.sweep(connection, batch_max=8)


async def test_a_picture_that_home_refuses_goes_into_the_spool_and_comes_home_when_home_answers(parts: Parts) -> None:
    image = await _spooled(parts)

    await parts.recover()

    assert (await _found(parts, image)).storage == "folder"
    body = await _whole(await parts.home.read(image.storage_key))
    assert len(body) == image.size_bytes
    assert (await parts.stores.look()).images == 0


async def test_while_home_fails_nothing_is_carried_there(parts: Parts) -> None:
    image = await _spooled(parts)
    parts.folder.rename(parts.folder.with_name("away"))

    await parts.recover()

    assert (await _found(parts, image)).storage == "spool"
    assert parts.stores.failing


async def test_a_picture_that_is_not_what_it_was_stays_and_holds_up_no_other(parts: Parts) -> None:
    spoiled, whole = await _spooled(parts), await _spooled(parts)
    await parts.stores.spool.put(spoiled.storage_key, png(), content_type="image/png")

    await parts.recover()

    assert [(await _found(parts, image)).storage for image in (spoiled, whole)] == ["spool", "folder"]
    assert (await parts.stores.spool.head(spoiled.storage_key)).bytes == len(png())


class Slow(FolderStorage):
    """A store that takes every picture, and its time."""

    async def put(self, key: str, body: Body, *, content_type: str, sha256: bytes | None = None) -> None:
        await asyncio.sleep(0.6)
        await super().put(key, body, content_type=content_type)


class KeepsHalf(FolderStorage):
    """A store that says it kept what it cut, as one did when an upload broke off."""

    async def put(self, key: str, body: Body, *, content_type: str, sha256: bytes | None = None) -> None:
        await super().put(key, body[: len(body) // 2], content_type=content_type)


async def test_a_picture_that_arrives_cut_stays_in_the_spool(parts: Parts) -> None:
    image = await _spooled(parts)
    home = KeepsHalf(parts.folder)
    stores = make_stores(parts.database, home)

    arrived = await images.empty_spool(parts.database, stores, batch_max=8)

    assert arrived == 0
    assert (await _found(parts, image)).storage == "spool"
    assert (await parts.stores.spool.head(image.storage_key)).bytes == image.size_bytes
    await stores.close()
    await home.close()


class TakesNone(FolderStorage):
    """A store that answers every question about itself, and is silent, or fails after a while, when given a picture."""

    def __init__(self, root: Path, *, fails_after_seconds: float) -> None:
        super().__init__(root)
        self.offered = 0
        self._fails_after_seconds = fails_after_seconds

    async def put(self, key: str, body: Body, *, content_type: str, sha256: bytes | None = None) -> None:
        self.offered += 1
        await asyncio.sleep(self._fails_after_seconds)
        raise StorageUnavailable(self.name, "as the test wants it")


@pytest.mark.parametrize(("fails_after_seconds", "offered_max"), [(3600, 1), (0.6, 2)])
async def test_a_storage_that_takes_its_time_to_take_none_is_waited_for_once_a_round(
    parts: Parts, fails_after_seconds: float, offered_max: int
) -> None:
    found = [await _spooled(parts) for _ in range(4)]
    home = TakesNone(parts.folder, fails_after_seconds=fails_after_seconds)
    stores = make_stores(parts.database, home)

    arrived = await images.empty_spool(parts.database, stores, batch_max=8, patience_seconds=1)

    assert arrived == 0
    assert 1 <= home.offered <= offered_max
    assert [(await _found(parts, image)).storage for image in found] == ["spool"] * 4
    await stores.close()
    await home.close()


async def test_a_storage_that_is_slow_is_given_each_picture_that_it_takes(parts: Parts) -> None:
    for _ in range(4):
        await _spooled(parts)
    home = Slow(parts.folder)
    stores = make_stores(parts.database, home)

    arrived = await images.empty_spool(parts.database, stores, batch_max=8, patience_seconds=2)

    assert arrived == 4, "although all of them took longer than one may"
    await stores.close()
    await home.close()


async def test_two_processes_that_empty_the_spool_at_once_lose_nothing(parts: Parts) -> None:
    found = [await _spooled(parts) for _ in range(6)]
    await parts.stores.answers()

    arrived = await asyncio.gather(*(images.empty_spool(parts.database, parts.stores, batch_max=8) for _ in range(3)))

    assert sum(arrived) == len(found)
    for image in found:
        assert (await _found(parts, image)).storage == "folder"
        assert (await parts.home.head(image.storage_key)).bytes == image.size_bytes


async def test_two_that_move_all_images_at_once_lose_nothing(parts: Parts, tmp_path: Path) -> None:
    found = [(await parts.driver.drive(await parts.reserve())).images[0] for _ in range(4)]
    other = FolderStorage(tmp_path / "other")
    await parts.execute("UPDATE images SET storage = 'former'")
    stores = make_stores(parts.database, other)
    stores.by_name = {**stores.by_name, "former": parts.home}

    moved = await asyncio.gather(*(images.move_all(parts.database, stores, prefix="") for _ in range(3)))

    assert sum(done.images for done in moved) == len(found)
    assert [done.failures for done in moved] == [(), (), ()]
    assert [(await other.head(image.storage_key)).bytes for image in found] == [image.size_bytes for image in found]
    await other.close()


async def test_a_picture_that_goes_home_while_it_is_read_is_read_to_its_end(parts: Parts) -> None:
    image = await _spooled(parts)
    await parts.stores.answers()
    chunks = await images.read(parts.database, parts.stores.by_name, image, start=5, length=image.size_bytes - 9)

    assert await images.empty_spool(parts.database, parts.stores, batch_max=8) == 1

    assert await _whole(chunks) == (await _whole(await parts.home.read(image.storage_key)))[5:-4]


async def test_a_row_that_was_read_before_its_picture_went_home_still_leads_there(parts: Parts) -> None:
    image = await _spooled(parts)
    await parts.recover()

    chunks = await images.read(parts.database, parts.stores.by_name, image)

    assert len(await _whole(chunks)) == image.size_bytes


@pytest.mark.parametrize("state", ["pending", "generated"])
async def test_what_a_killed_process_left_in_the_spool_completes_its_generation(
    parts: Parts, sandbox: RunningSandbox, state: str
) -> None:
    generation = await parts.reserve()
    if state == "generated":
        dead = Move(
            "generated",
            leaving=("pending",),
            source_urls=[f"{sandbox.url}/gone.png"],
            source_lifetime_seconds=-1,
            lease_seconds=60,
        )
        await parts.move(generation, dead)
    await parts.stores.spool.put(f"{generation.storage_stem}-0.png", png(), content_type="image/png")
    await parts.let_leases_run_out()

    await parts.recover()

    ended = await parts.find(generation)
    assert (ended.state, len(ended.images)) == ("completed", 1)
    assert sandbox.witness()["asked"] == 0


async def test_a_silent_storage_makes_no_picture_lost(parts: Parts, sandbox: RunningSandbox) -> None:
    generation = await parts.reserve()
    dead = Move(
        "generated",
        leaving=("pending",),
        source_urls=[f"{sandbox.url}/gone.png"],
        source_lifetime_seconds=-1,
        lease_seconds=60,
    )
    await parts.move(generation, dead)
    await parts.home.put(f"{generation.storage_stem}-0.png", png(), content_type="image/png")
    parts.folder.rename(parts.folder.with_name("away"))
    await parts.let_leases_run_out()
    await parts.recover()
    parts.folder.with_name("away").rename(parts.folder)
    await parts.let_leases_run_out()

    await parts.recover()

    ended = await parts.find(generation)
    assert ended.state == "completed"


@pytest.mark.parametrize(
    ("state", "kept"),
    [("pending", True), ("generated", True), ("unknown", True), ("completed", False), ("failed", False)],
)
async def test_the_spool_keeps_what_may_be_the_only_copy_and_nothing_else(
    parts: Parts, state: records.State, kept: bool
) -> None:
    generation = await parts.reserve()
    to = {
        "generated": Move("generated", leaving=("pending",), source_urls=["https://x.test/a"], lease_seconds=60),
        "unknown": Move("unknown", leaving=("pending",)),
        "completed": Move("completed", leaving=("pending",), settled=(1, 10_000), pictures=[make_image(generation.id)]),
        "failed": Move("failed", leaving=("pending",), settled=(0, 0)),
    }.get(state)
    if to is not None:
        await parts.move(generation, to)
    await parts.stores.spool.put(f"{generation.storage_stem}-0.png", png(), content_type="image/png")

    removed = await _sweep(parts)

    assert removed == (0 if kept else 1)
    assert (await parts.stores.look()).images == (1 if kept else 0)


async def test_an_image_that_lives_in_the_spool_is_not_swept_away(parts: Parts) -> None:
    image = await _spooled(parts)

    assert await _sweep(parts) == 0

    assert (await parts.stores.spool.head(image.storage_key)).bytes == image.size_bytes


async def test_a_picture_is_put_home_when_the_database_is_away_and_home_failed_before(
    parts: Parts, database_url: str
) -> None:
    gone = Database(database_url.replace("test_", "no_such_"), connections_max=1, timeout_seconds=2)
    stores = make_stores(gone, parts.home)
    parts.folder.rename(parts.folder.with_name("away"))
    with pytest.raises(StorageError):
        await stores.put("a.png", png(), content_type="image/png")
    parts.folder.with_name("away").rename(parts.folder)

    taken_by = await stores.put("a.png", png(), content_type="image/png")

    assert (taken_by, stores.failing) == ("folder", False)
    await gone.close()


async def test_a_spooled_picture_is_deleted_everywhere(parts: Parts) -> None:
    image = await _spooled(parts)
    await parts.home.put(image.storage_key, png(), content_type="image/png")
    async with parts.database.statement() as connection:
        (generation,) = await records.page(connection, limit=1)

    await images.delete(parts.database, parts.stores, generation)
    await parts.recover()

    for storage in parts.stores.by_name.values():
        with pytest.raises(ObjectMissing):
            await storage.head(image.storage_key)


@pytest.mark.parametrize(("spool_bytes_max", "pictures_max"), [(0, 0), (2**26, 2)])
async def test_no_picture_is_taken_for_a_home_that_can_not_be_opened_but_what_the_spool_has_room_for(
    parts: Parts, spool_bytes_max: int, pictures_max: int
) -> None:
    def open_none() -> Storage:
        raise StorageMisconfigured("s3:pictures", "half of the credentials")

    home = DeferredStorage("s3:pictures", open_none)
    stores = make_stores(parts.database, home, spool_bytes_max=spool_bytes_max)

    found = await stores.pictures_max()
    await stores.close()

    assert found == pictures_max
    assert stores.failing


async def test_the_first_order_waits_until_home_is_open(parts: Parts) -> None:
    home = DeferredStorage("folder", lambda: FolderStorage(parts.folder))
    stores = make_stores(parts.database, home)

    await stores.pictures_max()
    opened = home.is_open
    await stores.close()
    await home.close()

    assert (opened, stores.failing) == (True, False)
