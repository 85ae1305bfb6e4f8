"""How do the answers of one HTTP connection come in, at little cost?

The head is read by httptools, which uvicorn reads ours with. A body of known length is written by the system into a
buffer of that length.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

# What is read before it is known how long a body is; a larger one goes straight to where it stays.
_FIRST_READ_BYTES = 64 * 1024
# What may wait for whoever reads a body piece by piece.
_PIECE_BYTES_MAX = 64 * 1024
# What is handed to the transport at once. TLS would encrypt twenty megabytes while everybody waits; and each costs a
# turn of the loop, of which a picture of 1.5 MB took six with a quarter of this.
_SENT_PIECE_BYTES = 1024 * 1024
# How often it is looked in a silence as long as may be, for what is taken by the other side makes no sound.
_LOOKS = 4
# Of a server that sends headers without end.
_HEAD_BYTES_MAX = 64 * 1024

# What is sent, and what came. A picture stays where the socket put it, in memory that may be lent for as long as it is
# kept: a copy of a large one takes as long as its checks.
Body = bytes | bytearray | memoryview


class BodyTooLarge(Exception):
    """The answer is larger than the caller allowed; what was read of it is dropped."""


class NotConnected(Exception):
    """No connection was made: connect, TLS, or the name that the certificate is for. The text names a class only."""


class AnswerBroken(Exception):
    """No whole answer came, or what came is not HTTP. The text names a class only, and holds no URL."""


class Connection(asyncio.BufferedProtocol):
    """One connection, and the one answer that comes over it just now."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        # asyncio cuts what it reads TLS into, and of a bytearray a cut is a copy: what came there was lost, and zeros
        # were read in its place.
        self._scratch = memoryview(bytearray(_FIRST_READ_BYTES))
        self._woken: asyncio.Future[None] | None = None
        self._may_write = True
        self._rest: tuple[asyncio.TimerHandle, Callable[[], None]] | None = None
        # Looks whether the other side is silent, while somebody waits who wants to know.
        self._silence: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._loop = asyncio.get_running_loop()
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.length: int | None = None
        # Whether anything of the answer has come, and when there was the last sign of life, in the loop's time.
        self.heard = False
        self._heard_at = 0.0
        self.reusable = False
        self._head_bytes = 0
        self._head_is_whole = self._whole = False
        self._ends_with_connection = False
        self._body = bytearray()
        self._body_bytes_max: int | None = None
        self._in_pieces = False
        # Where the system writes a body whose length is known, and how much of that is filled.
        self._into: memoryview | None = None
        self._filled = 0
        self._failure: Exception | None = None

    async def ask(self, head: bytes, body: Body = b"", *, silence_seconds_max: float | None = None) -> None:
        """Sends a request and waits for the head of its answer. An answer that comes before all of `body` is sent ends
        the sending, and is broken if it says that all is well. Raises AnswerBroken, and TimeoutError after so long a
        silence.
        """
        self._begin()
        if self._transport is None or self._transport.is_closing():
            raise AnswerBroken("closed")
        all_sent = True
        if len(body) <= _SENT_PIECE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            with memoryview(body) as whole:
                all_sent = await self._send(whole, silence_seconds_max)
        await self._until_or_silent(lambda: self._head_is_whole, silence_seconds_max)
        if self._transport is not None and self._transport.get_write_buffer_size():
            all_sent = self.reusable = False
        if body and not all_sent and 200 <= self.status < 300:
            raise AnswerBroken("accepted before all was sent")

    async def _send(self, body: memoryview, silence_seconds_max: float | None) -> bool:
        """Whether all of it was handed to the transport."""
        for start in range(0, len(body), _SENT_PIECE_BYTES):
            await self._until_or_silent(lambda: self._may_write or self._head_is_whole, silence_seconds_max)
            if self._head_is_whole or self._transport is None or self._transport.is_closing():
                self.reusable = False
                return False
            self._transport.write(body[start : start + _SENT_PIECE_BYTES])
        return True

    async def read(
        self, bytes_max: int, *, into: memoryview | None = None, silence_seconds_max: float | None = None
    ) -> Body:
        """Waits for the body, which comes to stand in `into` if that is as long as it. Raises BodyTooLarge,
        AnswerBroken, and TimeoutError after so long a silence.
        """
        if max(self.length or 0, len(self._body)) > bytes_max:
            raise BodyTooLarge
        body: bytearray | memoryview | None = None
        if not self._whole and self._transport is not None:
            self._body_bytes_max = bytes_max
            if self.length is not None:
                body = into if into is not None and len(into) == self.length else bytearray(self.length)
                self._filled = len(self._body)
                body[: self._filled] = self._body
                self._into = memoryview(body)
            self._transport.resume_reading()
        try:
            await self._until_or_silent(lambda: self._whole, silence_seconds_max)
        finally:
            # Megabytes that nobody counts any more, were they kept until somebody lets go of the connection. And what
            # was lent is written to no longer.
            received, self._body, self._into = self._body, bytearray(), None
        return received if body is None else body

    @property
    def has_come(self) -> bool:
        """Whether `take` has something to give: more of the body, or its end."""
        return self._whole or bool(self._body)

    async def more(self) -> None:
        """Waits until more of the body has come, or its end. Instead of `read`. Raises AnswerBroken."""
        self._in_pieces = True
        if not self.has_come and self._transport is not None:
            self._transport.resume_reading()
        await self._until_or_silent(lambda: self.has_come, None)

    def take(self) -> bytes:
        """Gives what came of the body since the last; nothing at its end."""
        piece, self._body = self._body, bytearray()
        return bytes(piece)

    async def _until_or_silent(self, is_so: Callable[[], bool], seconds_max: float | None) -> None:
        if is_so():
            return
        if seconds_max is not None:
            # Not asyncio.timeout, which takes three times as long.
            self._heard_at, self._unsent = self._loop.time(), self._unsent_bytes()
            self._silence = self._loop.call_later(seconds_max / _LOOKS, self._look_for_silence, seconds_max)
        try:
            while not is_so():
                if self._failure is not None:
                    raise self._failure
                self._woken = self._loop.create_future()
                try:
                    await self._woken
                finally:
                    self._woken = None
        finally:
            if self._silence is not None:
                self._silence.cancel()
                self._silence = None

    def _look_for_silence(self, seconds_max: float) -> None:
        # Nobody is woken for a piece: of two megabytes there may be a hundred.
        if (unsent := self._unsent_bytes()) < self._unsent:
            # The other side reads: a piece may take it longer than it may be silent.
            self._heard_at = self._loop.time()
        self._unsent = unsent
        seconds_left = self._heard_at + seconds_max - self._loop.time()
        if seconds_left > 0:
            pause_seconds = min(seconds_left, seconds_max / _LOOKS)
            self._silence = self._loop.call_later(pause_seconds, self._look_for_silence, seconds_max)
        elif self._woken is not None and not self._woken.done():
            self._woken.set_exception(TimeoutError())
        else:
            # Just woken, and maybe for nothing: looked at again, once the waiter has.
            self._silence = self._loop.call_later(seconds_max / _LOOKS, self._look_for_silence, seconds_max)

    def _unsent_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def _fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self.reusable = False
        self._wake()

    def abort(self) -> None:
        """Drops the connection at once."""
        self.end_rest()
        if self._transport is not None:
            self._transport.abort()

    def rest(self, seconds: float, *, on_end: Callable[[], None]) -> None:
        """Waits for nothing but to be taken again, at most so long; `on_end` is told when it drops before."""
        self._rest = self._loop.call_later(seconds, self.abort), on_end

    def end_rest(self) -> None:
        """Rests no longer."""
        if self._rest is not None:
            timer, on_end = self._rest
            self._rest = None
            timer.cancel()
            on_end()

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one without being called one.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        # It holds this connection, which holds it: both would wait for the garbage collector.
        self._parser = None
        self.end_rest()
        if exc is None and self._failure is None and self._head_is_whole and self._ends_with_connection:
            self._whole = True
            self._wake()
        elif not self._whole:
            self._fail(AnswerBroken(type(exc).__name__ if exc is not None else "closed"))

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._wake()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._scratch if self._into is None or self._whole else self._into[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.heard = True
        self._heard_at = self._loop.time()
        if self._whole:
            # Nobody asked for more than one answer: what comes now would be taken for the next one's.
            self.reusable = False
            self.abort()
        elif self._into is not None:
            self._filled += nbytes
            if self._filled == self.length:
                self._whole = True
                self._wake()
        else:
            self._parse(self._scratch[:nbytes])

    def _parse(self, received: memoryview) -> None:
        head_was_whole = self._head_is_whole
        assert self._parser is not None, "nothing comes over a connection that is lost"
        try:
            self._parser.feed_data(received)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(AnswerBroken(type(error).__name__))
        if not self._head_is_whole:
            self._head_bytes += len(received)
            if self._head_bytes > _HEAD_BYTES_MAX:
                self._fail(AnswerBroken("head without end"))
        elif not head_was_whole and not self._whole and self._transport is not None:
            # Whoever waits may have to find room for the body first.
            self._transport.pause_reading()
        elif self._in_pieces and len(self._body) >= _PIECE_BYTES_MAX and self._transport is not None:
            self._transport.pause_reading()
        if self._body_bytes_max is not None and len(self._body) > self._body_bytes_max:
            self._fail(BodyTooLarge())
        if self._failure is not None:
            self.abort()
        elif self._whole or not head_was_whole or self._in_pieces:
            self._wake()

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._whole:
            # Nobody asked for it. Read on, its status and headers would take the place of the answer's own.
            raise AnswerBroken("more than one answer")
        # After an answer that only announces another (100, 103).
        self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        # With the blanks around it, which belong to no value, a length was read by one and not by another.
        known, told = name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")
        self.headers[known] = f"{self.headers[known]}, {told}" if known in self.headers else told

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self.status = self._parser.get_status_code()
        if self._announces:
            return
        chunked = "transfer-encoding" in self.headers
        length = self.headers.get("content-length")
        self.length = int(length) if length is not None and not chunked else None
        self._ends_with_connection = self.length is None and not chunked
        self.reusable = self.length is not None and self._parser.should_keep_alive()
        self._head_is_whole = True

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._whole = self._whole or not self._announces

    @property
    def _announces(self) -> bool:
        return 100 <= self.status < 200
