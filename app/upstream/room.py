"""How many bytes of pictures does this process hold at a time, and who waits until there is room for more?"""

import asyncio
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self

# What is smaller takes no room: orders in flight bound how many there are, and most answers hold only URLs.
SMALL_BYTES = 256 * 1024
# What one that doesn't say how large it is takes to begin with: a picture of a usual size, in base64.
UNTOLD_BYTES = 4 * 1024 * 1024
# Memory of up to this much of all the room is kept for the next pictures, while there is room for it. New memory
# has to be made zeros first, and is far from the processor: a picture of 1.5 MB took a twentieth longer.
_KEPT_SHARE_MAX = 1 / 4
# What is made anew is of these steps, so that a picture fits in where one of about its size was.
_STEP_BYTES = 512 * 1024


class Room:
    """Room for `bytes_max` bytes of pictures, given out in the order in which it was asked for.

    Nobody waits for longer than `patience_seconds`. What is paid for is taken in all the same then: a picture must not
    be lost for want of memory, nor two that wait for each other.
    """

    def __init__(self, *, bytes_max: int, patience_seconds: float = 10) -> None:
        self._bytes_max = bytes_max
        self._patience_seconds = patience_seconds
        self._used = 0
        self._spare: list[bytearray] = []
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def bytes_used(self) -> int:
        """How much is held just now."""
        return self._used

    @property
    def spare_bytes(self) -> int:
        """How much memory is kept for the next pictures, beside what is used and within the same bounds."""
        return sum(map(len, self._spare))

    def hold(self) -> "Hold":
        """Return what room is taken with, for as long as the `with` that it is entered by lasts."""
        return Hold(self)

    def take_at_once(self, size_bytes: int) -> bool:
        """Take room if there is some, and nobody waits for it."""
        if self._waiting or not self._fits(size_bytes):
            return False
        self._use(size_bytes)
        return True

    async def take(self, size_bytes: int) -> None:
        """Wait until there is room, at most as long as patience lasts, and take it."""
        if self.take_at_once(size_bytes):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size_bytes, turn)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(self._patience_seconds):
                await turn
        except TimeoutError:
            if not turn.done() or turn.cancelled():
                self._use(size_bytes)
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._use(-size_bytes)
            raise
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
            self._let_in()

    def add(self, size_bytes: int) -> None:
        """Take room, or give it back, without waiting."""
        self._use(size_bytes)
        self._let_in()

    def take_memory(self, size_bytes: int) -> bytearray:
        """Return memory of so many bytes or more, with anything in it: spare, the last that was given back, or new."""
        for number in range(len(self._spare) - 1, -1, -1):
            if size_bytes <= len(self._spare[number]) <= size_bytes + 2 * _STEP_BYTES:
                return self._spare.pop(number)
        return bytearray(-(-size_bytes // _STEP_BYTES) * _STEP_BYTES)

    def give_back(self, memory: bytearray) -> None:
        """Keep memory for the next picture, if there is room for it."""
        if len(memory) <= self._bytes_max * _KEPT_SHARE_MAX:
            self._spare.append(memory)
            self._use(0)

    def _use(self, more_bytes: int) -> None:
        self._used += more_bytes
        while self._spare and self._used + self.spare_bytes > self._bytes_max:
            del self._spare[0]

    def _fits(self, size_bytes: int) -> bool:
        # One that is larger than all the room there is comes alone.
        return self._used == 0 or self._used + size_bytes <= self._bytes_max

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, turn = self._waiting.popleft()
            if not turn.done():
                self._use(size_bytes)
                turn.set_result(None)


class Hold:
    """The room that one answer, or one picture, has."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0
        self._lent: tuple[bytearray, memoryview] | None = None

    async def take(self, size_bytes: int, *, deadline: asyncio.Timeout | None = None) -> None:
        """As Room.take, for this hold; nothing for what is small.

        `deadline` is put off by as long as that takes: who has no room of ours is not slow.
        """
        if size_bytes <= SMALL_BYTES:
            return
        if not self._room.take_at_once(size_bytes):
            when, began = deadline.when() if deadline else None, asyncio.get_running_loop().time()
            if deadline is not None:
                deadline.reschedule(None)
            await self._room.take(size_bytes)
            if deadline is not None and when is not None:
                deadline.reschedule(when + asyncio.get_running_loop().time() - began)
        self._bytes += size_bytes

    def settle(self, size_bytes: int) -> None:
        """Hold what there is by now, more or less than was taken: nobody waits for that."""
        size_bytes = size_bytes if size_bytes > SMALL_BYTES else 0
        self._room.add(size_bytes - self._bytes)
        self._bytes = size_bytes

    def lend(self, size_bytes: int) -> memoryview | None:
        """Return memory for so many bytes, with anything in it, until this hold ends; None for what is small.

        Whoever reads it later is refused with ValueError, and whoever is still reading it then keeps it.
        """
        if size_bytes <= SMALL_BYTES:
            return None
        self._end_loan()
        memory = self._room.take_memory(size_bytes)
        view = memoryview(memory)[:size_bytes]
        self._lent = memory, view
        return view

    def _end_loan(self) -> None:
        if self._lent is not None:
            memory, view = self._lent
            self._lent = None
            with suppress(BufferError):
                view.release()
                # A thread that nobody waits for any more may be at a piece of it: its size can't be changed then.
                memory.append(0)
                memory.pop()
                self._room.give_back(memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.settle(0)
        self._end_loan()
