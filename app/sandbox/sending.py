"""How does an answer leave, or fail to leave, on the wire?"""

import asyncio
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Final, cast

import anyio
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TRANSPORT: Final = "imagekeep.sandbox.transport"


class ReachableTransportProtocol(HttpToolsProtocol):
    """uvicorn's own protocol, which also lets the application reach the connection it answers on.

    ASGI has no word for "close without an answer": whatever an application leaves unsaid, uvicorn answers with a
    500 of its own. A dropped connection can only be had from the transport, and it is handed over in the scope's
    extensions, the place that ASGI keeps for what a server offers beyond the standard.
    """

    def on_message_begin(self) -> None:
        """Adds the transport to the scope that uvicorn has just begun."""
        super().on_message_begin()
        self.scope["extensions"] = {_TRANSPORT: {"transport": self.transport}}


async def client_left(receive: Receive, *, within_seconds: float | None = None) -> bool:
    """Waits that long (None = for ever) or until the client is gone; True if it is. The body must have been read."""
    with anyio.move_on_after(within_seconds):
        while (await receive())["type"] != "http.disconnect":
            pass
        return True
    return False


async def unanswered(scope: Scope, receive: Receive, send: Send) -> None:
    """What to answer to a client that is gone: nothing, at once."""


async def hang(scope: Scope, receive: Receive, send: Send) -> None:
    """Never answers."""
    await client_left(receive)


async def drop(scope: Scope, receive: Receive, send: Send) -> None:
    """Closes the connection in good order (FIN), without one byte of answer."""
    _transport(scope).close()
    # uvicorn complains about an application that ends unanswered, unless it knows that the client is gone.
    await client_left(receive)


async def reset(scope: Scope, receive: Receive, send: Send) -> None:
    """Breaks the connection off (RST), without one byte of answer."""
    transport = _transport(scope)
    # To close with nothing to linger for is the one portable way to make the kernel send a reset.
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await client_left(receive)


def cut(body: bytes, *, media_type: str) -> ASGIApp:
    """Promises the whole body, sends half of it, and closes the connection."""

    async def send_half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _headers(media_type, len(body))})
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        await drop(scope, receive, send)

    return send_half


def stalled(body: bytes, *, media_type: str, seconds: float) -> ASGIApp:
    """Sends half of the body, nothing for that long (0 = for ever), then the rest."""

    async def halves() -> AsyncIterator[bytes]:
        yield body[: len(body) // 2]
        await anyio.sleep(seconds or float("inf"))
        yield body[len(body) // 2 :]

    return StreamingResponse(halves(), media_type=media_type, headers={"content-length": str(len(body))})


def dripped(body: bytes, *, media_type: str, seconds: float) -> ASGIApp:
    """Sends one byte, then one more every so many seconds."""

    async def bytes_one_by_one() -> AsyncIterator[bytes]:
        for position in range(len(body)):
            yield body[position : position + 1]
            await anyio.sleep(seconds)

    return StreamingResponse(bytes_one_by_one(), media_type=media_type, headers={"content-length": str(len(body))})


def endless(start: bytes, *, media_type: str, bytes_count: int) -> ASGIApp:
    """Sends `start`, then zeros until there are that many bytes, and does not say beforehand how many."""

    async def blocks() -> AsyncIterator[bytes]:
        yield start
        block = bytes(65_536)
        for _ in range((bytes_count - len(start)) // len(block) + 1):
            yield block

    return StreamingResponse(blocks(), media_type=media_type)


def gzip_bomb(start: bytes, *, media_type: str, bytes_count: int) -> ASGIApp:
    """Sends `start` and that many spaces, which stay a few kilobytes until they are unpacked."""

    async def packed() -> AsyncIterator[bytes]:
        squeeze = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)  # 16 asks for gzip's own frame.
        yield squeeze.compress(start)
        block = b" " * 65_536
        for _ in range(bytes_count // len(block)):
            yield squeeze.compress(block)
        yield squeeze.flush()

    return StreamingResponse(packed(), media_type=media_type, headers={"content-encoding": "gzip"})


def html(status: int) -> Response:
    """An error page in the style of Cloudflare's, which stands before TTAPI (upstream-facts.md section 2)."""
    page = (
        f"<!DOCTYPE html>\n<html><head><title>api.ttapi.io | {status}: Error</title></head>"
        f'<body><div id="cf-wrapper"><h1>Error code {status}</h1><p>cloudflare</p></div></body></html>\n'
    )
    return Response(page, status, headers={"server": "cloudflare"}, media_type="text/html")


def _headers(media_type: str, length: int) -> list[tuple[bytes, bytes]]:
    fields: Mapping[str, str] = {"content-type": media_type, "content-length": str(length)}
    return [(name.encode(), value.encode()) for name, value in fields.items()]


def _transport(scope: Scope) -> asyncio.Transport:
    extension = scope.get("extensions", {}).get(_TRANSPORT)
    assert extension is not None, "run the sandbox by run_sandbox, or with ReachableTransportProtocol"
    return cast(asyncio.Transport, extension["transport"])
