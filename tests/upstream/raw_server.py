"""What does a server that answers with scripted bytes, and may misbehave at any of them, see of its client?"""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


class Connection:
    """One accepted connection, in the hands of a test's script."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: list[bytes]) -> None:
        self._reader, self._writer, self._requests = reader, writer, requests

    async def read_request(self) -> bytes:
        """Reads one whole request, head and body, and notes it."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        request = head + await self._reader.readexactly(length)
        self._requests.append(request)
        return request

    async def send(self, answer: bytes) -> None:
        """Sends bytes as they are."""
        self._writer.write(answer)
        await self._writer.drain()

    async def answer(self, status: str, body: bytes = b"", *headers: str) -> None:
        """Reads one request and answers it whole."""
        await self.read_request()
        lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers)
        await self.send("\r\n".join((*lines, "", "")).encode() + body)

    def reset(self) -> None:
        """Breaks the connection with a RST."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    async def hang(self) -> None:
        """Says nothing more until the test is over."""
        await asyncio.Event().wait()


Script = Callable[[Connection], Awaitable[None]]


@dataclass
class RawServer:
    """What the server saw: how many connections, and the requests that were read whole."""

    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def raw_server(
    script: Script, *, tls: ssl.SSLContext | None = None, at: tuple[str, int] = ("127.0.0.1", 0)
) -> AsyncIterator[RawServer]:
    """Runs `script` for each connection to a free port of this machine; the connection closes where it ends.

    `at` names another loopback address, or the port.
    """
    seen = RawServer()
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        seen.connections += 1
        # A client that leaves in the middle is what many of these tests are about.
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await script(Connection(reader, writer, seen.requests))
        writer.close()

    server = await asyncio.start_server(serve, *at, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
