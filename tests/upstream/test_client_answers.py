"""Is an order that was sent unknown unless a whole answer came, however the answer fails?"""

import asyncio
import base64
import gc
import gzip
import json
import time
import tracemalloc

import pytest

from app.upstream.outcome import BytesSource, Generated, Refused, Unknown
from tests.upstream.orders import ORDER, SUCCESS, order_from, upstream_at
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


@pytest.mark.parametrize(
    "stray",
    [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 429 Too Many\r\nConnection: close\r\n\r\n"],
    ids=["400", "429"],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["of a length", "chunked"])
async def test_an_answer_that_nobody_asked_for_does_not_take_the_place_of_the_first(
    stray: bytes, chunked: bool
) -> None:
    body = json.dumps(SUCCESS).encode() if not isinstance(SUCCESS, bytes) else SUCCESS
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body

    async def script(connection: Connection) -> None:
        await connection.read_request()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%b\r\n\r\n" % length
        await connection.send(head + sent + stray)

    async with raw_server(script) as server, upstream_at(f"http://127.0.0.1:{server.port}") as upstream:
        outcome = await order_from(upstream)

    assert isinstance(outcome, Generated)


async def test_the_status_of_a_cut_body_is_told() -> None:
    async with raw_server(cut_the_body) as server, upstream_at(server.url) as upstream:
        outcome = await order_from(upstream)

    assert outcome == Unknown("HTTP 200 from upstream, whose body did not come: ReadError (closed)", 200)


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


# Between two pieces that drip; no silence is as long as the one that is waited for.
PAUSE_SECONDS = 0.1
READ_SECONDS = 0.5


async def drip(connection: Connection, pieces: int, of: int) -> None:
    """Send as many pieces of a good answer as are asked for, `of` so many, with a pause after each."""
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(SUCCESS))
    size = -(-len(SUCCESS) // of)
    for number in range(pieces):
        await connection.send(SUCCESS[number * size : (number + 1) * size])
        await asyncio.sleep(PAUSE_SECONDS)


async def test_a_body_that_comes_slowly_is_read_however_long_it_takes_in_all() -> None:
    async def script(connection: Connection) -> None:
        await drip(connection, 12, of=12)

    async with raw_server(script) as server, upstream_at(server.url, read=READ_SECONDS) as upstream:
        began = time.monotonic()
        outcome = await order_from(upstream)

    assert isinstance(outcome, Generated)
    assert time.monotonic() - began > 2 * READ_SECONDS


async def test_a_body_that_stops_coming_is_unknown_once_the_silence_has_lasted() -> None:
    async def script(connection: Connection) -> None:
        await drip(connection, 3, of=12)
        await connection.hang()

    async with raw_server(script) as server, upstream_at(server.url, read=READ_SECONDS) as upstream:
        began = time.monotonic()
        outcome = await order_from(upstream)

    assert outcome == Unknown("HTTP 200 from upstream, whose body did not come: ReadTimeout (TimeoutError)", 200)
    # After the last piece, not after the first; and not after two such silences.
    assert 2 * PAUSE_SECONDS + READ_SECONDS <= time.monotonic() - began < 2 * PAUSE_SECONDS + 2 * READ_SECONDS


async def test_a_length_with_a_blank_behind_it_is_too_large_as_without() -> None:
    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 300000000 \r\n\r\n" + b" " * 1000)
        await connection.hang()

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        tracemalloc.start()
        outcome = await order_from(upstream)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert isinstance(outcome, Unknown)
    assert "larger than an answer may be" in outcome.detail
    assert peak_bytes < 1024 * 1024


async def test_nothing_of_an_answer_is_kept_when_its_picture_is_let_go_of() -> None:
    body = json.dumps({"data": [{"b64_json": base64.b64encode(bytes(600_000)).decode()}]}).encode()

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", body)

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(5):
                assert isinstance(await upstream.generate(**ORDER), Generated)
            # The thread that read the answer has handed it over before it lets go of it itself.
            async with asyncio.timeout(10):
                while tracemalloc.get_traced_memory()[0] >= len(body):
                    await asyncio.sleep(0.01)
        finally:
            tracemalloc.stop()
            gc.enable()


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
