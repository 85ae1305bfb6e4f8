"""Is an order one request to one origin, on a connection of its own, with nothing in it that isn't documented?"""

import asyncio
import json
from dataclasses import replace

import pytest

from app.upstream.catalog import load_catalog
from app.upstream.client import Upstream
from app.upstream.outcome import Generated, Unknown, UrlSource
from tests.upstream.orders import KEY, MODEL, PROMPT, SUCCESS, order_from, upstream_at
from tests.upstream.raw_server import Connection, raw_server

pytestmark = pytest.mark.anyio


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


async def test_a_gpt_image_order_goes_to_the_newer_route_and_names_no_form_of_answer() -> None:
    model = load_catalog(None).find("gpt-image-2")
    assert model is not None

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", SUCCESS, "Content-Type: application/json")

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        await upstream.generate(model=model, prompt=PROMPT, size="auto", quality="high", n=2)

    (request,) = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/images/generations HTTP/1.1\r\n")
    assert json.loads(body) == {"prompt": PROMPT, "size": "auto", "model": "gpt-image-2", "n": 2, "quality": "high"}


async def test_a_route_is_sent_no_field_that_the_catalog_does_not_name() -> None:
    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", SUCCESS, "Content-Type: application/json")

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        narrow = replace(MODEL, fields=("prompt", "model"))
        await upstream.generate(model=narrow, prompt=PROMPT, size="1024x1024", quality="hd", n=1)

    assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2]) == {"prompt": PROMPT, "model": "dall-e-3"}


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
