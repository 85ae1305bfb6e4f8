"""How does a picture come from where upstream put it, or from its answer, to where it stays?"""

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import structlog

from app import telemetry
from app.connections.connection import Body
from app.generations.picture import EXTENSIONS, NotAPicture, Picture, inspect
from app.generations.records import Generation, Image
from app.generations.stores import Stores
from app.storage.base import CannotTell, ObjectMissing, Storage, StorageError
from app.upstream.download import Downloader, DownloadError
from app.upstream.room import Hold, Room

log = structlog.get_logger(__name__)


class RehostFailed(Exception):
    """A picture could not be fetched, checked or stored this time. `final` tells that trying again is no use."""

    def __init__(self, what: str, detail: str, *, final: bool = False) -> None:
        self.what = what
        self.final = final
        super().__init__(f"{what}: {detail}")


class Rehost:
    """Fetches, checks and stores pictures, a bounded number at a time. Opened once, closed at the end."""

    def __init__(
        self,
        *,
        downloader: Downloader,
        stores: Stores,
        room: Room,
        pixels_max: int,
        in_flight_max: int,
        threads_max: int,
    ) -> None:
        """`room` bounds the bytes in memory; `in_flight_max` is how many pictures are fetched or looked for at once,
        `threads_max` how many are checked.
        """
        self._downloader = downloader
        self._stores = stores
        self._pixels_max = pixels_max
        self._room = room
        self._places = asyncio.Semaphore(in_flight_max)
        # Decoding is CPU; beside the loop it would stall every other caller.
        self._threads = ThreadPoolExecutor(threads_max, thread_name_prefix="picture")

    async def keep(
        self, generation: Generation, sources: Sequence[str | bytes], kept: dict[int, Image]
    ) -> tuple[Image, ...]:
        """Bring the picture behind each source, a URL or bytes, into storage, and say where each is.

        `kept` is what is there already, by position, and grows with each picture: one that can't be had holds up no
        other, and a try that breaks off in the middle is not begun anew. Doing it again is fine: the keys are the
        generation's own, and the bytes are the same. Raises RehostFailed when one of them can't be kept; `final` only
        if trying again is no use for any that is missing.
        """
        started = time.monotonic()
        failures: list[RehostFailed] = []
        for position, source in enumerate(sources):
            if position in kept:
                continue
            try:
                kept[position] = await self._keep(generation, position, source)
            except RehostFailed as failure:
                failures.append(failure)
        if failures:
            raise next((failure for failure in failures if not failure.final), failures[0])
        telemetry.rehost_seconds.observe(time.monotonic() - started)
        return in_order(kept)

    def hold(self) -> Hold:
        """Return what room for an answer's pictures is taken with, until they are kept."""
        return self._room.hold()

    async def _keep(self, generation: Generation, position: int, source: str | bytes) -> Image:
        if isinstance(source, bytes):
            # It has its room. Waiting for a place, it could keep that from who has a place and waits for room.
            return await self._store(generation, position, source, final=True)
        async with self._places:
            with self._room.hold() as held:
                return await self._store(generation, position, await self._fetch(source, held), final=False)

    async def _store(self, generation: Generation, position: int, body: Body, *, final: bool) -> Image:
        picture = await self._inspect(body, final=final)
        log.debug("picture_fetched", position=position, bytes=len(picture.body))
        key = f"{generation.storage_stem}-{position}.{picture.extension}"
        try:
            storage = await self._stores.put(
                key, picture.body, content_type=picture.content_type, sha256=picture.sha256
            )
        except StorageError as error:
            raise RehostFailed("storage", str(error)) from error
        log.debug("picture_stored", position=position, storage=storage)
        return _image(picture, position, storage, key)

    async def _fetch(self, url: str, held: Hold) -> Body:
        try:
            return await self._downloader.fetch(url, held)
        except DownloadError as error:
            raise RehostFailed("download", str(error), final=not error.retryable) from error

    async def _inspect(self, body: Body, *, final: bool = False) -> Picture:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: inspect(body, pixels_max=self._pixels_max))
        except NotAPicture as error:
            # Bytes in hand are what they are; a URL may answer better the next time.
            raise RehostFailed("picture", str(error), final=final) from error

    async def find_kept(self, generation: Generation) -> tuple[Image, ...]:
        """Return the pictures that are in storage under this generation's keys although its row doesn't say so.

        Empty unless every picture of the order is there: with fewer, nobody knows what was billed. Raises RehostFailed
        as `find` does.
        """
        kept: dict[int, Image] = {}
        await self.find(generation, kept)
        return in_order(kept) if len(kept) == generation.held_images else ()

    async def find(self, generation: Generation, kept: dict[int, Image]) -> None:
        """Add to `kept`, by position, what is in storage under this generation's keys.

        Each picture is read and checked, so what is found is whole. None is found where storage can't tell: S3 without
        the right to list answers 403 for what is missing, and that is no proof of absence. Raises RehostFailed when a
        storage does not answer, after what the others hold was added.
        """
        unanswered: RehostFailed | None = None
        for position in range(generation.held_images):
            try:
                if position not in kept and (found := await self._find_one(generation, position)):
                    kept[position] = found
            except RehostFailed as failure:
                unanswered = failure
        if unanswered is not None:
            raise unanswered

    async def _find_one(self, generation: Generation, position: int) -> Image | None:
        for storage in self._stores.by_name.values():
            if storage is self._stores.home and self._stores.failing:
                raise RehostFailed("storage", f"{storage.name} can't be asked just now")
            for extension in EXTENSIONS:
                key = f"{generation.storage_stem}-{position}.{extension}"
                try:
                    async with self._places:
                        with self._room.hold() as held:
                            picture = await self._inspect(await _read(storage, key, held))
                except (ObjectMissing, CannotTell):
                    continue
                except StorageError as error:
                    raise RehostFailed("storage", str(error)) from error
                except RehostFailed as failure:
                    # An object that was cut is no picture of ours. Postponed for it, the row would never end.
                    log.warning("stored_object_is_no_picture", key=key, detail=str(failure))
                    continue
                return _image(picture, position, storage.name, key)
        return None

    async def discard(self, pictures: Sequence[Image]) -> None:
        """Delete pictures that were stored for a row that is no longer there to hold them."""
        for picture in pictures:
            with suppress(StorageError):
                await self._stores.by_name[picture.storage].delete(picture.storage_key)

    async def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _read(storage: Storage, key: str, held: Hold) -> bytes:
    stream = await storage.read(key)
    try:
        await held.take(stream.bytes_total)
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


def in_order(kept: Mapping[int, Image]) -> tuple[Image, ...]:
    """Return pictures in their order, numbered anew: of those that came, none is missing in between."""
    images = enumerate(kept[position] for position in sorted(kept))
    return tuple(image if image.position == number else replace(image, position=number) for number, image in images)


def new_image_id() -> str:
    """Return a new id for a permanent URL: 128 random bits, too many to guess."""
    return secrets.token_hex(16)


def _image(picture: Picture, position: int, storage: str, key: str) -> Image:
    return Image(
        id=new_image_id(),
        position=position,
        storage=storage,
        storage_key=key,
        content_type=picture.content_type,
        extension=picture.extension,
        width=picture.width,
        height=picture.height,
        size_bytes=len(picture.body),
        sha256=picture.sha256,
    )
