"""Is an order that was sent unknown unless a whole answer came, however the answer fails?"""

import asyncio
import base64
import gzip
import json
import tracemalloc

import pytest

from app.upstream.outcome import BytesSource, Generated, Refused, Unknown
from tests.upstream.orders import SUCCESS, order_from, upstream_at
from tests.upstream.raw_server import Connection, Script, raw_server

pytestmark = pytest.mark.anyio


async def close_unread(connection: Connection) -> None:
    return


async def reset_unread(connection: Connection) -> None:
    connection.reset()


async def close_after_reading(connection: Connection) -> None:
    await connection.read_request()


async def reset_after_reading(connection: Connection) -> None:
    await connection.read_request()
    connection.reset()


async def close_in_the_status_line(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.")


async def close_in_the_headers(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: appli")


async def answer_no_http(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"hello there\r\n\r\n")


async def answer_an_endless_header(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200_000)
    await connection.hang()


async def answer_endless_early_hints(connection: Connection) -> None:
    await connection.read_request()
    while True:
        await connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.01)


async def hang_after_reading(connection: Connection) -> None:
    await connection.read_request()
    await connection.hang()


@pytest.mark.parametrize(
    "script",
    [
        close_unread,
        reset_unread,
        close_after_reading,
        reset_after_reading,
        close_in_the_status_line,
        close_in_the_headers,
        answer_no_http,
        answer_an_endless_header,
        answer_endless_early_hints,
        hang_after_reading,
    ],
)
async def test_a_connection_that_fails_before_a_whole_head_is_unknown(script: Script) -> None:
    async with raw_server(script) as server, upstream_at(server.url, read=0.3, total=1.0) as upstream:
        outcome = await order_from(upstream)

    assert isinstance(outcome, Unknown), outcome
    assert outcome.upstream_status is None
    assert server.connections == 1


async def cut_the_body(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + SUCCESS)


async def cut_the_chunks(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(SUCCESS), SUCCESS)
    )


async def break_the_chunks(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + SUCCESS)


async def reset_in_the_body(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + SUCCESS)
    connection.reset()


async def hang_in_the_body(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + SUCCESS)
    await connection.hang()


async def declare_too_much(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
    await connection.hang()


async def send_too_much(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await connection.send(b"10000\r\n" + b" " * 65_536 + b"\r\n")


async def send_broken_gzip(connection: Connection) -> None:
    await connection.answer("200 OK", b"\x1f\x8b" + SUCCESS, "Content-Encoding: gzip")


async def send_cut_gzip(connection: Connection) -> None:
    await connection.answer("200 OK", gzip.compress(SUCCESS)[:-40], "Content-Encoding: gzip")


async def send_gzip_in_gzip(connection: Connection) -> None:
    await connection.answer("200 OK", gzip.compress(gzip.compress(SUCCESS)), "Content-Encoding: gzip, gzip")


@pytest.mark.parametrize(
    "script",
    [
        cut_the_body,
        cut_the_chunks,
        break_the_chunks,
        reset_in_the_body,
        hang_in_the_body,
        declare_too_much,
        send_too_much,
        send_broken_gzip,
        send_cut_gzip,
        send_gzip_in_gzip,
    ],
)
async def test_a_body_that_does_not_come_whole_is_unknown(script: Script) -> None:
    async with raw_server(script) as server, upstream_at(server.url, read=0.3, total=5.0) as upstream:
        outcome = await order_from(upstream)

    assert isinstance(outcome, Unknown), outcome
    # A break can overtake the status line on its way.
    assert outcome.upstream_status in (200, None)
    assert len(server.requests) == 1


async def test_the_status_of_a_cut_body_is_told() -> None:
    async with raw_server(cut_the_body) as server, upstream_at(server.url) as upstream:
        outcome = await order_from(upstream)

    assert outcome == Unknown("HTTP 200 from upstream, whose body did not come: ReadError (ClientPayloadError)", 200)


async def test_a_body_that_drips_is_unknown_once_the_total_is_over() -> None:
    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        while True:
            await connection.send(b" ")
            await asyncio.sleep(0.05)

    async with raw_server(script) as server, upstream_at(server.url, read=5.0, total=0.4) as upstream:
        async with asyncio.timeout(3):
            outcome = await order_from(upstream)

    assert outcome == Unknown("No whole answer from upstream within 0.4 s", None)


async def test_a_gzip_bomb_is_unknown_and_never_unfolds() -> None:
    bomb = gzip.compress(bytes(256 * 1024 * 1024), compresslevel=1)

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", bomb, "Content-Encoding: gzip")

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        tracemalloc.start()
        outcome = await order_from(upstream)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert isinstance(outcome, Unknown)
    assert peak_bytes < 40 * 1024 * 1024


async def test_an_answer_that_a_proxy_compressed_all_the_same_is_read() -> None:
    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", gzip.compress(SUCCESS), "Content-Encoding: gzip")

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        assert isinstance(await order_from(upstream), Generated)


async def test_a_large_picture_in_base64_comes_whole() -> None:
    picture = bytes(range(256)) * 12_000
    body = json.dumps({"created": 1, "data": [{"b64_json": base64.b64encode(picture).decode()}]}).encode()

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", body)

    async with (
        raw_server(script) as server,
        upstream_at(server.url, answer_bytes_max=len(body)) as upstream,
    ):
        outcome = await order_from(upstream)

    assert outcome == Generated((BytesSource(picture, None),), 200)


@pytest.mark.parametrize(("status", "body"), [("401 Unauthorized", b""), ("400 Bad Request", b"<html>")])
async def test_a_refusal_is_told_with_its_status(status: str, body: bytes) -> None:
    async def script(connection: Connection) -> None:
        await connection.answer(status, body)

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        outcome = await order_from(upstream)

    assert isinstance(outcome, Refused)
    assert outcome.upstream_status == int(status[:3])


async def test_cancelling_passes_through() -> None:
    arrived = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.read_request()
        arrived.set()
        await connection.hang()

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        order = asyncio.create_task(order_from(upstream))
        await arrived.wait()
        order.cancel()
        with pytest.raises(asyncio.CancelledError):
            await order


async def test_closing_during_an_order_leaves_it_unknown() -> None:
    arrived = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.read_request()
        arrived.set()
        await connection.hang()

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        order = asyncio.create_task(order_from(upstream))
        await arrived.wait()
        await upstream.close()

        assert isinstance(await order, Unknown)
