"""How many bytes of pictures does this process hold at a time, and who waits until there is room for more?"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from types import TracebackType
from typing import Self

# What is smaller takes no room: orders in flight bound how many there are, and most answers hold only URLs.
SMALL_BYTES = 256 * 1024
# What one that doesn't say how large it is takes to begin with: a picture of a usual size, in base64.
UNTOLD_BYTES = 4 * 1024 * 1024


async def outside(deadline: asyncio.Timeout, waiting: Awaitable[None]) -> None:
    """Wait, and put `deadline` off by as long as that takes: who has no room of ours is not slow."""
    when, began = deadline.when(), asyncio.get_running_loop().time()
    deadline.reschedule(None)
    await waiting
    if when is not None:
        deadline.reschedule(when + asyncio.get_running_loop().time() - began)


class Room:
    """Room for `bytes_max` bytes of pictures, given out in the order in which it was asked for.

    Nobody waits for longer than `patience_seconds`. What is paid for is taken in all the same then: a picture must not
    be lost for want of memory, nor two that wait for each other.
    """

    def __init__(self, *, bytes_max: int, patience_seconds: float = 10) -> None:
        self._bytes_max = bytes_max
        self._patience_seconds = patience_seconds
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def bytes_used(self) -> int:
        """How much is held just now."""
        return self._used

    def hold(self) -> "Hold":
        """Return what room is taken with, for as long as the `with` that it is entered by lasts."""
        return Hold(self)

    async def take(self, size_bytes: int) -> None:
        """Wait until there is room, at most as long as patience lasts, and take it."""
        if not self._waiting and self._fits(size_bytes):
            self._used += size_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size_bytes, turn)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(self._patience_seconds):
                await turn
        except TimeoutError:
            if not turn.done() or turn.cancelled():
                self._used += size_bytes
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._used -= size_bytes
            raise
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
            self._let_in()

    def add(self, size_bytes: int) -> None:
        """Take room, or give it back, without waiting."""
        self._used += size_bytes
        self._let_in()

    def _fits(self, size_bytes: int) -> bool:
        # One that is larger than all the room there is comes alone.
        return self._used == 0 or self._used + size_bytes <= self._bytes_max

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, turn = self._waiting.popleft()
            if not turn.done():
                self._used += size_bytes
                turn.set_result(None)


class Hold:
    """The room that one answer, or one picture, has."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0

    async def take(self, size_bytes: int) -> None:
        """As Room.take, for this hold; nothing for what is small."""
        if size_bytes > SMALL_BYTES:
            await self._room.take(size_bytes)
            self._bytes += size_bytes

    def settle(self, size_bytes: int) -> None:
        """Hold what there is by now, more or less than was taken: nobody waits for that."""
        size_bytes = size_bytes if size_bytes > SMALL_BYTES else 0
        self._room.add(size_bytes - self._bytes)
        self._bytes = size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.settle(0)
