"""Is a connection taken again for the same place only, and does nothing but a whole answer pass for a picture?"""

import asyncio
import ssl

import pytest

from app.upstream.download import SourceUnavailable
from tests.upstream.internet import (
    OTHER_V4,
    PICTURE,
    PUBLIC_V4,
    Internet,
    downloader,
    failure_of,
    names,
)
from tests.upstream.raw_server import Connection, Script, raw_server

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PICTURE)


async def serve_on(connection: Connection) -> None:
    """One picture after the other, for as long as the client comes back."""
    while True:
        await connection.answer("200 OK", PICTURE)


# Taken again


async def test_a_connection_is_taken_again_for_the_same_place() -> None:
    async with raw_server(serve_on) as server, downloader() as opened:
        for number in range(3):
            assert await opened.fetch(f"{server.url}/{number}.png") == PICTURE

    assert (server.connections, len(server.requests)) == (1, 3)


async def test_pictures_that_are_fetched_at_once_have_a_connection_each() -> None:
    async with raw_server(serve_on) as server, downloader() as opened:
        for _ in range(2):
            came = await asyncio.gather(*(opened.fetch(f"{server.url}/{number}.png") for number in range(4)))
            assert came == [PICTURE] * 4

    assert (server.connections, len(server.requests)) == (4, 8)


async def test_a_picture_of_several_tls_records_comes_whole(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """A record holds 16 KiB; several are read at once."""
    picture = bytes(range(256)) * 234

    async def serve(connection: Connection) -> None:
        await connection.answer("200 OK", picture)

    async with raw_server(serve, tls=server_tls) as server:
        internet = Internet({f"{PUBLIC_V4}:443": server.port}, client_tls)
        resolve = names({"pictures.example": [PUBLIC_V4]})
        async with downloader(loopback=False, resolve=resolve, transport=internet) as opened:
            assert await opened.fetch("https://pictures.example/a.png") == picture


async def test_a_connection_is_not_taken_for_another_name_of_its_address(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """The certificate was looked at for one name only."""
    async with raw_server(serve_on, tls=server_tls) as server:
        internet = Internet({f"{PUBLIC_V4}:443": server.port}, client_tls)
        resolve = names({"pictures.example": [PUBLIC_V4], "other.example": [PUBLIC_V4]})
        async with downloader(loopback=False, resolve=resolve, transport=internet) as opened:
            assert await opened.fetch("https://pictures.example/a.png") == PICTURE
            assert isinstance(await failure_of(opened, "https://other.example/a.png"), SourceUnavailable)

    # Neither did its request go out over the connection that was there.
    assert len(server.requests) == 1


async def test_a_connection_is_not_taken_for_another_address_of_its_name() -> None:
    async def other(connection: Connection) -> None:
        await connection.answer("200 OK", b"other")

    answers = [["127.0.0.1"], ["127.0.0.2"]]

    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async with (
        raw_server(serve_on) as first,
        raw_server(other, at=("127.0.0.2", first.port)) as second,
        downloader(resolve=resolve) as opened,
    ):
        assert await opened.fetch(f"http://localhost:{first.port}/a.png") == PICTURE
        assert await opened.fetch(f"http://localhost:{first.port}/a.png") == b"other"

    assert (first.connections, second.connections) == (1, 1)


async def test_a_connection_that_was_kept_does_not_spare_the_look_at_the_address(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    answers = [[PUBLIC_V4], [PUBLIC_V4, "10.0.0.1"], [OTHER_V4]]

    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async with raw_server(serve_on, tls=server_tls) as server:
        internet = Internet({f"{PUBLIC_V4}:443": server.port, f"{OTHER_V4}:443": server.port}, client_tls)
        async with downloader(loopback=False, resolve=resolve, transport=internet) as opened:
            assert await opened.fetch("https://pictures.example/a.png") == PICTURE
            await failure_of(opened, "https://pictures.example/a.png")
            assert len(server.requests) == 1


async def test_a_connection_that_the_server_closed_meanwhile_is_made_anew() -> None:
    async def once(connection: Connection) -> None:
        await connection.answer("200 OK", PICTURE)

    async with raw_server(once) as server, downloader() as opened:
        for _ in range(5):
            assert await opened.fetch(f"{server.url}/a.png") == PICTURE

    assert server.connections == 5


async def test_a_connection_that_dies_of_the_next_request_is_made_anew() -> None:
    async def then_reset(connection: Connection) -> None:
        await connection.answer("200 OK", PICTURE)
        await connection.read_request()
        connection.reset()

    async with raw_server(then_reset) as server, downloader() as opened:
        assert await opened.fetch(f"{server.url}/a.png") == PICTURE
        assert await opened.fetch(f"{server.url}/b.png") == PICTURE

    assert [request.split(b" ")[1] for request in server.requests] == [b"/a.png", b"/b.png", b"/b.png"]


@pytest.mark.parametrize(
    "surplus", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"x"], ids=["a whole answer", "a byte"]
)
async def test_what_nobody_asked_for_never_answers_the_next_request(surplus: bytes) -> None:
    async def too_much(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(HEAD + PICTURE + surplus)
        await connection.hang()

    async with raw_server(too_much) as server, downloader() as opened:
        for _ in range(3):
            assert await opened.fetch(f"{server.url}/a.png") == PICTURE

    assert server.connections == 3


async def test_what_comes_late_and_unasked_never_answers_the_next_request() -> None:
    may_send, dropped = asyncio.Event(), asyncio.Event()

    async def late(connection: Connection) -> None:
        await connection.answer("200 OK", PICTURE)
        await may_send.wait()
        try:
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            await connection.read_request()
        finally:
            dropped.set()

    async with raw_server(late) as server, downloader() as opened:
        assert await opened.fetch(f"{server.url}/a.png") == PICTURE
        may_send.set()
        async with asyncio.timeout(5):
            await dropped.wait()
        assert await opened.fetch(f"{server.url}/a.png") == PICTURE

    assert server.connections == 2


@pytest.mark.parametrize("header", [b"Connection: close", b"Transfer-Encoding: chunked"])
async def test_a_connection_that_says_it_ends_is_not_taken_again(header: bytes) -> None:
    async def script(connection: Connection) -> None:
        await connection.read_request()
        if header.startswith(b"Connection"):
            await connection.send(HEAD[:-2] + header + b"\r\n\r\n" + PICTURE)
        else:
            await connection.send(b"HTTP/1.1 200 OK\r\n" + header + b"\r\n\r\n5\r\nwhole\r\n0\r\n\r\n")
        await connection.hang()

    async with raw_server(script) as server, downloader() as opened:
        for _ in range(2):
            assert await opened.fetch(f"{server.url}/a.png") in (PICTURE, b"whole")

    assert server.connections == 2


async def test_closing_ends_the_connections_that_were_kept() -> None:
    ended = asyncio.Event()

    async def until_it_ends(connection: Connection) -> None:
        await connection.answer("200 OK", PICTURE)
        try:
            await connection.read_request()
        finally:
            ended.set()

    async with raw_server(until_it_ends) as server:
        async with downloader() as opened:
            assert await opened.fetch(f"{server.url}/a.png") == PICTURE
        async with asyncio.timeout(5):
            await ended.wait()


# What is an answer


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwho\r\n2;x=1\r\nle\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nwhole",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nwhole",
        b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\nContent-Encoding: gzip\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole",
        b"HTTP/1.1 200 OK\r\nContent-Length:   5  \r\n\r\nwhole",
    ],
    ids=["chunks", "until it closes", "1.0", "early hints", "blanks"],
)
@pytest.mark.parametrize("piece_bytes", [1, 7, 1_000])
async def test_a_picture_comes_whole_in_any_way_that_http_has(answer: bytes, piece_bytes: int) -> None:
    async def script(connection: Connection) -> None:
        await connection.read_request()
        for start in range(0, len(answer), piece_bytes):
            await connection.send(answer[start : start + piece_bytes])
            await asyncio.sleep(0)

    async with raw_server(script) as server, downloader() as opened:
        assert await opened.fetch(f"{server.url}/a.png") == b"whole"


async def test_an_empty_picture_is_whole() -> None:
    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", b"")

    async with raw_server(script) as server, downloader() as opened:
        assert await opened.fetch(f"{server.url}/a.png") == b""


@pytest.mark.parametrize("size", [64 * 1024 - 100, 64 * 1024, 200_000, 1_000_000])
async def test_a_picture_of_any_size_comes_as_it_is(size: int) -> None:
    picture = bytes(number * number % 251 for number in range(size))

    async def script(connection: Connection) -> None:
        while True:
            await connection.answer("200 OK", picture)

    async with raw_server(script) as server, downloader() as opened:
        for _ in range(2):
            assert await opened.fetch(f"{server.url}/a.png") == picture


async def announce_without_end(connection: Connection) -> None:
    await connection.read_request()
    while True:
        await connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n")


async def send_a_head_without_end(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await connection.send(b"X-Header: again\r\n")


async def declare_a_length_and_chunks(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nwhole")


async def declare_no_number(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nwhole")


async def declare_less_than_nothing(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nwhole")


async def declare_a_length_beyond_numbers(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5_000 + b"\r\n\r\nwhole")


async def switch_protocols(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nwhole")
    await connection.hang()


async def break_off_early_hints(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")


async def fold_a_chunk_size(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\nwhole")


@pytest.mark.parametrize(
    "script",
    [
        announce_without_end,
        send_a_head_without_end,
        declare_a_length_and_chunks,
        declare_no_number,
        declare_less_than_nothing,
        declare_a_length_beyond_numbers,
        switch_protocols,
        break_off_early_hints,
        fold_a_chunk_size,
    ],
)
async def test_what_is_no_sound_answer_is_none(script: Script) -> None:
    async with raw_server(script) as server, downloader(timeout_seconds=2.0) as opened:
        failure = await failure_of(opened, f"{server.url}/a.png?sig=canary")

    assert isinstance(failure, SourceUnavailable)
    assert failure.retryable
