"""Is a picture fetched only from an address that was checked, under its name, through every redirect?"""

import ssl
from collections.abc import Sequence

import pytest

from app.upstream.download import SourceForbidden, SourceUnavailable
from tests.upstream.internet import (
    OTHER_V4,
    PICTURE,
    PUBLIC_V4,
    PUBLIC_V6,
    Internet,
    downloader,
    failure_of,
    names,
    serve_picture,
)
from tests.upstream.raw_server import Connection, raw_server
from tests.upstream.url_corpus import NOT_PUBLIC, ODD_HOSTS, ODD_URLS

pytestmark = pytest.mark.anyio


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
