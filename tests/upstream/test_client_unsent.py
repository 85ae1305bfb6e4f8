"""Is an order that surely never reached upstream told as just that, and so as not billed?"""

import ssl

import pytest

from app.upstream.outcome import Outcome, Refused
from app.upstream.wire import Wire
from tests.upstream.orders import SUCCESS, order_from, upstream_at
from tests.upstream.raw_server import Connection, raw_server

pytestmark = pytest.mark.anyio


def assert_never_sent(outcome: Outcome) -> None:
    assert isinstance(outcome, Refused), outcome
    assert (outcome.code, outcome.upstream_status) == ("upstream_unreachable", None)


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
