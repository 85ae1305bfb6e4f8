"""What do tests fetch pictures from: hosts of an internet whose public addresses are ports of this machine?"""

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from app.connections.dialing import dial_address
from app.connections.kept import Incoming, KeptConnections, Request, Transport
from app.upstream.download import Downloader, DownloadError, Resolve, resolve_host
from tests.upstream.raw_server import Connection

PICTURE = b"\x89PNG and so on" * 1_000
PUBLIC_V4, OTHER_V4, PUBLIC_V6 = "93.184.215.14", "93.184.215.15", "2606:4700:4700::1111"


class Internet:
    """Carries what is addressed to a public address to a port of this machine, and changes nothing else."""

    def __init__(self, ports: Mapping[str, int], ssl_context: ssl.SSLContext | None = None) -> None:
        self._ports = ports
        self._wire = KeptConnections(dial_address, tls=lambda: ssl_context or httpx.create_ssl_context())
        self.asked: list[str] = []

    async def open(
        self, request: Request, *, connect_timeout_seconds: float, silence_seconds_max: float | None = None
    ) -> Incoming:
        address = f"{request.host}:{request.port}"
        self.asked.append(address)
        carried = replace(request, host="127.0.0.1", port=self._ports[address])
        return await self._wire.open(
            carried, connect_timeout_seconds=connect_timeout_seconds, silence_seconds_max=silence_seconds_max
        )

    async def close(self) -> None:
        await self._wire.close()


def names(answers: Mapping[str, Sequence[str]]) -> Resolve:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers[host]

    return resolve


@asynccontextmanager
async def downloader(
    *,
    loopback: bool = True,
    timeout_seconds: float = 5.0,
    bytes_max: int = 1024 * 1024,
    resolve: Resolve = resolve_host,
    transport: Transport | None = None,
) -> AsyncIterator[Downloader]:
    opened = Downloader(
        allow_loopback_http=loopback,
        timeout_seconds=timeout_seconds,
        body_bytes_max=bytes_max,
        resolve=resolve,
        transport=transport,
    )
    try:
        yield opened
    finally:
        await opened.close()


async def failure_of(opened: Downloader, url: str) -> DownloadError:
    with pytest.raises(DownloadError) as failure:
        await opened.fetch(url)
    return failure.value


async def serve_picture(connection: Connection) -> None:
    await connection.answer("200 OK", PICTURE, "Content-Type: image/png")
