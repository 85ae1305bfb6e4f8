"""What does the service ask of a place that keeps pictures, and how does such a place say no?

StorageError             the root: says which storage, what went wrong, and what to do about it
├── StorageUnavailable   try again later
├── StorageMisconfigured an operator has to act first
├── ObjectMissing        surely not there
└── CannotTell           there or not, the storage does not say
"""

import asyncio
import re
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol, Self

from app.connections.connection import Body

# Big enough that a picture takes few hops between loop and thread, small enough that a slow reader holds little memory.
CHUNK_BYTES = 256 * 1024

# As many as S3 lists in one answer; what a listing holds in memory at a time.
LISTED_MAX = 1000

KEY_BYTES_MAX = 1024
_KEY_PART_BYTES_MAX = 200  # A folder's file names end at 255 bytes, and the name of a part-written file is longer.
# A part never begins with a dot: that rules out `.` and `..`, and leaves dotted names to part-written files.
_KEY_PART = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*")


class StorageError(Exception):
    """What went wrong with a storage, in a sentence for the operator that holds no secret; `.storage` is its name."""

    def __init__(self, storage: str, sentence: str) -> None:
        super().__init__(f"{storage}: {sentence}")
        self.storage = storage


class StorageUnavailable(StorageError):
    """Out of reach, overloaded, full or broken off in the middle: the same call may work later."""


class StorageMisconfigured(StorageError):
    """Refused until an operator acts: credentials, permissions, the bucket or the folder are not as they must be."""


class ObjectMissing(StorageError):
    """Nothing is kept under this key: asked, and surely answered."""


class CannotTell(StorageError):
    """The storage refuses to say whether the key is there. Never to be read as "absent"."""


@dataclass(frozen=True)
class StoredObject:
    """What a storage knows about one key: the key, its size in bytes, and its content type where it is known."""

    key: str
    bytes: int
    content_type: str | None


@dataclass(frozen=True)
class ListedObject:
    """One object as a listing shows it. `age_seconds` since it was stored is by the storage's own clock."""

    key: str
    bytes: int
    age_seconds: float


@dataclass(frozen=True)
class OpenSource:
    """A file or socket open for reading in threads: `read(n)` blocks for up to n of `bytes_total` bytes."""

    read: Callable[[int], bytes]
    close: Callable[[], None]
    bytes_total: int


class ObjectStream(AsyncIterator[bytes]):
    """The chunks of one open object, 256 KiB each but for the last, read in a thread as they are asked for.

    `bytes_total` is how many bytes will come in all: fewer never pass for the whole. Only one chunk is ever held.
    Iterating to the end, an error, a cancelled wait, `aclose()` and being forgotten all free the file or socket.
    Raises, while iterating: StorageUnavailable when the source breaks off or ends early.
    """

    def __init__(self, threads: Executor, source: OpenSource, *, storage: str) -> None:
        self.bytes_total = source.bytes_total
        self._threads = threads
        self._storage = storage
        self._read = source.read
        self._bytes_left = source.bytes_total
        self._job: Future[bytes] | None = None
        # For the reader that is simply dropped, such as a streaming response whose client has left.
        self._close_source = weakref.finalize(self, source.close)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._bytes_left == 0:
            self._close()
            raise StopAsyncIteration
        self._job = self._threads.submit(self._read, min(CHUNK_BYTES, self._bytes_left))
        try:
            chunk = await asyncio.wrap_future(self._job)
            if not chunk:
                raise StorageUnavailable(self._storage, f"the object ended {self._bytes_left} bytes early; try again")
        except BaseException:
            self._close()
            raise
        self._bytes_left -= len(chunk)
        if self._bytes_left == 0:
            self._close()
        return chunk

    async def aclose(self) -> None:
        """Free the file or socket; nothing more comes. As often as you like, also before the first chunk."""
        self._close()

    def _close(self) -> None:
        self._bytes_left = 0
        if self._job is None:
            self._close_source()
        else:
            # After the read under way, never beside it: the number of a closed file is soon another file's.
            # The callback holds `self`, so that being forgotten does not close it any earlier.
            self._job.add_done_callback(lambda _: self._close_source())


async def open_stream(threads: Executor, open_source: Callable[[], OpenSource], *, storage: str) -> ObjectStream:
    """Run `open_source` in a thread and answer its chunks; what it raises is raised here, before any chunk.

    A wait that is cancelled leaves nothing open, also when the thread opens the source only afterwards.
    """
    job = threads.submit(open_source)
    try:
        source = await asyncio.wrap_future(job)
    except asyncio.CancelledError:
        job.add_done_callback(_close_unwanted)
        raise
    return ObjectStream(threads, source, storage=storage)


def _close_unwanted(job: Future[OpenSource]) -> None:
    if not job.cancelled() and job.exception() is None:
        job.result().close()


class Chunks(Protocol):
    """An open object: `bytes_total` bytes, in chunks. Closing it frees what it holds, at any time."""

    bytes_total: int

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None: ...


class Storage(Protocol):
    """A place that keeps pictures under keys such as `2026/11/22/ab12-0.png`.

    Every method but `name` and `close` refuses a key that `require_key` refuses (ValueError: a bug, not a fault), and
    may raise StorageUnavailable or StorageMisconfigured besides what it names itself.
    """

    @property
    def name(self) -> str:
        """What an image remembers of where it lives: `folder`, `s3:<bucket>` or `spool`."""

    async def put(self, key: str, body: Body, *, content_type: str, sha256: bytes | None = None) -> None:
        """Keep `body` under `key`, whole or not at all. When it returns, the bytes survive a crash.

        The same bytes under the same key may be put any number of times: that is how a lost answer is made good.
        `sha256` is the body's; who knows it already spares a storage that needs it the time.
        """

    async def head(self, key: str) -> StoredObject:
        """Say what is kept under `key`. Raises ObjectMissing, CannotTell."""

    async def read(self, key: str, *, start: int = 0, length: int | None = None) -> Chunks:
        """Open `key` at byte `start` for `length` bytes, or to its end; a range past the end is cut to what is there.

        Awaiting it opens, so that what is raised comes before the first byte: ObjectMissing, CannotTell, and
        ValueError for a negative range. Close the stream (`aclose`) when leaving it early.
        """

    async def delete(self, key: str) -> None:
        """Keep nothing under `key` any longer; a key that is not there is fine."""

    def objects(self, prefix: str = "") -> AsyncIterator[ListedObject]:
        """List what is kept under keys that begin with `prefix`, ordered by the bytes of the keys.

        A page at a time, so that a million objects take the memory of a thousand. What is put or deleted meanwhile may
        be in it or not. Raises CannotTell, before the first object, where the storage keeps its keys to itself.
        """

    async def check(self) -> None:
        """Prove that pictures can be kept and read here, cheaply enough for every readiness probe.

        Raises StorageUnavailable or StorageMisconfigured with a sentence that says what to do.
        """

    async def close(self) -> None:
        """Wait for the calls under way, then let go of threads and connections. As often as you like.

        Nothing else may be called afterwards.
        """


def require_key(key: str) -> None:
    """Raise ValueError unless `key` means one and the same object in a folder and in a bucket.

    Parts of ASCII letters, digits and `._=-`, none beginning with a dot, joined by single slashes. So nothing climbs
    out of a folder, nothing is a part-written file, and every picture can move to any other storage.
    """
    parts = key.split("/")
    fits = len(key) <= KEY_BYTES_MAX and all(
        len(part) <= _KEY_PART_BYTES_MAX and _KEY_PART.fullmatch(part) for part in parts
    )
    if not fits:
        raise ValueError(f"not a storage key: {key[:100]!r}")


def require_range(start: int, length: int | None) -> None:
    """Raise ValueError unless `start` and `length` (None: to the end) are counts of bytes."""
    if start < 0 or (length is not None and length < 0):
        raise ValueError(f"not a range of bytes: start {start}, length {length}")
