"""How does one HTTP request leave this process, and what does its failure prove?"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import cast

import httpx

from app.connections.connection import AnswerBroken, Connection
from app.connections.dialing import Dialer

# Only these two say that not one byte of the request went out. Every other error of `Wire` leaves it open.
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)

# An answer of two large pictures in base64. What tells more is not believed before it comes: the memory for it would be
# taken at once, and clearing it holds up everybody (0.8 ms a MiB).
_ONE_PIECE_BYTES_MAX = 8 * 1024 * 1024


class Wire(httpx.AsyncBaseTransport):
    """An httpx transport whose cost does not grow with what is in flight.

    Each request has a connection of its own (a stale kept-alive socket must not leave a paid order in doubt), and
    nothing is added to it: no cookies, no redirects, no proxy or netrc from the environment, no header.
    Callers use it without an `httpx.AsyncClient`, which would log every URL with its signature and keep cookies.

    Raises: `httpx.ConnectError` and `httpx.ConnectTimeout` only for a request that never left (name resolution,
    connect, TLS); `httpx.ReadTimeout` and `httpx.ReadError` for everything later. Their text is the name of an
    exception class and holds no URL.

    Not httpx's own transport, which falls to 4 % of its upstream's rate at 256 in flight. Not aiohttp under it: with
    all around it an order costs 0.78 ms CPU that way and 0.63 ms this way, and a start 0.2 s more.
    """

    def __init__(self, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl_context = ssl_context
        self._dialer = Dialer()
        self._open: set[Connection] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request whose body is in memory and promises its status and headers; the body is streamed.

        The extension `timeout` is httpx's (seconds): `connect` bounds name resolution, connect and TLS together,
        `read` each silence.
        """
        timeout = request.extensions.get("timeout", {})
        try:
            async with asyncio.timeout(timeout.get("connect")):
                connection = await self._connect(request.url)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(type(error).__name__, request=request) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise httpx.ConnectError(type(error).__name__, request=request) from error
        self._open.add(connection)
        body = _Body(connection, timeout.get("read"), self._open)
        try:
            with _in_httpx_words():
                written = _written(request, await request.aread())
                await connection.ask(written, silence_seconds_max=timeout.get("read"))
        except BaseException:
            await body.aclose()
            raise
        response = httpx.Response(connection.status, headers=connection.headers, stream=body, request=request)
        # As bytes are kept, so that none is lost; httpx would look through all of them each time that one is read.
        response.headers.encoding = "iso-8859-1"
        return response

    async def _connect(self, url: httpx.URL) -> Connection:
        host = url.raw_host.decode("ascii").strip("[]")
        if url.scheme == "https":
            return await self._dialer.dial(host, url.port or 443, tls=self._tls(), server_name=host)
        return await self._dialer.dial(host, url.port or 80)

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            # httpx's own context: certifi's authorities, or those of SSL_CERT_FILE.
            self._ssl_context = httpx.create_ssl_context()
        return self._ssl_context

    async def aclose(self) -> None:
        """Closes every connection; a request still in flight fails as broken."""
        for connection in list(self._open):
            connection.abort()


def _written(request: httpx.Request, body: bytes) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%b: %b" % (name, value) for name, value in request.headers.raw]
    return b"\r\n".join([*lines, b"", body])


@contextmanager
def _in_httpx_words() -> Iterator[None]:
    """Tell in httpx's words what went wrong with an answer."""
    try:
        yield
    except TimeoutError as error:
        raise httpx.ReadTimeout(type(error).__name__) from error
    except AnswerBroken as error:
        raise httpx.ReadError(str(error)) from error


class _Body(httpx.AsyncByteStream):
    def __init__(self, connection: Connection, silence_seconds_max: float | None, open_connections: set[Connection]):
        self._connection = connection
        self._silence_seconds_max = silence_seconds_max
        self._open_connections = open_connections

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = self._connection.length
        told = length is not None and "content-encoding" not in self._connection.headers
        if length is not None and told and length <= _ONE_PIECE_BYTES_MAX:
            # Where it stays: a picture in base64, read as it comes, was copied four times.
            with _in_httpx_words():
                whole = await self._connection.read(length, silence_seconds_max=self._silence_seconds_max)
            yield cast(bytes, whole)
            return
        while True:
            if not self._connection.has_come:
                with _in_httpx_words():
                    async with asyncio.timeout(self._silence_seconds_max):
                        await self._connection.more()
            if not (piece := self._connection.take()):
                return
            yield piece

    async def aclose(self) -> None:
        # An endless answer that nobody reads any more ends here.
        self._open_connections.discard(self._connection)
        self._connection.abort()
