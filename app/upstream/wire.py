"""How does one HTTP request leave this process, and what does its failure prove?"""

import ssl
from collections.abc import AsyncIterator

import aiohttp
import httpx
import yarl

# Only these two say that not one byte of the request went out. Every other error of `Wire` leaves it open.
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)

_CHUNK_BYTES = 16 * 1024


class BodyTooLarge(Exception):
    """The answer is larger than the caller allowed; what was read of it is dropped."""


class Wire(httpx.AsyncBaseTransport):
    """An httpx transport over aiohttp, whose cost does not grow with what is in flight.

    Each request has a connection of its own (a stale kept-alive socket must not leave a paid order in doubt), and
    nothing is added to it: no cookies, no redirects, no proxy or netrc from the environment, no header of aiohttp's.
    Callers use it without an `httpx.AsyncClient`, which would log every URL with its signature and keep cookies.

    Raises: `httpx.ConnectError` and `httpx.ConnectTimeout` only for a request that never left (name resolution,
    connect, TLS); `httpx.ReadTimeout` and `httpx.ReadError` for everything later. Their text is the name of aiohttp's
    exception class and holds no URL; the exception they came from may hold one.

    Not httpx-aiohttp 0.2.0: it hands URLs to yarl as text, which re-quotes them (`%3A` of a signed path becomes `:`),
    and its table of errors calls a reset after sending a `ConnectTimeout`.
    """

    def __init__(self, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl_context = ssl_context
        self._session: aiohttp.ClientSession | None = None

    def _opened(self) -> aiohttp.ClientSession:
        # aiohttp's connector wants a running loop, so it is made with the first request and not in __init__.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    # httpx's own context: certifi's authorities, or those of SSL_CERT_FILE.
                    ssl=self._ssl_context or httpx.create_ssl_context(),
                    force_close=True,
                    limit=0,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
                trust_env=False,
            )
        return self._session

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request whose body is in memory and promises its status and headers; the body is streamed.

        The extension `timeout` is httpx's (seconds): `connect` bounds name resolution, connect and TLS together,
        `read` each silence. `sni_hostname` is the name that TLS asks for and the certificate must be valid for.
        """
        timeout = request.extensions.get("timeout", {})
        try:
            response = await self._opened().request(
                request.method,
                # A signed URL must arrive as it was given: `encoded` keeps yarl from writing it anew.
                yarl.URL(str(request.url), encoded=True),
                headers=[(name.decode("ascii"), value.decode("ascii")) for name, value in request.headers.raw],
                data=request.content or None,
                allow_redirects=False,
                server_hostname=request.extensions.get("sni_hostname"),
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=timeout.get("connect"), sock_read=timeout.get("read")
                ),
            )
        except aiohttp.ConnectionTimeoutError as error:
            raise httpx.ConnectTimeout(type(error).__name__, request=request) from error
        except aiohttp.ClientConnectorError as error:
            raise httpx.ConnectError(type(error).__name__, request=request) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error
        return httpx.Response(
            response.status, headers=list(response.raw_headers), stream=_Body(response), request=request
        )

    async def aclose(self) -> None:
        """Closes every connection; a request still in flight fails as broken."""
        if self._session is not None:
            await self._session.close()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error

    async def aclose(self) -> None:
        # close, not release: an endless answer that nobody reads any more ends here.
        self._response.close()


def _broken(error: Exception) -> httpx.TransportError:
    kind = httpx.ReadTimeout if isinstance(error, TimeoutError) else httpx.ReadError
    return kind(type(error).__name__)


async def read_capped(response: httpx.Response, chunks: AsyncIterator[bytes], *, bytes_max: int) -> bytes:
    """Gathers `chunks` (of `response`, raw or decoded) and promises never to hold much more than `bytes_max` bytes.

    Raises: `BodyTooLarge`, before anything is read where Content-Length already says so; the errors of `Wire`.
    """
    declared = response.headers.get("content-length", "")
    if declared.isascii() and declared.isdecimal() and int(declared) > bytes_max:
        raise BodyTooLarge
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > bytes_max:
            raise BodyTooLarge
    return bytes(body)
