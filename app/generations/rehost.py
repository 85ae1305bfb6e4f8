"""How does a picture come from where upstream put it, or from its answer, to where it stays?"""

import asyncio
import hashlib
import io
import secrets
import struct
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from app import telemetry
from app.generations.records import Generation, Image
from app.generations.stores import Stores
from app.storage.base import CannotTell, ObjectMissing, StorageError
from app.upstream.download import Downloader, DownloadError

log = structlog.get_logger(__name__)

# What upstream may send, by Pillow's name. SVG and HTML can run scripts in a browser; GIF and TIFF nobody asked for.
_KINDS = {"PNG": ("image/png", "png"), "JPEG": ("image/jpeg", "jpg"), "WEBP": ("image/webp", "webp")}
EXTENSIONS = tuple(extension for _, extension in _KINDS.values())

_CHECK_THREADS = 2


class NotAPicture(Exception):
    """These bytes are no whole PNG, JPEG or WebP of an allowed size; the text says what is wrong."""


@dataclass(frozen=True)
class Picture:
    """Bytes that were found to be a whole picture of a known kind and size."""

    body: bytes = field(repr=False)
    content_type: str
    extension: str
    width: int
    height: int

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.body).digest()


class RehostFailed(Exception):
    """A picture could not be fetched, checked or stored this time. `final` tells that trying again is no use."""

    def __init__(self, what: str, detail: str, *, final: bool = False) -> None:
        self.what = what
        self.final = final
        super().__init__(f"{what}: {detail}")


def inspect(body: bytes, *, pixels_max: int) -> Picture:
    """Return what picture these bytes are. Raises NotAPicture; never decodes more pixels than `pixels_max`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures before our own cap can speak; the cap is what counts.
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            opened = Pillow.open(io.BytesIO(body), formats=list(_KINDS))
        width, height = opened.size
        if width * height > pixels_max:
            raise NotAPicture(f"{width}x{height} is more than {pixels_max} pixels")
        kind = opened.format
        assert kind is not None
        # verify() reads a PNG's checksums without decoding it; for the others it does nothing, so they are decoded.
        opened.verify() if kind == "PNG" else opened.load()
    except (UnidentifiedImageError, Pillow.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise NotAPicture(f"not a whole PNG, JPEG or WebP ({type(error).__name__})") from error
    except (struct.error, zlib.error, IndexError, OverflowError) as error:
        raise NotAPicture(f"a broken picture ({type(error).__name__})") from error
    content_type, extension = _KINDS[kind]
    return Picture(body, content_type, extension, width, height)


class Rehost:
    """Fetches, checks and stores pictures, a bounded number at a time. Opened once, closed at the end."""

    def __init__(
        self,
        *,
        downloader: Downloader,
        stores: Stores,
        pixels_max: int,
        in_flight_max: int,
    ) -> None:
        self._downloader = downloader
        self._stores = stores
        self._pixels_max = pixels_max
        # Each holds a picture in memory, up to the size cap: this bounds the bytes, whatever is in flight.
        self._places = asyncio.Semaphore(in_flight_max)
        # Decoding is CPU; beside the loop it would stall every other caller.
        self._threads = ThreadPoolExecutor(_CHECK_THREADS, thread_name_prefix="picture")

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

    async def _keep(self, generation: Generation, position: int, source: str | bytes) -> Image:
        async with self._places:
            body = source if isinstance(source, bytes) else await self._fetch(source)
            picture = await self._inspect(body, final=isinstance(source, bytes))
            log.debug("picture_fetched", position=position, bytes=len(picture.body))
            key = f"{generation.storage_stem}-{position}.{picture.extension}"
            try:
                storage = await self._stores.put(key, picture.body, content_type=picture.content_type)
            except StorageError as error:
                raise RehostFailed("storage", str(error)) from error
            log.debug("picture_stored", position=position, storage=storage)
        return _image(picture, position, storage, key)

    async def _fetch(self, url: str) -> bytes:
        try:
            return await self._downloader.fetch(url)
        except DownloadError as error:
            raise RehostFailed("download", str(error), final=not error.retryable) from error

    async def _inspect(self, body: bytes, *, final: bool = False) -> Picture:
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
                        chunks = [chunk async for chunk in await storage.read(key)]
                        picture = await self._inspect(b"".join(chunks))
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


def in_order(kept: Mapping[int, Image]) -> tuple[Image, ...]:
    """Return pictures in their order, numbered anew: of those that came, none is missing in between."""
    return tuple(replace(kept[position], position=number) for number, position in enumerate(sorted(kept)))


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
