"""Is no socket ever opened to an address inside, whatever URL, redirect or resolver leads there?

The downloader is the product's own, transport and all; what it connects to is seen where the system is asked.
"""

import asyncio
import ssl
from collections.abc import Sequence

import pytest

from app.upstream.download import SourceForbidden, SourceUnavailable
from tests.upstream.connections import seen_connections
from tests.upstream.internet import (
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


def in_a_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


FORBIDDEN_URLS = (
    *(f"https://{in_a_url(address)}/a.png" for address in NOT_PUBLIC),
    *(f"https://{host}/a.png" for host in ODD_HOSTS),
    *ODD_URLS,
    "https://localhost/a.png",
    "https://LOCALHOST/a.png",
    "https://ip6-localhost/a.png",
)


async def test_a_connection_that_is_allowed_is_seen() -> None:
    async with raw_server(serve_picture) as server, downloader() as opened:
        with seen_connections() as seen:
            assert await opened.fetch(f"{server.url}/a.png") == PICTURE

    assert seen.connected == [("127.0.0.1", server.port)]


async def test_no_socket_is_opened_for_any_url_that_is_forbidden() -> None:
    assert len(FORBIDDEN_URLS) >= 300
    async with downloader(loopback=False) as opened:
        with seen_connections() as seen:
            failures = {url: await failure_of(opened, url) for url in FORBIDDEN_URLS}

    reached = [url for url, failure in failures.items() if not isinstance(failure, SourceForbidden)]
    # A machine whose resolver does not know this name has nothing to refuse.
    assert reached in ([], ["https://ip6-localhost/a.png"])
    assert seen.connected == []
    # An odd spelling is refused before a resolver could read it in its own way.
    assert set(seen.looked_up) <= {"localhost", "ip6-localhost"}


async def test_no_socket_is_opened_for_a_name_that_leads_inside() -> None:
    with seen_connections() as seen:
        for address in NOT_PUBLIC:
            for answer in ([address], [PUBLIC_V4, address], [address, PUBLIC_V6], [PUBLIC_V6, PUBLIC_V4, address]):
                resolve = names({"pictures.example": answer})
                async with downloader(loopback=True, resolve=resolve) as opened:
                    failure = await failure_of(opened, "https://pictures.example/a.png?sig=canary")
                assert isinstance(failure, SourceForbidden)
                # The next answer of the resolver may be right, and the picture is paid.
                assert failure.retryable
                assert "canary" not in str(failure)

    assert (seen.connected, seen.looked_up) == ([], [])


async def test_an_inside_address_behind_many_public_ones_is_seen_too() -> None:
    answer = [*(f"93.184.215.{number}" for number in range(1, 200)), "10.0.0.1"]
    async with downloader(loopback=False, resolve=names({"pictures.example": answer})) as opened:
        with seen_connections() as seen:
            assert isinstance(await failure_of(opened, "https://pictures.example/a.png"), SourceForbidden)

    assert seen.connected == []


async def test_what_was_checked_is_connected_to_and_not_what_the_name_says_next() -> None:
    """Two servers on one port: the resolver's answer leads to one, a second look-up of the name to the other."""

    async def checked(connection: Connection) -> None:
        await connection.answer("200 OK", b"checked")

    async with (
        raw_server(serve_picture) as second,
        raw_server(checked, at=("127.0.0.2", second.port)) as first,
        downloader(resolve=names({"localhost": ["127.0.0.2"]})) as opened,
    ):
        with seen_connections() as seen:
            assert await opened.fetch(f"http://localhost:{second.port}/a.png") == b"checked"

    assert seen.connected == [("127.0.0.2", second.port)]
    assert (first.connections, second.connections) == (1, 0)
    assert f"Host: localhost:{second.port}".encode() in first.requests[0]


async def test_a_name_that_changes_its_answer_is_refused_on_the_hop_where_it_does(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """As a rebinding name server does: right for the first look-up, inside for the one after the redirect."""

    async def back_to_itself(connection: Connection) -> None:
        await connection.answer("302 Found", b"", "Location: https://pictures.example/b.png")

    for inside in ("127.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254"):
        answers: list[Sequence[str]] = [[PUBLIC_V4], [PUBLIC_V4, inside]]

        async def resolve(host: str, port: int, answers: list[Sequence[str]] = answers) -> Sequence[str]:
            return answers.pop(0)

        async with raw_server(back_to_itself, tls=server_tls) as server:
            internet = Internet({f"{PUBLIC_V4}:443": server.port}, client_tls)
            async with downloader(loopback=False, resolve=resolve, transport=internet) as opened:
                with seen_connections() as seen:
                    failure = await failure_of(opened, "https://pictures.example/a.png")

        assert isinstance(failure, SourceForbidden)
        assert internet.asked == [f"{PUBLIC_V4}:443"]
        assert seen.connected == [("127.0.0.1", server.port)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_leads_inside(status: int) -> None:
    # A fifth of them for each status; `http` to this machine is this server's own right here, and tested elsewhere.
    locations = [url for url in FORBIDDEN_URLS if leaves_the_host(url) and "http://" not in url][status % 5 :: 5]
    assert len(locations) >= 45
    left = iter(locations)

    async def script(connection: Connection) -> None:
        location = next(left).encode()
        await connection.read_request()
        await connection.send(b"HTTP/1.1 %d Moved\r\nContent-Length: 0\r\nLocation: %b\r\n\r\n" % (status, location))

    resolve = names({"localhost": ["127.0.0.1"], "ip6-localhost": ["::1"]})
    async with raw_server(script) as server, downloader(loopback=True, resolve=resolve) as opened:
        with seen_connections() as seen:
            failures = {location: await failure_of(opened, f"{server.url}/a.png") for location in locations}

    assert {location: told for location, told in failures.items() if not isinstance(told, SourceForbidden)} == {}
    # One connection for each first URL, and none after.
    assert seen.connected == [("127.0.0.1", server.port)] * len(locations)


def leaves_the_host(url: str) -> bool:
    """Whether a Location of this text, which a server can send as it is, leads away from the host that sent it."""
    sendable = url.isascii() and url.isprintable() and url.strip() == url and len(url) < 8_000
    return sendable and url.lower().startswith(("https://", "http://", "ftp://", "file:", "data:", "ldap:", "ws"))


async def test_a_redirect_may_be_relative_and_stays_where_it_is(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    moves = {
        b"/a/b.png": b"c.png?x=1",
        b"/a/c.png?x=1": b"../d.png",
        b"/d.png": b"//pictures.example/e.png",
        b"/e.png": b"",
    }

    async def script(connection: Connection) -> None:
        target = (await connection.read_request()).split(b" ")[1]
        head = b"302 Found\r\nLocation: " + moves[target] if moves[target] else b"200 OK"
        await connection.send(b"HTTP/1.1 " + head + b"\r\nContent-Length: 2\r\n\r\nok")

    async with raw_server(script, tls=server_tls) as server:
        internet = Internet({f"{PUBLIC_V4}:443": server.port}, client_tls)
        resolve = names({"pictures.example": [PUBLIC_V4]})
        async with downloader(loopback=False, resolve=resolve, transport=internet) as opened:
            assert await opened.fetch("https://pictures.example/a/b.png") == b"ok"

    assert internet.asked == [f"{PUBLIC_V4}:443"] * 4


async def test_a_redirect_that_never_ends_is_left_after_the_third() -> None:
    async def to_itself(connection: Connection) -> None:
        await connection.answer("307 Temporary Redirect", b"", "Location: /a.png")

    async with raw_server(to_itself) as server, downloader() as opened:
        failure = await failure_of(opened, f"{server.url}/a.png")

    assert isinstance(failure, SourceUnavailable)
    assert server.connections == 4


async def test_a_resolver_that_never_answers_is_left_in_time() -> None:
    asked = asyncio.Event()

    async def never(host: str, port: int) -> Sequence[str]:
        asked.set()
        await asyncio.Event().wait()
        return [PUBLIC_V4]

    async with downloader(loopback=False, timeout_seconds=0.1, resolve=never) as opened:
        with seen_connections() as seen:
            failure = await failure_of(opened, "https://pictures.example/a.png")

    assert asked.is_set()
    assert isinstance(failure, SourceUnavailable)
    assert failure.retryable
    assert seen.connected == []


@pytest.mark.parametrize("answer", [[""], ["pictures.example"], ["127.1"], ["93.184.215.14 "], ["93.184.215.014"]])
async def test_an_answer_that_is_no_address_is_no_answer(answer: list[str]) -> None:
    async with downloader(loopback=False, resolve=names({"pictures.example": answer})) as opened:
        with seen_connections() as seen:
            failure = await failure_of(opened, "https://pictures.example/a.png")

    assert isinstance(failure, SourceUnavailable)
    assert seen.connected == []
