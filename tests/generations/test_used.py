"""Is what upstream says it used settled, also when its answer and its charge are by two different processes?"""

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.accounts import budgets
from app.generations.driver import Driver
from app.generations.leases import Leases
from app.generations.order import Order, check
from app.generations.records import Generation, Held, Move
from app.generations.rehost import Rehost
from app.upstream.breaker import Breaker
from app.upstream.catalog import load_catalog
from app.upstream.download import Downloader
from app.upstream.room import Room
from tests.generations.parts import Parts
from tests.makers import reserve
from tests.sandbox_server import API_KEY, RunningSandbox
from tests.upstream.orders import upstream_at
from tests.upstream.raw_server import Connection, raw_server

pytestmark = pytest.mark.anyio

CATALOG = load_catalog(None)
# The picture, and the prompt: a token for each of its five letters, and sixteen that may stand around it.
HELD_MICROS = 52_680 + (5 + 16) * 5


async def reserved(parts: Parts, model: str, *, n: int = 1) -> Generation:
    """An order for pictures of a model, of the usual size and quality."""
    order = check(Order("a cat", model=model, n=n), CATALOG)
    async with parts.database.statement() as connection:
        held = await reserve(connection, parts.caller, order, lease_seconds=60)
    assert isinstance(held, Held)
    return held.generation


def picture_url(sandbox: RunningSandbox) -> str:
    """Where a picture of the sandbox waits."""
    order = {"prompt": "a cat", "size": "1024x1024"}
    reply = httpx.post(f"{sandbox.url}/openai/v1/images/generations", json=order, headers={"TT-API-KEY": API_KEY})
    url: str = reply.json()["data"]["data"][0]["url"]
    return url


def picture_in_base64(sandbox: RunningSandbox) -> str:
    return b64encode(httpx.get(picture_url(sandbox)).content).decode()


@asynccontextmanager
async def driver_whose_upstream_says(parts: Parts, answer: dict[str, Any]) -> AsyncIterator[Driver]:
    body = json.dumps(answer).encode()

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", body, "Content-Type: application/json")

    downloader = Downloader(allow_loopback_http=True, timeout_seconds=5)
    rehost = Rehost(
        downloader=downloader,
        stores=parts.stores,
        room=Room(bytes_max=10**7),
        pixels_max=10**8,
        in_flight_max=4,
        threads_max=2,
    )
    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        yield Driver(
            database=parts.database,
            upstream=upstream,
            breaker=Breaker(open_seconds=0),
            catalog=CATALOG,
            rehost=rehost,
            leases=Leases(pending_seconds=20, generated_seconds=20, source_lifetime_seconds=3600),
        )
    await rehost.close()
    await downloader.close()


@pytest.mark.parametrize(
    ("usage", "used_micros", "settled_micros"),
    [
        ({"input_tokens": 9, "output_tokens": 1_000}, 30_045, 30_045),
        ({"input_tokens": 9, "output_tokens": 10**25}, HELD_MICROS, HELD_MICROS),
        ({"input_tokens": -(10**9), "output_tokens": 1_000}, None, HELD_MICROS),
        ({"total_tokens": 1_000}, None, HELD_MICROS),
        (None, None, HELD_MICROS),
    ],
    ids=["less", "absurd", "negative", "not told", "no usage"],
)
async def test_what_was_used_is_settled_up_to_what_was_held(
    parts: Parts, sandbox: RunningSandbox, usage: Any, used_micros: int | None, settled_micros: int
) -> None:
    answer = {"created": 1, "data": [{"url": picture_url(sandbox)}], "usage": usage}
    generation = await reserved(parts, "gpt-image-2")
    async with driver_whose_upstream_says(parts, answer) as driver:
        ended = await driver.drive(generation)

    assert (ended.state, ended.held_micros) == ("completed", HELD_MICROS)
    assert (ended.used_micros, ended.settled_micros) == (used_micros, settled_micros)
    async with parts.database.statement() as connection:
        assert await budgets.differences(connection) == []


async def test_what_was_used_for_a_picture_that_could_not_be_kept_is_not_charged(
    parts: Parts, sandbox: RunningSandbox
) -> None:
    whole = picture_in_base64(sandbox)
    broken = b64encode(b"no picture").decode()
    answer = {
        "data": [{"b64_json": whole}, {"b64_json": broken}],
        "usage": {"input_tokens": 0, "output_tokens": 400},
    }
    generation = await reserved(parts, "gpt-image-2", n=2)
    async with driver_whose_upstream_says(parts, answer) as driver:
        ended = await driver.drive(generation)

    # Both were counted, at 6,000 micros each.
    assert (ended.used_micros, ended.settled_images, ended.settled_micros) == (12_000, 1, 6_000)
    async with parts.database.statement() as connection:
        assert await budgets.differences(connection) == []


async def test_what_was_used_is_settled_by_whoever_brings_the_picture_home(
    parts: Parts, sandbox: RunningSandbox
) -> None:
    generated = Move("generated", leaving=("pending",), source_urls=[picture_url(sandbox)], used_micros=30_045)
    left = await parts.move(await reserved(parts, "gpt-image-2"), generated)

    ended = await parts.recovered()

    assert (left.used_micros, left.settled_micros) == (30_045, None)
    assert (ended.state, ended.settled_images, ended.settled_micros) == ("completed", 1, 30_045)


async def test_what_was_used_says_nothing_of_a_model_without_prices_for_tokens(
    parts: Parts, sandbox: RunningSandbox
) -> None:
    answer = {"data": [{"url": picture_url(sandbox)}], "usage": {"input_tokens": 9, "output_tokens": 1}}
    generation = await reserved(parts, "dall-e-3")
    async with driver_whose_upstream_says(parts, answer) as driver:
        ended = await driver.drive(generation)

    assert (ended.used_micros, ended.settled_micros) == (None, 10_000)


async def test_what_was_used_stays_with_a_generation_whose_picture_is_lost(parts: Parts) -> None:
    generated = Move("generated", leaving=("pending",), source_urls=["https://a.example"], used_micros=30_045)
    left = await parts.move(await reserved(parts, "gpt-image-2"), generated)

    settled = (1, HELD_MICROS)
    lost = await parts.move(
        left, Move("lost", leaving=("generated",), settled=settled, failure_code="image_unavailable")
    )

    assert (lost.used_micros, lost.settled_micros) == (30_045, HELD_MICROS)
