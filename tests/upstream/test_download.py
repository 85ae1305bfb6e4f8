"""Are a picture's bytes fetched whole, and nothing ever from an address inside?"""

import asyncio
import gzip
import ssl
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest

from app.upstream.download import (
    Downloader,
    DownloadError,
    Resolve,
    SourceForbidden,
    SourceTooLarge,
    SourceUnavailable,
    resolve_host,
)
from app.upstream.wire import Wire
from tests.upstream.raw_server import Connection, Script, raw_server
from tests.upstream.url_corpus import NOT_PUBLIC, ODD_HOSTS, ODD_URLS

pytestmark = pytest.mark.anyio

PICTURE = b"\x89PNG and so on" * 1_000
PUBLIC_V4, OTHER_V4, PUBLIC_V6 = "93.184.215.14", "93.184.215.15", "2606:4700:4700::1111"


class Internet(httpx.AsyncBaseTransport):
    """Carries what is addressed to a public address to a port of this machine, and changes nothing else."""

    def __init__(self, ports: Mapping[str, int], ssl_context: ssl.SSLContext | None = None) -> None:
        self._ports, self._wire = ports, Wire(ssl_context)
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        address = f"{request.url.host}:{request.url.port or 443}"
        self.asked.append(address)
        request.url = request.url.copy_with(host="127.0.0.1", port=self._ports[address])
        return await self._wire.handle_async_request(request)

    async def aclose(self) -> None:
        await self._wire.aclose()


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
    transport: httpx.AsyncBaseTransport | None = None,
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
        "Connection: close",
        f"Host: 127.0.0.1:{server.port}",
        "User-Agent: imagekeep",
    ]


async def test_localhost_is_fetched_where_loopback_is_allowed() -> None:
    async with (
        raw_server(serve_picture) as server,
        downloader(resolve=names({"localhost": ["127.0.0.1"]})) as opened,
    ):
        assert await opened.fetch(f"http://localhost:{server.port}/a.png") == PICTURE


async def test_localhost_that_leads_elsewhere_is_refused() -> None:
    internet = Internet({})
    async with downloader(resolve=names({"localhost": [PUBLIC_V4]}), transport=internet) as opened:
        assert isinstance(await failure_of(opened, "http://localhost/a.png"), SourceForbidden)
    assert internet.asked == []


async def test_tls_goes_to_the_checked_address_under_the_name(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    asked_names: list[str | None] = []
    server_tls.sni_callback = lambda _, name, __: asked_names.append(name)
    async with raw_server(serve_picture, tls=server_tls) as server:
        internet = Internet({f"{PUBLIC_V4}:443": server.port}, client_tls)
        resolve = names({"pictures.example": [PUBLIC_V4]})
        async with downloader(loopback=False, resolve=resolve, transport=internet) as opened:
            picture = await opened.fetch("https://pictures.example/a.png?sig=x")

    assert picture == PICTURE
    assert internet.asked == [f"{PUBLIC_V4}:443"]
    assert asked_names == ["pictures.example"]
    assert server.requests[0].startswith(b"GET /a.png?sig=x HTTP/1.1\r\nHost: pictures.example\r\n")


async def test_a_certificate_for_another_name_is_not_believed(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with raw_server(serve_picture, tls=server_tls) as server:
        internet = Internet({f"{PUBLIC_V4}:443": server.port}, client_tls)
        resolve = names({"other.example": [PUBLIC_V4]})
        async with downloader(loopback=False, resolve=resolve, transport=internet) as opened:
            failure = await failure_of(opened, "https://other.example/a.png")

    assert isinstance(failure, SourceUnavailable)
    assert server.requests == []


async def test_a_name_is_looked_up_once_so_that_a_second_answer_changes_nothing(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    answers = [[PUBLIC_V4], ["127.0.0.1"]]

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    async with raw_server(serve_picture, tls=server_tls) as server:
        internet = Internet({f"{PUBLIC_V4}:443": server.port}, client_tls)
        async with downloader(loopback=False, resolve=rebinding, transport=internet) as opened:
            assert await opened.fetch("https://pictures.example/a.png") == PICTURE
            assert len(answers) == 1
            assert isinstance(await failure_of(opened, "https://pictures.example/a.png"), SourceForbidden)

    assert internet.asked == [f"{PUBLIC_V4}:443"]


async def test_the_next_address_is_tried_when_one_does_not_connect(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, refused_port: int
) -> None:
    async with raw_server(serve_picture, tls=server_tls) as server:
        internet = Internet({f"{PUBLIC_V6}:443": refused_port, f"{PUBLIC_V4}:443": server.port}, client_tls)
        resolve = names({"pictures.example": [PUBLIC_V6, PUBLIC_V4]})
        async with downloader(loopback=False, resolve=resolve, transport=internet) as opened:
            assert await opened.fetch("https://pictures.example/a.png") == PICTURE

    assert internet.asked == [f"{PUBLIC_V6}:443", f"{PUBLIC_V4}:443"]


@pytest.mark.parametrize("bad", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "64:ff9b::7f00:1"])
async def test_one_inside_address_among_public_ones_is_enough_to_refuse(bad: str) -> None:
    for answer in ([PUBLIC_V4, bad], [bad, PUBLIC_V4], [PUBLIC_V6, PUBLIC_V4, bad]):
        internet = Internet({})
        resolve = names({"pictures.example": answer})
        async with downloader(loopback=False, resolve=resolve, transport=internet) as opened:
            assert isinstance(await failure_of(opened, "https://pictures.example/a.png"), SourceForbidden)
        assert internet.asked == []


async def test_no_address_inside_is_ever_connected_to_whatever_its_spelling() -> None:
    literals = [f"[{address}]" if ":" in address else address for address in NOT_PUBLIC]
    hosts = [*literals, *ODD_HOSTS, "localhost", "LOCALHOST"]
    urls = [*(f"https://{host}/a.png" for host in hosts), *ODD_URLS]
    internet = Internet({})
    async with downloader(loopback=False, transport=internet) as opened:
        failures = {url: await failure_of(opened, url) for url in urls}

    assert len(urls) > 140
    assert [url for url, failure in failures.items() if not isinstance(failure, SourceForbidden)] == []
    assert internet.asked == []


async def test_a_name_that_leads_inside_is_refused_for_every_such_address() -> None:
    internet = Internet({})
    for address in NOT_PUBLIC:
        resolve = names({"pictures.example": [address]})
        async with downloader(loopback=True, resolve=resolve, transport=internet) as opened:
            assert isinstance(await failure_of(opened, "https://pictures.example/a.png"), SourceForbidden)
    assert internet.asked == []


async def test_a_listening_server_sees_no_connection_from_an_odd_spelling_of_its_address() -> None:
    async with raw_server(serve_picture) as server, downloader(loopback=True) as opened:
        for host in (*ODD_HOSTS, "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0.0.0.0", "[::]"):
            for scheme in ("http", "https"):
                failure = await failure_of(opened, f"{scheme}://{host}:{server.port}/a.png")
                # A mapped address counts as loopback from Python 3.13 on; nothing listens on it here.
                assert isinstance(failure, SourceForbidden) or "ffff" in host
        assert server.connections == 0

        assert await opened.fetch(f"{server.url}/a.png") == PICTURE
        assert server.connections == 1


async def test_three_redirects_are_followed_and_a_fourth_is_not() -> None:
    async def script(connection: Connection) -> None:
        left = int((await connection.read_request()).split(b" ")[1].removeprefix(b"/"))
        answer = (
            b"HTTP/1.1 302 Found\r\nLocation: /%d\r\nSet-Cookie: a=b\r\n" % (left - 1)
            if left
            else b"HTTP/1.1 200 OK\r\n"
        )
        await connection.send(answer + b"Content-Length: 2\r\n\r\nok")

    async with raw_server(script) as server, downloader() as opened:
        assert await opened.fetch(f"{server.url}/3") == b"ok"
        assert len(server.requests) == 4
        assert isinstance(await failure_of(opened, f"{server.url}/4"), SourceUnavailable)

    assert len(server.requests) == 8
    assert not any(word in request.lower() for request in server.requests for word in (b"cookie", b"referer"))


@pytest.mark.parametrize(
    "location",
    [
        "https://10.0.0.1/a.png",
        "https://169.254.169.254/latest/meta-data/",
        "http://169.254.169.254/latest/meta-data/",
        "//10.0.0.1/a.png",
        "https://0x7f.1/",
        "https://user@pictures.example/",
        "https://pictures.example:8443/",
        "http://pictures.example/",
        "file:///etc/passwd",
        "ht\ttp://10.0.0.1/",
        "https://[pictures",
    ],
)
async def test_a_redirect_is_checked_like_the_first_url(location: str) -> None:
    async def script(connection: Connection) -> None:
        await connection.answer("302 Found", b"", f"Location: {location}")

    async with raw_server(script) as server, downloader() as opened:
        assert isinstance(await failure_of(opened, f"{server.url}/a.png"), SourceForbidden)
    assert server.connections == 1


async def test_a_public_host_may_not_point_to_this_machine_even_where_loopback_is_allowed(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with raw_server(serve_picture) as inside:

        async def script(connection: Connection) -> None:
            await connection.answer("302 Found", b"", f"Location: {inside.url}/a.png")

        async with raw_server(script, tls=server_tls) as server:
            internet = Internet({f"{PUBLIC_V4}:443": server.port}, client_tls)
            resolve = names({"pictures.example": [PUBLIC_V4]})
            async with downloader(resolve=resolve, transport=internet) as opened:
                assert isinstance(await failure_of(opened, "https://pictures.example/"), SourceForbidden)
    assert inside.connections == 0


async def test_a_redirect_to_another_public_host_is_resolved_and_followed(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def script(connection: Connection) -> None:
        request = await connection.read_request()
        location = b"" if b"/cdn/" in request else b"Location: https://pictures.example/cdn/b.png\r\n"
        status = b"302 Found" if location else b"200 OK"
        await connection.send(b"HTTP/1.1 " + status + b"\r\n" + location + b"Content-Length: 2\r\n\r\nok")

    answers = [[PUBLIC_V4], [OTHER_V4]]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    async with raw_server(script, tls=server_tls) as server:
        internet = Internet({f"{PUBLIC_V4}:443": server.port, f"{OTHER_V4}:443": server.port}, client_tls)
        async with downloader(loopback=False, resolve=resolve, transport=internet) as opened:
            assert await opened.fetch("https://pictures.example/a.png") == b"ok"

    assert internet.asked == [f"{PUBLIC_V4}:443", f"{OTHER_V4}:443"]


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
