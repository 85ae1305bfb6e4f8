"""How does a request that may be sent twice at no harm get by without a new connection?

A picture is asked for, or put under its key, again and again at no harm. So unlike a paid order it may take a
connection that was used before. Nothing is added to a request: no cookies, no redirects, no proxy from the environment.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from app.connections.connection import AnswerBroken, Body, Connection, NotConnected
from app.connections.dialing import Dial

# Shorter than servers are known to keep an idle connection, so that few are found closed.
_IDLE_SECONDS = 4.0
_IDLE_MAX = 16


@dataclass(frozen=True)
class Request:
    """One request that may be sent twice: where to, and the name that TLS asks for (None: plain http).

    `host` is a name or an address literal. `head` and `body` are all that is sent. They hold signatures, so neither is
    in the repr.
    """

    host: str
    port: int
    server_name: str | None
    head: bytes = field(repr=False)
    body: Body = field(default=b"", repr=False)


class Incoming(Protocol):
    """An answer whose head is here: `headers` by lower-case name, and how long its body is, if it says so."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def length(self) -> int | None: ...

    async def read(
        self, *, bytes_max: int, into: memoryview | None = None, silence_seconds_max: float | None = None
    ) -> Body:
        """Promises the whole body, which comes to stand in `into` if that is as long as it. Raises BodyTooLarge, before
        anything is read where that is told; AnswerBroken; TimeoutError after so long a silence.
        """

    def close(self) -> None:
        """Ends it. A connection whose answer was not read to its end is dropped."""


class Transport(Protocol):
    """What such requests are sent with."""

    async def open(
        self, request: Request, *, connect_timeout_seconds: float, silence_seconds_max: float | None = None
    ) -> Incoming:
        """Sends the request and promises the head of its answer.

        `connect_timeout_seconds` bounds look-up, connect and TLS together. Raises NotConnected, AnswerBroken, and
        TimeoutError after so long a silence.
        """

    async def close(self) -> None:
        """Closes every connection."""


# What a connection may be taken again for: the same host or checked address, under the same name.
_Place = tuple[str, int, str | None]


class KeptConnections:
    """Sends requests over connections of its own, each kept for a few seconds for the next one of the same place."""

    def __init__(self, dial: Dial, *, tls: Callable[[], ssl.SSLContext]) -> None:
        """Opens nothing yet. `tls` is asked when the first connection needs it: certificates take long to read."""
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._dial = dial
        self._idle: dict[_Place, list[Connection]] = {}

    async def open(
        self, request: Request, *, connect_timeout_seconds: float, silence_seconds_max: float | None = None
    ) -> Incoming:
        """As Transport.open."""
        place = (request.host, request.port, request.server_name)
        while (kept := self._take_idle(place)) is not None:
            try:
                return await self._ask(kept, place, request, silence_seconds_max)
            except AnswerBroken:
                # Closed by the server while the request was on its way. Sent again, it does no harm.
                if kept.heard:
                    raise
        try:
            async with asyncio.timeout(connect_timeout_seconds):
                connection = await self._connect(request)
        except (OSError, RuntimeError, ValueError) as error:
            raise NotConnected(type(error).__name__) from error
        return await self._ask(connection, place, request, silence_seconds_max)

    async def _connect(self, request: Request) -> Connection:
        if request.server_name is None:
            return await self._dial(request.host, request.port)
        if self._tls is None:
            self._tls = self._make_tls()
        return await self._dial(request.host, request.port, tls=self._tls, server_name=request.server_name)

    async def _ask(
        self, connection: Connection, place: _Place, request: Request, silence_seconds_max: float | None
    ) -> Incoming:
        try:
            await connection.ask(request.head, request.body, silence_seconds_max=silence_seconds_max)
        except BaseException:
            connection.abort()
            raise
        return _Answer(connection, keep=lambda: self._keep(connection, place))

    def _keep(self, connection: Connection, place: _Place) -> None:
        if sum(map(len, self._idle.values())) >= _IDLE_MAX:
            connection.abort()
            return
        kept = self._idle.setdefault(place, [])
        kept.append(connection)
        connection.rest(_IDLE_SECONDS, on_end=lambda: self._forget(connection, place))

    def _forget(self, connection: Connection, place: _Place) -> None:
        kept = self._idle.get(place, [])
        if connection in kept:
            kept.remove(connection)
        if not kept:
            self._idle.pop(place, None)

    def _take_idle(self, place: _Place) -> Connection | None:
        kept = self._idle.get(place)
        if not kept:
            return None
        connection = kept[-1]
        self._forget(connection, place)
        connection.end_rest()
        return connection

    async def close(self) -> None:
        """As Transport.close."""
        for kept in list(self._idle.values()):
            for connection in list(kept):
                connection.abort()
        self._idle.clear()


class _Answer:
    """An Incoming. It lets go of its connection with the last byte: somebody else may have that one by then."""

    def __init__(self, connection: Connection, *, keep: Callable[[], None]) -> None:
        self.status, self.headers, self.length = connection.status, connection.headers, connection.length
        self._connection: Connection | None = connection
        self._keep = keep

    async def read(
        self, *, bytes_max: int, into: memoryview | None = None, silence_seconds_max: float | None = None
    ) -> Body:
        assert self._connection is not None, "read once"
        body = await self._connection.read(bytes_max, into=into, silence_seconds_max=silence_seconds_max)
        if self._connection.reusable:
            self._connection = None
            self._keep()
        return body

    def close(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
