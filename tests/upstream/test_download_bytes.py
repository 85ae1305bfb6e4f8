"""Does a picture come whole and no larger than allowed, and is it told when another attempt may bring it?"""

import asyncio
import gzip
import traceback

import pytest

from app.upstream.download import SourceTooLarge, SourceUnavailable
from tests.upstream.internet import PICTURE, downloader, failure_of, names, serve_picture
from tests.upstream.raw_server import Connection, Script, raw_server

pytestmark = pytest.mark.anyio


async def test_a_picture_comes_whole_and_only_the_address_is_sent() -> None:
    signed = "/a%2Fb%20c%3Ad;e=~%7Ex/%41.png?se=2026-11-23T10%3A00%3A00Z&sig=a%2Bb%2Fc%3D%3D&x=a+b&empty=&q=%7e"
    async with raw_server(serve_picture) as server, downloader() as opened:
        picture = await opened.fetch(server.url + signed + "#part")

    assert picture == PICTURE
    (request,) = server.requests
    request_line, *headers = request.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert request_line == f"GET {signed} HTTP/1.1"
    assert sorted(headers) == [
        "Accept: image/*",
        f"Host: 127.0.0.1:{server.port}",
        "User-Agent: imagekeep",
    ]


@pytest.mark.parametrize(
    "status", ["201 Created", "206 Partial Content", "304 Not Modified", "403 No", "404 No", "503 No"]
)
async def test_any_status_but_200_may_be_tried_again(status: str) -> None:
    async def script(connection: Connection) -> None:
        await connection.answer(status, b"")

    async with raw_server(script) as server, downloader() as opened:
        failure = await failure_of(opened, f"{server.url}/a.png")

    assert isinstance(failure, SourceUnavailable)
    assert failure.retryable
    assert status[:3] in str(failure)


async def test_a_redirect_to_nowhere_may_be_tried_again() -> None:
    async def script(connection: Connection) -> None:
        await connection.answer("302 Found", b"")

    async with raw_server(script) as server, downloader() as opened:
        assert isinstance(await failure_of(opened, f"{server.url}/a.png"), SourceUnavailable)


async def close_unread(connection: Connection) -> None:
    return


async def reset_after_reading(connection: Connection) -> None:
    await connection.read_request()
    connection.reset()


async def hang_after_reading(connection: Connection) -> None:
    await connection.read_request()
    await connection.hang()


async def cut_the_body(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + PICTURE)


async def cut_the_chunks(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc")


async def reset_in_the_body(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + PICTURE)
    connection.reset()


async def drip_the_body(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
    while True:
        await connection.send(b"x")
        await asyncio.sleep(0.02)


async def declare_two_lengths(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc")


async def answer_no_http(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"\x89PNG\r\n\r\n")


async def encode_the_body(connection: Connection) -> None:
    await connection.answer("200 OK", gzip.compress(PICTURE), "Content-Encoding: gzip")


@pytest.mark.parametrize(
    "script",
    [
        close_unread,
        reset_after_reading,
        hang_after_reading,
        cut_the_body,
        cut_the_chunks,
        reset_in_the_body,
        drip_the_body,
        declare_two_lengths,
        answer_no_http,
        encode_the_body,
    ],
)
async def test_a_picture_that_does_not_come_whole_may_be_tried_again(script: Script) -> None:
    async with raw_server(script) as server, downloader(timeout_seconds=0.3) as opened:
        failure = await failure_of(opened, f"{server.url}/secret-path?sig=canary")

    assert isinstance(failure, SourceUnavailable)
    assert failure.retryable
    assert "127.0.0.1" in str(failure)
    told = "".join(traceback.format_exception(failure))
    assert "canary" not in told
    assert "secret-path" not in told


async def test_a_host_that_cannot_be_reached_may_be_tried_again(refused_port: int, blackhole_port: int) -> None:
    async with downloader(timeout_seconds=0.3) as opened:
        for port in (refused_port, blackhole_port):
            failure = await failure_of(opened, f"http://127.0.0.1:{port}/a.png?sig=canary")
            assert isinstance(failure, SourceUnavailable)
            assert "canary" not in "".join(traceback.format_exception(failure))


async def test_a_name_without_an_address_may_be_tried_again() -> None:
    async with downloader(loopback=False, timeout_seconds=3.0) as opened:
        assert isinstance(await failure_of(opened, "https://nowhere.invalid/a.png"), SourceUnavailable)
    async with downloader(loopback=False, resolve=names({"pictures.example": []})) as opened:
        assert isinstance(await failure_of(opened, "https://pictures.example/a.png"), SourceUnavailable)


async def declare_too_much(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n")
    await connection.hang()


async def send_too_much_in_chunks(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await connection.send(b"64\r\n" + b"x" * 100 + b"\r\n")


async def send_too_much_without_a_length(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await connection.send(b"x" * 100)


@pytest.mark.parametrize("script", [declare_too_much, send_too_much_in_chunks, send_too_much_without_a_length])
async def test_a_picture_larger_than_allowed_is_given_up(script: Script) -> None:
    async with raw_server(script) as server, downloader(bytes_max=1_000) as opened:
        failure = await failure_of(opened, f"{server.url}/a.png?sig=canary")

    assert isinstance(failure, SourceTooLarge)
    assert not failure.retryable
    assert "canary" not in str(failure)


async def test_a_picture_of_exactly_the_size_allowed_comes() -> None:
    async with raw_server(serve_picture) as server, downloader(bytes_max=len(PICTURE)) as opened:
        assert await opened.fetch(f"{server.url}/a.png") == PICTURE


async def test_a_refusal_tells_nothing_of_the_url() -> None:
    async with downloader(loopback=False) as opened:
        for url in ("https://user:canary@a.example/canary", "https://10.0.0.1/canary?sig=canary", "canary"):
            failure = await failure_of(opened, url)
            assert not failure.retryable
            assert "canary" not in "".join(traceback.format_exception(failure))


async def test_cancelling_a_download_passes_through() -> None:
    arrived = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.read_request()
        arrived.set()
        await connection.hang()

    async with raw_server(script) as server, downloader() as opened:
        fetch = asyncio.create_task(opened.fetch(f"{server.url}/a.png"))
        await arrived.wait()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
