"""How are a picture's bytes fetched from an address that somebody else chose?"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urljoin

import httpx

from app.connections.connection import AnswerBroken, Body, BodyTooLarge, NotConnected
from app.connections.dialing import dial_address
from app.connections.kept import Incoming, KeptConnections, Request, Transport
from app.upstream.guard import Address, SourceAddress, SourceForbiddenError, check_addresses, parse_source_url
from app.upstream.room import UNTOLD_BYTES, Hold

BODY_BYTES_MAX = 32 * 1024 * 1024

# Asked once per hop with (host, port); answers address literals in the order to try them; raises OSError.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_REDIRECTS_MAX = 3
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_ADDRESSES_TRIED_MAX = 4
_CONNECT_TIMEOUT_SECONDS = 5.0


class DownloadError(Exception):
    """A picture could not be fetched. The text holds the host at most: never path, query or signature.

    `retryable` tells whether the same URL can still give the picture later.
    """

    retryable: bool = False


class SourceForbidden(DownloadError):
    """The URL, a redirect of it, or an address behind it is not public https. No connection was made to it.

    Retryable where a name was resolved to such an address, and not where the URL itself says so.
    """


class SourceTooLarge(DownloadError):
    """The picture is larger than a picture may be."""


class SourceUnavailable(DownloadError):
    """No whole picture came this time: no address, no connection, another status than 200, cut, or too slow."""

    retryable = True


class Downloader:
    """Fetches pictures from public https addresses only, and sends nothing with the request but the address."""

    def __init__(
        self,
        *,
        allow_loopback_http: bool,
        timeout_seconds: float,
        body_bytes_max: int = BODY_BYTES_MAX,
        resolve: Resolve | None = None,
        transport: Transport | None = None,
    ) -> None:
        """Opens nothing yet. `timeout_seconds` bounds one whole try, redirects and all."""
        self._allow_loopback_http = allow_loopback_http
        self._timeout_seconds = timeout_seconds
        self._body_bytes_max = body_bytes_max
        self._resolve = resolve or resolve_host
        # httpx's context: certifi's authorities, or those of SSL_CERT_FILE.
        self._transport = transport or KeptConnections(dial_address, tls=httpx.create_ssl_context)

    async def fetch(self, url: str, held: Hold | None = None) -> Body:
        """Promises the whole body, as long as its Content-Length says; whether it is a picture is not looked at.

        `held` takes the room for it, and what that takes is no part of the try's time. What it lends is the body's for
        as long as it holds.
        Raises: `SourceForbidden`, `SourceTooLarge`, `SourceUnavailable`.
        """
        # Errors below are raised `from None`: the text of what lies beneath may hold the URL with its signature.
        try:
            async with asyncio.timeout(self._timeout_seconds) as deadline:
                return await self._follow(url, deadline, held)
        except TimeoutError:
            raise SourceUnavailable(f"{_host(url)} gave no whole picture in {self._timeout_seconds:g} s") from None

    async def close(self) -> None:
        """Closes every connection."""
        await self._transport.close()

    async def _follow(self, url: str, deadline: asyncio.Timeout, held: Hold | None) -> Body:
        source = self._checked(url)
        for _ in range(_REDIRECTS_MAX + 1):
            incoming = await self._open(source)
            try:
                if incoming.status not in _REDIRECT_STATUSES:
                    _require_picture(source, incoming)
                    if held is not None and (incoming.length or 0) <= self._body_bytes_max:
                        length = UNTOLD_BYTES if incoming.length is None else incoming.length
                        await held.take(length, deadline=deadline)
                    body = await self._body(source, incoming, held)
                    if held is not None:
                        held.settle(len(body))
                    return body
                source = self._redirected(source, incoming.headers.get("location", ""))
            finally:
                incoming.close()
        raise SourceUnavailable(f"{source.host} is behind more than {_REDIRECTS_MAX} redirects")

    def _checked(self, url: str) -> SourceAddress:
        try:
            return parse_source_url(url, allow_loopback_http=self._allow_loopback_http)
        except SourceForbiddenError as error:
            raise SourceForbidden(f"A source URL is refused: {error}") from None

    def _redirected(self, source: SourceAddress, location: str) -> SourceAddress:
        if not location:
            raise SourceUnavailable(f"{source.host} redirects to nowhere")
        host = f"[{source.host}]" if ":" in source.host else source.host
        try:
            url = urljoin(f"{source.scheme}://{host}:{source.port}{source.target}", location)
        except ValueError:
            raise SourceForbidden(f"{source.host} redirects to what is no URL") from None
        target = self._checked(url)
        if target.loopback and not source.loopback:
            # Also where loopback is allowed: a host outside may not point inside.
            raise SourceForbidden(f"{source.host} redirects to this machine")
        return target

    async def _open(self, source: SourceAddress) -> Incoming:
        failure = ""
        for address in (await self._addresses(source))[:_ADDRESSES_TRIED_MAX]:
            request = _request(source, address)
            try:
                return await self._transport.open(request, connect_timeout_seconds=_CONNECT_TIMEOUT_SECONDS)
            except NotConnected as error:
                failure = str(error)
            except AnswerBroken as error:
                raise SourceUnavailable(f"{source.host} gave no answer: {error}") from None
        raise SourceUnavailable(f"{source.host} cannot be reached: {failure}")

    async def _addresses(self, source: SourceAddress) -> tuple[Address, ...]:
        if source.literal is not None:
            addresses: tuple[Address, ...] = (source.literal,)
        else:
            try:
                answers = await self._resolve(source.host, source.port)
                addresses = tuple(ipaddress.ip_address(answer) for answer in answers)
            except (OSError, ValueError):
                # ValueError: a name that cannot be put to a resolver, or an answer that is no address.
                raise SourceUnavailable(f"{source.host} has no address now") from None
        if not addresses:
            raise SourceUnavailable(f"{source.host} has no address now")
        try:
            check_addresses(source, addresses)
        except SourceForbiddenError as error:
            # A name may lead elsewhere the next time: one odd answer of a resolver must not lose a paid picture.
            refused = SourceForbidden(f"{source.host} is refused: {error}")
            refused.retryable = source.literal is None
            raise refused from None
        return addresses

    async def _body(self, source: SourceAddress, incoming: Incoming, held: Hold | None) -> Body:
        length = incoming.length or 0
        into = held.lend(length) if held is not None and length <= self._body_bytes_max else None
        try:
            return await incoming.read(bytes_max=self._body_bytes_max, into=into)
        except BodyTooLarge:
            raise SourceTooLarge(f"{source.host} sent more than {self._body_bytes_max} bytes") from None
        except AnswerBroken as error:
            raise SourceUnavailable(f"{source.host} broke off the picture: {error}") from None


def _require_picture(source: SourceAddress, incoming: Incoming) -> None:
    if incoming.status != 200:
        raise SourceUnavailable(f"{source.host} answered HTTP {incoming.status}")
    if incoming.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise SourceUnavailable(f"{source.host} sent the picture in an encoding that was not asked for")


def _request(source: SourceAddress, address: Address) -> Request:
    # The connection goes to the address that was checked, so a second look-up (rebinding) cannot happen; the name
    # stays in Host, and in TLS, where the certificate must be valid for it.
    named = f"[{source.host}]" if ":" in source.host else source.host
    host = named if source.port in (80, 443) else f"{named}:{source.port}"
    # The target is printable ASCII without a blank, and the host is made of labels: neither ends a line.
    head = f"GET {source.target} HTTP/1.1\r\nHost: {host}\r\nAccept: image/*\r\nUser-Agent: imagekeep\r\n\r\n"
    return Request(
        host=str(address),
        port=source.port,
        server_name=source.host if source.scheme == "https" else None,
        head=head.encode("ascii"),
    )


def _host(url: str) -> str:
    try:
        return parse_source_url(url, allow_loopback_http=True).host
    except SourceForbiddenError:
        return "The source"


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Asks the system's resolver once. Raises: OSError."""
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in answers]
