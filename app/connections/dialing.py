"""How is a connection made to a host, at little cost where there is nothing to choose?"""

import asyncio
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Protocol

from aiohappyeyeballs import AddrInfoType, start_connection

from app.connections.connection import Connection

# A second address is tried beside the first after so long, as RFC 8305 has it.
_NEXT_ADDRESS_SECONDS = 0.25
# A thousand orders in the same second ask the system's resolver once.
_ADDRESSES_KEPT_SECONDS = 10.0


class Dial(Protocol):
    """How a connection to a host is made; with `tls`, one whose certificate is valid for `server_name`."""

    async def __call__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, server_name: str | None = None
    ) -> Connection:
        """Waits for as long as the system does. Raises OSError; RuntimeError is uvloop's for some sockets, and
        ValueError is said of a name that can't be put to a resolver.
        """


class Dialer:
    """Makes connections, and remembers for some seconds which addresses a name has."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, int], tuple[asyncio.Task[Sequence[AddrInfoType]], float]] = {}

    async def dial(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, server_name: str | None = None
    ) -> Connection:
        """As Dial."""
        addresses = await self._resolve(host, port)
        if (address := _the_only_one(addresses)) is not None:
            # The loop's own way takes less than half of what a race does that nobody else runs in: 80 of 190 us.
            connection = Connection()
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: connection, *address, ssl=tls, server_hostname=server_name)
            return connection
        sock = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS)
        return await _over(sock, tls, server_name)

    async def _resolve(self, host: str, port: int) -> Sequence[AddrInfoType]:
        asked, at = self._asked.get((host, port), (None, 0.0))
        if asked is None or time.monotonic() - at > _ADDRESSES_KEPT_SECONDS or _has_failed(asked):
            loop = asyncio.get_running_loop()
            asked = loop.create_task(_addresses(host, port))
            # Whoever asked may be gone when it fails; asyncio would then complain of an error that nobody fetched.
            asked.add_done_callback(_has_failed)
            self._asked[host, port] = asked, time.monotonic()
        return await asyncio.shield(asked)


async def dial_address(
    host: str, port: int, *, tls: ssl.SSLContext | None = None, server_name: str | None = None
) -> Connection:
    """As Dial, for an address literal that was checked: it goes to the system as one, and leads nowhere else.

    By Python's own socket, so that an audit hook sees where to.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return await _over(sock, tls, server_name)


async def _over(sock: socket.socket, tls: ssl.SSLContext | None, server_name: str | None) -> Connection:
    connection = Connection()
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: connection, sock=sock, ssl=tls, server_hostname=server_name)
    except BaseException:
        connection.abort()
        sock.close()
        raise
    return connection


async def _addresses(host: str, port: int) -> Sequence[AddrInfoType]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _the_only_one(addresses: Sequence[AddrInfoType]) -> tuple[str, int] | None:
    """Host and port, where there is nothing to choose, and they say all (a link-local address has a scope as well)."""
    if len(addresses) != 1:
        return None
    family, *_, sockaddr = addresses[0]
    if family == socket.AF_INET6 and sockaddr[2:] != (0, 0):
        return None
    return str(sockaddr[0]), int(sockaddr[1])


def _has_failed(asked: asyncio.Task[Sequence[AddrInfoType]]) -> bool:
    return asked.done() and (asked.cancelled() or asked.exception() is not None)
