"""How do the bench's own servers and clients read HTTP/1.1 at a cost that does not count?

Only as much of it as those who are measured speak: a length or chunks, keep-alive, and 100-continue. Frameworks that
read all of it cost as much for one order as what is measured.
"""

import asyncio
import hashlib
import re
from dataclasses import dataclass
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect: *100-continue", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True)
class Message:
    """A whole request or answer. `head` has its first line and headers; a body of more than was to be kept is empty."""

    head: bytes
    body: bytes
    body_bytes: int
    # Of a body that was not kept, where the reader was to find it out.
    sha256: bytes | None = None

    @property
    def closes(self) -> bool:
        """Whether whoever sent it wants no other on this connection."""
        return _CLOSES.search(self.head) is not None


class MessageReader:
    """Puts messages together from what comes in. One for each connection."""

    def __init__(self, *, kept_bytes_max: int, hashes_dropped: bool = False) -> None:
        """Bodies with a length above `kept_bytes_max` are counted and dropped; with `hashes_dropped`, hashed too."""
        self._kept_bytes_max = kept_bytes_max
        self._hashes_dropped = hashes_dropped
        self._digest = hashlib.sha256()
        self._buffer = bytearray()
        self._head: bytes | None = None
        # The length of the body; None while it comes in chunks.
        self._length: int | None = 0
        self._dropped = 0
        # A head has come whose sender waits to be told to go on.
        self.awaits_go_on = False

    def feed(self, data: bytes) -> list[Message]:
        """Take what came, and return every message that is whole now."""
        whole: list[Message] = []
        if self._dropping:
            self._drop(data)
        else:
            self._buffer += data
        while (message := self._next()) is not None:
            whole.append(message)
        return whole

    @property
    def _dropping(self) -> bool:
        return self._head is not None and self._length is not None and self._length > self._kept_bytes_max

    def _next(self) -> Message | None:
        if self._head is None and not self._read_head():
            return None
        assert self._head is not None
        if self._length is None:
            return self._next_chunked(self._head)
        if self._dropping:
            # Nobody here sends two requests at once, so nothing of another follows a large body.
            self._drop(self._buffer)
            self._buffer.clear()
            if self._dropped < self._length:
                return None
            digest = self._digest.digest() if self._hashes_dropped else None
            return self._ended(Message(self._head, b"", self._length, digest))
        if len(self._buffer) < self._length:
            return None
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        return self._ended(Message(self._head, body, len(body)))

    def _drop(self, data: bytes | bytearray) -> None:
        self._dropped += len(data)
        if self._hashes_dropped:
            self._digest.update(data)

    def _next_chunked(self, head: bytes) -> Message | None:
        # The body keeps its chunks' sizes: whoever looks into one looks for a word that is in one chunk.
        if not self._buffer.endswith(b"0\r\n\r\n"):
            return None
        body = bytes(self._buffer)
        self._buffer.clear()
        return self._ended(Message(head, body, len(body)))

    def _ended(self, message: Message) -> Message:
        self._head = None
        self._dropped = 0
        self._digest = hashlib.sha256()
        return message

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        length = _LENGTH.search(head)
        self._length = int(length[1]) if length else None if _CHUNKED.search(head) else 0
        self.awaits_go_on = _EXPECTS.search(head) is not None
        self._head = head
        return True


class Answering(asyncio.Protocol):
    """One connection to a server of the bench: reads requests, and answers each as `answer` says."""

    kept_bytes_max = 1_000_000
    hashes_dropped = False

    def __init__(self) -> None:
        self._reader = MessageReader(kept_bytes_max=self.kept_bytes_max, hashes_dropped=self.hashes_dropped)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        # uvloop's is one without being called one.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it: an answer that comes late has nowhere to go."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        for request in self._reader.feed(data):
            self.answer(request)
        if self._reader.awaits_go_on and self._transport is not None:
            self._reader.awaits_go_on = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def answer(self, request: Message) -> None:
        """Answer one request, now or later, with `send`."""
        raise NotImplementedError

    def send(self, answer: bytes, *, closes: bool) -> None:
        """Write a whole answer, if anybody is still there."""
        if self._transport is not None:
            self._transport.write(answer)
            if closes:
                self._transport.close()


def answer_with(status: str, body: bytes, content_type: str, *headers: str) -> bytes:
    """Return a whole answer, as bytes."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def serve(connection: type[Answering], port: int) -> None:
    """Answer on this port of 127.0.0.1 until the process is ended."""
    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()
