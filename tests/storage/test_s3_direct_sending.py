"""Does a put that goes by itself end in time, whatever the store does, and pass for kept only when it is?"""

import asyncio
import threading
import time

import pytest

from app.storage.base import StorageUnavailable
from tests.storage.hostile_store import (
    BODY,
    KEY,
    Answer,
    Request,
    answering,
    hostile_store,
    refusing,
)
from tests.storage.signed_bucket import DIGEST, LARGE_BODY, LARGE_DIGEST, Bucket, Reader

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the service runs on: it sends, and tells broken connections, in ways of its own."""
    return "asyncio", {"use_uvloop": True}


async def test_a_store_that_falls_silent_is_unavailable_soon_and_not_asked_again() -> None:
    bucket = Bucket()
    released = threading.Event()

    def silent(_: Request) -> Answer | None:
        released.wait(30)
        return None

    with hostile_store(bucket, patience_seconds=2) as storage:
        await storage.check()
        bucket.forget()
        bucket.first = silent
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match="TimeoutError"):
            await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)
        released.set()

    assert time.monotonic() - started < 5
    assert bucket.puts == ["sha256"]


async def test_a_connection_that_the_store_closed_meanwhile_is_made_anew() -> None:
    bucket = Bucket()

    def answer(request: Request) -> None:
        # It says that the connection stays, and closes it.
        bucket.asked.append(request)
        bucket.objects[request.path] = request.body
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with hostile_store(lambda request: (answer if checked.is_set() else bucket)(request)) as storage:
        checked = threading.Event()
        await storage.check()
        checked.set()
        bucket.forget()
        for number in range(5):
            await storage.put(f"{number}.png", BODY, content_type="image/png", sha256=DIGEST)
        await storage.close()

    assert bucket.puts == ["sha256"] * 5


async def test_a_store_that_stops_reading_is_unavailable_soon() -> None:
    bucket, released = Bucket(), threading.Event()
    stops = Reader(lambda _: released.wait(30))
    with hostile_store(bucket, patience_seconds=2, taken=stops) as storage:
        await storage.check()
        bucket.forget()
        stops.takes = True
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match="TimeoutError"):
            await storage.put(KEY, LARGE_BODY, content_type="image/png", sha256=LARGE_DIGEST)
        released.set()

    assert time.monotonic() - started < 5
    assert bucket.asked == []


async def test_a_store_that_reads_slowly_is_waited_for_as_long_as_it_reads() -> None:
    bucket, read = Bucket(), bytearray()

    def read_slowly(request: Request) -> None:
        # All in all far longer than it may be silent.
        while len(read) < len(LARGE_BODY):
            time.sleep(0.02)
            read.extend(request.rfile.read1(256 * 1024))
        answering(200)(request)

    slowly = Reader(read_slowly)
    with hostile_store(bucket, patience_seconds=1, taken=slowly) as storage:
        await storage.check()
        bucket.forget()
        slowly.takes = True
        started = time.monotonic()
        await storage.put(KEY, LARGE_BODY, content_type="image/png", sha256=LARGE_DIGEST)

    assert time.monotonic() - started > 2
    assert read == LARGE_BODY
    assert bucket.asked == []


async def test_a_store_that_answers_before_it_has_all_is_heard_and_sent_no_more() -> None:
    bucket, read = Bucket(), bytearray()

    def refuse_at_once(request: Request) -> None:
        request.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        while piece := request.rfile.read1(256 * 1024):
            read.extend(piece)
            time.sleep(0.01)

    refusing_at_once = Reader(refuse_at_once)
    with hostile_store(bucket, taken=refusing_at_once) as storage:
        await storage.check()
        bucket.forget()
        refusing_at_once.takes = True
        await storage.put(KEY, LARGE_BODY, content_type="image/png", sha256=LARGE_DIGEST)

    assert len(read) < len(LARGE_BODY)
    assert bucket.puts == ["md5"]
    assert bucket.objects[f"/pictures/{KEY}"] == LARGE_BODY


async def test_a_200_that_comes_before_the_store_has_all_is_no_promise() -> None:
    bucket = Bucket()

    def accept_unread(request: Request) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        time.sleep(0.3)

    accepting = Reader(accept_unread)
    with hostile_store(bucket, taken=accepting) as storage:
        await storage.check()
        accepting.takes = True
        await storage.put(KEY, LARGE_BODY, content_type="image/png", sha256=LARGE_DIGEST)

    assert bucket.puts[-1] == "md5"
    assert bucket.objects[f"/pictures/{KEY}"] == LARGE_BODY


@pytest.mark.parametrize("status", [200, 503])
async def test_closing_waits_for_a_put_under_way_also_where_boto3_is_to_try_it(status: int) -> None:
    bucket = Bucket()
    begun, go = threading.Event(), threading.Event()

    def slow(request: Request) -> Answer | None:
        begun.set()
        go.wait(10)
        return None if status == 200 or "content-md5" in request.headers else refusing(status, "SlowDown")

    with hostile_store(bucket) as storage:
        await storage.check()
        bucket.first = slow
        put = asyncio.create_task(storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST))
        await asyncio.to_thread(begun.wait, 10)
        closing = asyncio.create_task(storage.close())
        await asyncio.wait({closing}, timeout=0.5)
        closed_early = closing.done()
        go.set()
        await asyncio.gather(put, closing)

    assert not closed_early
    assert bucket.objects[f"/pictures/{KEY}"] == BODY


async def test_what_others_put_meanwhile_does_not_keep_a_check_from_proving() -> None:
    bucket = Bucket()
    bucket.first = lambda _: time.sleep(0.005)
    checked = threading.Event()
    with hostile_store(bucket) as storage:

        async def others(number: int) -> None:
            while not checked.is_set():
                await storage.put(f"{number}.png", BODY, content_type="image/png", sha256=DIGEST)

        running = [asyncio.create_task(others(number)) for number in range(8)]
        await asyncio.sleep(0.2)
        await storage.check()
        checked.set()
        await asyncio.gather(*running)
        bucket.forget()
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)
        await storage.close()

    assert bucket.puts == ["sha256"]


async def test_a_put_that_nobody_waits_for_any_more_lets_go_of_its_connection() -> None:
    bucket = Bucket()
    begun, let_go = threading.Event(), threading.Event()

    def hold(request: Request) -> None:
        begun.set()
        request.connection.settimeout(10)
        while request.rfile.read1(256 * 1024):
            pass
        let_go.set()

    holds = Reader(hold)
    with hostile_store(bucket, taken=holds) as storage:
        await storage.check()
        holds.takes = True
        put = asyncio.create_task(storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST))
        await asyncio.to_thread(begun.wait, 10)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put

        assert await asyncio.to_thread(let_go.wait, 10)


async def test_puts_go_over_no_more_connections_than_there_are_threads() -> None:
    bucket = Bucket()
    at_once: list[int] = []
    inside = 0

    def count(_: Request) -> Answer | None:
        nonlocal inside
        inside += 1
        at_once.append(inside)
        time.sleep(0.05)
        inside -= 1
        return None

    with hostile_store(bucket) as storage:
        await storage.check()
        bucket.forget()
        bucket.first = count
        puts = (storage.put(f"{n}.png", BODY, content_type="image/png", sha256=DIGEST) for n in range(40))
        await asyncio.gather(*puts)

    assert bucket.puts == ["sha256"] * 40
    assert max(at_once) <= 10
