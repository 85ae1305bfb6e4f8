"""How is a storage that takes long to open opened beside everything else, when it is first needed?"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial

from app.connections.connection import Body
from app.storage.base import Chunks, ListedObject, Storage, StoredObject


class DeferredStorage:
    """The storage that `open_storage` returns, opened in a thread by the first call that needs it.

    Every method does as the storage itself does, and raises besides what `open_storage` raises: the next call tries to
    open it again.
    """

    def __init__(self, name: str, open_storage: Callable[[], Storage]) -> None:
        self._name = name
        self._open_storage = open_storage
        self._opening: asyncio.Future[Storage] | None = None

    @property
    def name(self) -> str:
        """As Storage.name, known before it is opened."""
        return self._name

    async def put(self, key: str, body: Body, *, content_type: str, sha256: bytes | None = None) -> None:
        """As Storage.put."""
        await (await self._opened()).put(key, body, content_type=content_type, sha256=sha256)

    async def head(self, key: str) -> StoredObject:
        """As Storage.head."""
        return await (await self._opened()).head(key)

    async def read(self, key: str, *, start: int = 0, length: int | None = None) -> Chunks:
        """As Storage.read."""
        return await (await self._opened()).read(key, start=start, length=length)

    async def delete(self, key: str) -> None:
        """As Storage.delete."""
        await (await self._opened()).delete(key)

    async def objects(self, prefix: str = "") -> AsyncIterator[ListedObject]:
        """As Storage.objects."""
        async for entry in (await self._opened()).objects(prefix):
            yield entry

    async def check(self) -> None:
        """As Storage.check."""
        await (await self._opened()).check()

    async def close(self) -> None:
        """As Storage.close. One that nobody has needed is not opened for it, and one that is being opened not awaited:
        whoever lends credentials may take minutes.
        """
        if self.is_open and self._opening is not None:
            await self._opening.result().close()

    @property
    def is_open(self) -> bool:
        """Whether it was opened."""
        return self._opening is not None and self._opening.done() and self._opening.exception() is None

    async def open(self) -> None:
        """Do now what the first call would else wait for."""
        await self._opened()

    async def _opened(self) -> Storage:
        if self._opening is None or (self._opening.done() and not self.is_open):
            self._opening = asyncio.get_running_loop().create_future()
            # A thread that no end of a process waits for, as it does for those of `asyncio.to_thread`.
            threading.Thread(target=self._open, args=(self._opening,), name="storage-opens", daemon=True).start()
        # Who gives up waiting leaves it to the others.
        return await asyncio.shield(self._opening)

    def _open(self, opening: "asyncio.Future[Storage]") -> None:
        try:
            told = partial(opening.set_result, self._open_storage())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told to who waits.
            told = partial(opening.set_exception, error)
        # RuntimeError: the loop has ended, and nobody waits any more.
        with suppress(RuntimeError):
            opening.get_loop().call_soon_threadsafe(told)
