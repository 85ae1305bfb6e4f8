"""Are bytes in memory bounded, does everybody get room in turn, and is nothing that was paid for kept out for good?"""

import asyncio
import base64
import json
from collections.abc import Callable

import pytest

from app.upstream.outcome import BytesSource, Generated
from app.upstream.room import SMALL_BYTES, UNTOLD_BYTES, Hold, Room
from tests.upstream.internet import downloader
from tests.upstream.orders import MODEL, order_from, upstream_at
from tests.upstream.raw_server import Connection, raw_server

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
# More than the system's own buffers of a connection hold.
PICTURE = bytes(range(256)) * 4 * 1024 * 12
ANSWER = json.dumps({"created": 1, "data": [{"b64_json": base64.b64encode(PICTURE).decode()}]}).encode()
LONG_SECONDS = 30.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def taken(hold: Hold, size_bytes: int, order: list[int]) -> None:
    await hold.take(size_bytes)
    order.append(size_bytes)


# Room itself


async def test_what_fits_does_not_wait_and_is_given_back_at_the_end() -> None:
    room = Room(bytes_max=10 * MIB, patience_seconds=LONG_SECONDS)
    with room.hold() as one, room.hold() as other:
        await one.take(4 * MIB)
        await other.take(6 * MIB)
        assert room.bytes_used == 10 * MIB

    assert room.bytes_used == 0


async def test_what_is_small_takes_nothing() -> None:
    room = Room(bytes_max=1, patience_seconds=LONG_SECONDS)
    with room.hold() as one, room.hold() as other:
        await one.take(SMALL_BYTES)
        await other.take(SMALL_BYTES)
        assert room.bytes_used == 0


async def test_who_comes_first_is_let_in_first_and_nobody_small_passes_by() -> None:
    room, order = Room(bytes_max=10 * MIB, patience_seconds=LONG_SECONDS), list[int]()
    with room.hold() as first:
        await first.take(8 * MIB)
        holds = [room.hold() for _ in range(3)]
        sizes = [9 * MIB, MIB, 2 * MIB]
        waiting = [asyncio.create_task(taken(hold, size, order)) for hold, size in zip(holds, sizes, strict=True)]
        await asyncio.sleep(0)
        assert order == []
        first.settle(0)
        await asyncio.gather(*waiting[:2])
        assert order == [9 * MIB, MIB]
        holds[0].settle(0)
        await waiting[2]

    assert room.bytes_used == 3 * MIB


async def test_what_is_larger_than_all_the_room_comes_alone() -> None:
    room, order = Room(bytes_max=MIB, patience_seconds=LONG_SECONDS), list[int]()
    with room.hold() as first, room.hold() as large:
        await first.take(MIB // 2)
        waiting = asyncio.create_task(taken(large, 50 * MIB, order))
        await asyncio.sleep(0)
        assert order == []
        first.settle(0)
        await waiting

    assert room.bytes_used == 0


async def test_who_has_waited_long_enough_is_let_in_all_the_same() -> None:
    room = Room(bytes_max=MIB, patience_seconds=0.05)
    with room.hold() as first, room.hold() as second:
        await first.take(MIB)
        await second.take(MIB)
        assert room.bytes_used == 2 * MIB

    assert room.bytes_used == 0


async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    room, order = Room(bytes_max=MIB, patience_seconds=LONG_SECONDS), list[int]()
    with room.hold() as first, room.hold() as large, room.hold() as small:
        await first.take(MIB // 2)
        leaving = asyncio.create_task(taken(large, MIB, order))
        staying = asyncio.create_task(taken(small, MIB // 2, order))
        await asyncio.sleep(0)
        leaving.cancel()
        await staying

    assert order == [MIB // 2]
    assert room.bytes_used == 0


async def test_who_is_let_in_and_cancelled_in_the_same_moment_holds_nothing() -> None:
    room, order = Room(bytes_max=MIB, patience_seconds=LONG_SECONDS), list[int]()
    with room.hold() as first, room.hold() as second:
        await first.take(MIB)
        waiting = asyncio.create_task(taken(second, MIB, order))
        await asyncio.sleep(0)
        first.settle(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert room.bytes_used == 0


async def test_a_deadline_stands_still_while_room_is_waited_for() -> None:
    # Longer than the deadline leaves.
    room = Room(bytes_max=MIB, patience_seconds=0.4)
    with room.hold() as first, room.hold() as held:
        await first.take(MIB)
        async with asyncio.timeout(0.2) as deadline:
            await held.take(MIB, deadline=deadline)
            await asyncio.sleep(0.05)
    assert not deadline.expired()
    assert deadline.when() is not None


@pytest.mark.parametrize("patience_seconds", [0.05, LONG_SECONDS])
async def test_a_deadline_goes_on_after_room_is_taken(patience_seconds: float) -> None:
    room = Room(bytes_max=MIB, patience_seconds=patience_seconds)

    async def late() -> None:
        with room.hold() as first, room.hold() as held:
            if patience_seconds < LONG_SECONDS:
                await first.take(MIB)
            async with asyncio.timeout(0.2) as deadline:
                await held.take(MIB, deadline=deadline)
                await asyncio.sleep(LONG_SECONDS)

    with pytest.raises(TimeoutError):
        await late()


# Memory that is lent


def lent(hold: Hold, size_bytes: int) -> memoryview:
    view = hold.lend(size_bytes)
    assert view is not None
    assert len(view) == size_bytes
    return view


async def test_memory_that_was_given_back_is_lent_again_to_who_needs_about_as_much() -> None:
    room = Room(bytes_max=10 * MIB)
    with room.hold() as first:
        lent(first, MIB)[:5] = b"first"

    with room.hold() as smaller, room.hold() as other:
        assert bytes(lent(smaller, MIB - 10)[:5]) == b"first"
        assert bytes(lent(other, MIB)[:5]) == bytes(5), "one memory is lent to one at a time"
    with room.hold() as much_smaller:
        assert bytes(lent(much_smaller, SMALL_BYTES + 1)[:5]) == b"first"
    with room.hold() as larger:
        assert bytes(lent(larger, 3 * MIB)[:5]) == bytes(5)


async def test_nobody_reads_lent_memory_after_its_hold_has_ended() -> None:
    with Room(bytes_max=MIB).hold() as held:
        body = lent(held, MIB)

    with pytest.raises(ValueError, match="released"):
        bytes(body)


@pytest.mark.parametrize("look", [lambda body: memoryview(body), lambda body: body[1000:]])
async def test_memory_that_somebody_still_looks_at_is_lent_to_nobody_else(
    look: Callable[[memoryview], memoryview],
) -> None:
    room = Room(bytes_max=10 * MIB)
    with room.hold() as first:
        body = lent(first, MIB)
        body[-5:] = b"first"
        looked_at = look(body)
    with room.hold() as other:
        lent(other, MIB)[-5:] = b"other"

    assert bytes(looked_at[-5:]) == b"first"


async def test_a_hold_that_lends_twice_lends_the_same_memory() -> None:
    with Room(bytes_max=10 * MIB).hold() as held:
        lent(held, MIB)[:5] = b"first"

        assert bytes(lent(held, MIB)[:5]) == b"first"


async def test_what_is_small_is_lent_nothing() -> None:
    with Room(bytes_max=10 * MIB).hold() as small:
        assert small.lend(SMALL_BYTES) is None


async def test_memory_is_kept_within_the_room_and_gives_way_to_who_needs_that() -> None:
    room = Room(bytes_max=10 * MIB)
    with room.hold() as one, room.hold() as other, room.hold() as large:
        for hold, size_bytes in ((one, 2 * MIB), (other, 2 * MIB), (large, 6 * MIB)):
            await hold.take(size_bytes)
            lent(hold, size_bytes)
    assert room.spare_bytes == 4 * MIB, "one that takes most of the room is not kept"

    with room.hold() as next_one:
        await next_one.take(7 * MIB)
        assert room.spare_bytes == 2 * MIB
        next_one.settle(9 * MIB)
        assert room.spare_bytes == 0


async def test_two_pictures_one_after_the_other_come_into_the_same_memory_each_whole() -> None:
    pictures = [PICTURE, PICTURE[::-1]]
    room, waiting = Room(bytes_max=100 * MIB), iter(pictures)

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", next(waiting))

    async with raw_server(script) as server, downloader(bytes_max=len(PICTURE)) as opened:
        came = []
        for _ in pictures:
            with room.hold() as held:
                body = await opened.fetch(f"{server.url}/a.png", held)
                came.append(bytes(body))
                assert isinstance(body, memoryview), "lent"

    assert came == pictures
    assert 0 < room.spare_bytes < 2 * len(PICTURE), "one memory was enough"


# Who takes it


async def test_an_answer_waits_for_room_before_it_is_read_and_upstreams_time_stands_still() -> None:
    room = Room(bytes_max=MIB, patience_seconds=LONG_SECONDS)
    sent = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", ANSWER)
        sent.set()

    async with raw_server(script) as server, upstream_at(server.url, total=0.5, answer_bytes_max=50 * MIB) as upstream:
        with room.hold() as other, room.hold() as held:
            await other.take(MIB)
            order = asyncio.create_task(
                upstream.generate(model=MODEL, prompt="a cat", size="1024x1024", quality="hd", n=1, held=held)
            )
            # Longer than upstream may take.
            await asyncio.sleep(0.8)
            assert not sent.is_set()
            assert not order.done()
            other.settle(0)
            outcome = await order

            assert isinstance(outcome, Generated)
            assert [source.body for source in outcome.sources if isinstance(source, BytesSource)] == [PICTURE]
            # What it was in base64 is gone.
            assert room.bytes_used == len(PICTURE)


async def test_an_answer_that_found_no_room_in_time_is_read_all_the_same() -> None:
    room = Room(bytes_max=MIB, patience_seconds=0.05)

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", ANSWER)

    async with raw_server(script) as server, upstream_at(server.url, answer_bytes_max=50 * MIB) as upstream:
        with room.hold() as other, room.hold() as held:
            await other.take(MIB)
            outcome = await upstream.generate(
                model=MODEL, prompt="a cat", size="1024x1024", quality="hd", n=1, held=held
            )

    assert isinstance(outcome, Generated)


async def test_an_answer_that_does_not_say_how_long_it_is_takes_room_once_it_is_large() -> None:
    room = Room(bytes_max=UNTOLD_BYTES, patience_seconds=LONG_SECONDS)
    go_on = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER[:SMALL_BYTES])
        await go_on.wait()
        await connection.send(ANSWER[SMALL_BYTES:])

    async with raw_server(script) as server, upstream_at(server.url, answer_bytes_max=50 * MIB) as upstream:
        with room.hold() as held:
            order = asyncio.create_task(
                upstream.generate(model=MODEL, prompt="a cat", size="1024x1024", quality="hd", n=1, held=held)
            )
            await until(lambda: bool(server.requests))
            assert room.bytes_used == 0
            go_on.set()
            await until(lambda: room.bytes_used > 0 or order.done())
            assert isinstance(await order, Generated)
            assert room.bytes_used == len(PICTURE)


async def test_an_answer_that_is_small_waits_for_nobody() -> None:
    room = Room(bytes_max=MIB, patience_seconds=LONG_SECONDS)

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", b'{"data": [{"url": "https://pictures.example/a.png"}]}')

    async with raw_server(script) as server, upstream_at(server.url) as upstream:
        with room.hold() as other:
            await other.take(MIB)
            assert isinstance(await order_from(upstream), Generated)


async def test_a_fetch_waits_for_room_before_it_reads_on_and_its_time_stands_still() -> None:
    room = Room(bytes_max=MIB, patience_seconds=LONG_SECONDS)
    sent = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", PICTURE)
        sent.set()

    async with (
        raw_server(script) as server,
        downloader(timeout_seconds=0.5, bytes_max=len(PICTURE)) as opened,
    ):
        with room.hold() as other, room.hold() as held:
            await other.take(MIB)
            fetch = asyncio.create_task(opened.fetch(f"{server.url}/a.png", held))
            await asyncio.sleep(0.8)
            assert not sent.is_set()
            other.settle(0)
            assert await fetch == PICTURE
            assert room.bytes_used == len(PICTURE)


async def test_a_picture_that_is_too_large_takes_no_room() -> None:
    room = Room(bytes_max=MIB, patience_seconds=LONG_SECONDS)

    async def script(connection: Connection) -> None:
        await connection.answer("200 OK", PICTURE)

    async with raw_server(script) as server, downloader(bytes_max=MIB) as opened:
        with room.hold() as other, room.hold() as held:
            await other.take(MIB)
            async with asyncio.timeout(5):
                with pytest.raises(Exception, match="more than"):
                    await opened.fetch(f"{server.url}/a.png", held)
