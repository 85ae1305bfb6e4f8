"""Is every way a paid order can end told as not billed only where it surely was not?"""

import asyncio
import base64
import gzip
import json
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from app.upstream.catalog import load_catalog
from app.upstream.client import Upstream
from app.upstream.outcome import BytesSource, Generated, Outcome, Refused, Unknown, UrlSource
from app.upstream.wire import Wire
from tests.upstream.raw_server import Connection, Script, raw_server

pytestmark = pytest.mark.anyio

KEY = "tt-canary-key-5d1e"
PROMPT = "a canary in a coal mine — 🐤"
MODEL = load_catalog(None).models[0]
PICTURE = b"\x89PNG and so on"
SUCCESS = json.dumps(
    {
        "status": "SUCCESS",
        "message": "success",
        "data": {"created": 1, "data": [{"revised_prompt": "a bird", "url": "https://pictures.example/a.png?sig=x"}]},
    }
).encode()


@asynccontextmanager
async def upstream_at(
    base_url: str,
    *,
    connect: float = 5.0,
    read: float = 5.0,
    total: float = 10.0,
    answer_bytes_max: int = 1024 * 1024,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Upstream]:
    upstream = Upstream(
        base_url=base_url,
        api_key=KEY,
        connect_timeout_seconds=connect,
        read_timeout_seconds=read,
        total_timeout_seconds=total,
        answer_bytes_per_image_max=answer_bytes_max,
        transport=transport,
    )
    try:
        yield upstream
    finally:
        await upstream.close()


async def order_from(upstream: Upstream) -> Outcome:
    outcome = await upstream.generate(model=MODEL, prompt=PROMPT, size="1792x1024", quality="hd", n=1)
    for secret in (KEY, PROMPT, "sig=x"):
        assert secret not in repr(outcome)
        assert secret not in repr(upstream)
    return outcome


def assert_never_sent(outcome: Outcome) -> None:
    assert isinstance(outcome, Refused), outcome
    assert (outcome.code, outcome.upstream_status) == ("upstream_unreachable", None)


async def test_an_order_is_one_request_with_the_documented_fields_and_no_more() -> None:
    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", SUCCESS, "Content-Type: application/json")

    async with raw_server(script) as server, upstream_at(server.url + "/") as upstream:
        outcome = await order_from(upstream)

    assert outcome == Generated((UrlSource("https://pictures.example/a.png?sig=x", None, "a bird"),), 200)
    (request,) = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    request_line, *header_lines = head.decode().split("\r\n")
    headers = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in header_lines}
    assert request_line == "POST /openai/v1/images/generations HTTP/1.1"
    assert len(headers) == len(header_lines)
    assert headers == {
        "host": f"127.0.0.1:{server.port}",
        "tt-api-key": KEY,
        "accept": "application/json",
        "accept-encoding": "identity",
        "connection": "close",
        "user-agent": "imagekeep",
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    assert json.loads(body) == {"prompt": PROMPT, "size": "1792x1024", "model": "dall-e-3", "n": 1, "quality": "hd"}


async def test_a_cookie_is_not_kept_and_each_order_has_a_connection_of_its_own() -> None:
    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", SUCCESS, "Set-Cookie: a=b; Path=/", "Connection: keep-alive")
        await connection.hang()

    # By name: cookies of a bare address would not be kept by anyone.
    async with raw_server(script) as server, upstream_at(f"http://localhost:{server.port}") as upstream:
        await order_from(upstream)
        await order_from(upstream)

    assert server.connections == 2
    assert not any(b"cookie" in request.lower() for request in server.requests)


async def test_a_redirect_is_unknown_and_the_key_goes_to_one_origin_only() -> None:
    async def elsewhere(connection: Connection) -> None:
        await connection.answer("200 OK", SUCCESS)

    async with raw_server(elsewhere) as other:

        async def script(connection: Connection) -> None:
            await connection.answer(
                "307 Temporary Redirect", b"", f"Location: {other.url}/openai/v1/images/generations"
            )

        async with raw_server(script) as server, upstream_at(server.url) as upstream:
            outcome = await order_from(upstream)

    assert isinstance(outcome, Unknown)
    assert outcome.upstream_status == 307
    assert other.connections == 0


async def test_a_refused_connection_was_never_sent(refused_port: int) -> None:
    async with upstream_at(f"http://127.0.0.1:{refused_port}") as upstream:
        assert_never_sent(await order_from(upstream))


async def test_a_connect_that_hangs_was_never_sent(blackhole_port: int) -> None:
    async with upstream_at(f"http://127.0.0.1:{blackhole_port}", connect=0.2) as upstream:
        assert_never_sent(await order_from(upstream))


async def test_a_name_that_does_not_resolve_was_never_sent() -> None:
    async with upstream_at("http://nowhere.invalid", connect=2.0) as upstream:
        assert_never_sent(await order_from(upstream))


async def test_a_plain_server_spoken_to_with_tls_was_never_sent() -> None:
    async def script(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with raw_server(script) as server, upstream_at(f"https://127.0.0.1:{server.port}") as upstream:
        assert_never_sent(await order_from(upstream))


async def test_a_server_that_closes_in_the_tls_handshake_was_never_sent() -> None:
    async def script(connection: Connection) -> None:
        connection.reset()

    async with raw_server(script) as server, upstream_at(f"https://127.0.0.1:{server.port}") as upstream:
        assert_never_sent(await order_from(upstream))


async def test_a_tls_handshake_that_hangs_was_never_sent() -> None:
    async with (
        raw_server(Connection.hang) as server,
        upstream_at(f"https://127.0.0.1:{server.port}", connect=0.2) as upstream,
    ):
        assert_never_sent(await order_from(upstream))


async def test_a_certificate_nobody_vouches_for_was_never_sent(server_tls: ssl.SSLContext) -> None:
    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", SUCCESS)

    async with (
        raw_server(script, tls=server_tls) as server,
        upstream_at(f"https://127.0.0.1:{server.port}") as upstream,
    ):
        assert_never_sent(await order_from(upstream))
    assert server.requests == []


async def test_a_certificate_for_another_name_was_never_sent(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", SUCCESS)

    async with (
        raw_server(script, tls=server_tls) as server,
        upstream_at(f"https://localhost:{server.port}", transport=Wire(client_tls)) as upstream,
    ):
        assert_never_sent(await order_from(upstream))
    assert server.requests == []


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


async def test_many_orders_run_side_by_side() -> None:
    everyone_is_here = asyncio.Barrier(100)

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await everyone_is_here.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(SUCCESS), SUCCESS))

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        outcomes = await asyncio.gather(*(order_from(upstream) for _ in range(100)))

    assert all(isinstance(outcome, Generated) for outcome in outcomes)
    assert server.connections == 100


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_fits_no_header_is_refused_at_the_start_and_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="TT API key") as refusal:
        Upstream(
            base_url="https://api.ttapi.io",
            api_key=key,
            connect_timeout_seconds=1,
            read_timeout_seconds=1,
            total_timeout_seconds=1,
        )
    assert not key or key not in str(refusal.value)


@pytest.mark.parametrize(
    "base_url",
    [
        "api.ttapi.io",
        "ftp://a",
        "https://",
        "https://u:p@a",
        "https://a/?b=c",
        "https://a/#b",
        "https://[",
        "https://a:99999",
        "https://a b",
        "https://a\\b",
    ],
)
def test_a_base_url_that_is_no_origin_is_refused_at_the_start(base_url: str) -> None:
    with pytest.raises(ValueError, match="base URL"):
        Upstream(
            base_url=base_url,
            api_key=KEY,
            connect_timeout_seconds=1,
            read_timeout_seconds=1,
            total_timeout_seconds=1,
        )
