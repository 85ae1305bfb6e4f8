"""Do bytes that are cut, stall or never come ever pass for a whole picture, and is the wait for them short?"""

import asyncio
import base64
import hashlib
import socket
import threading
import time

import pytest

from app.storage.base import StorageMisconfigured, StorageUnavailable
from tests.storage.hostile_store import BODY, KEY, Request, answering, by_method, client_of, hostile_store, refusing

pytestmark = pytest.mark.anyio

RIGHT_ETAG = hashlib.md5(BODY).hexdigest()


# What is put


async def test_a_put_sends_length_type_checksum_and_no_acl() -> None:
    seen: dict[str, str] = {}

    def keep(request: Request) -> None:
        seen.update({name.lower(): value for name, value in request.headers.items()})
        answering(200, etag=f'"{RIGHT_ETAG}"')(request)

    with hostile_store(keep) as storage:
        await storage.put(KEY, BODY, content_type="image/png")

    assert seen["content-length"] == str(len(BODY))
    assert seen["content-type"] == "image/png"
    assert seen["cache-control"] == "public, max-age=86400"
    assert seen["content-md5"] == base64.b64encode(hashlib.md5(BODY).digest()).decode()
    assert seen["x-amz-content-sha256"] == hashlib.sha256(BODY).hexdigest()  # Over plain http the signature covers it.
    assert not any("acl" in name or "checksum" in name for name in seen)


async def test_a_cut_put_that_the_store_took_for_whole_is_unavailable() -> None:
    cut = by_method(PUT=answering(200, etag='"of-the-cut-one"'), HEAD=answering(200, content_length="350"))

    with hostile_store(cut) as storage, pytest.raises(StorageUnavailable, match="350 of 700 bytes"):
        await storage.put(KEY, BODY, content_type="image/png")


async def test_a_put_with_a_foreign_etag_is_good_when_the_size_is() -> None:
    encrypted = by_method(PUT=answering(200, etag='"of-the-ciphertext"'), HEAD=answering(200, content_length="700"))

    with hostile_store(encrypted) as storage:
        await storage.put(KEY, BODY, content_type="image/png")


async def test_a_put_that_vanished_is_unavailable() -> None:
    with (
        hostile_store(by_method(PUT=answering(200), HEAD=answering(404), GET=refusing(404, "NoSuchKey"))) as storage,
        pytest.raises(StorageUnavailable, match="put it again"),
    ):
        await storage.put(KEY, BODY, content_type="image/png")


# What is read


async def test_a_body_cut_short_is_never_a_whole_picture() -> None:
    with hostile_store(answering(200, BODY, content_length="1000")) as storage:
        stream = await storage.read(KEY)
        with pytest.raises(StorageUnavailable):
            async for _ in stream:
                pass


async def test_a_body_of_unknown_length_is_refused_before_its_first_byte() -> None:
    def chunked(request: Request) -> None:
        request.send_response(200)
        request.send_header("connection", "close")
        request.end_headers()
        request.wfile.write(BODY)

    with hostile_store(chunked) as storage, pytest.raises(StorageUnavailable, match="how long"):
        await storage.read(KEY)


async def test_a_store_that_ignores_ranges_never_gives_other_bytes() -> None:
    with hostile_store(answering(200, BODY)) as storage, pytest.raises(StorageMisconfigured, match="Range"):
        await storage.read(KEY, start=10, length=5)


async def test_a_body_that_stalls_is_unavailable_soon() -> None:
    released = threading.Event()

    def stall(request: Request) -> None:
        answering(200, b"begun", content_length="1000")(request)
        released.wait(30)

    with hostile_store(stall, patience_seconds=0.3) as storage:
        stream = await storage.read(KEY)
        with pytest.raises(StorageUnavailable):
            await anext(stream)
        released.set()


def _has_let_go(request: Request) -> bool:
    # With bytes still unread a close arrives as a reset.
    try:
        received: bytes = request.connection.recv(1)
    except ConnectionResetError:
        return True
    return received == b""


async def test_a_reader_cancelled_in_a_stall_lets_go_of_the_connection() -> None:
    begun, let_go = threading.Event(), threading.Event()

    def stall(request: Request) -> None:
        answering(200, b"begun", content_length="1000")(request)
        begun.set()
        request.connection.settimeout(10)
        if _has_let_go(request):
            let_go.set()

    with hostile_store(stall, patience_seconds=0.3) as storage:
        reader = asyncio.create_task(anext(await storage.read(KEY)))
        await asyncio.to_thread(begun.wait, 10)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

        assert await asyncio.to_thread(let_go.wait, 10)


async def test_a_wait_cancelled_while_opening_leaves_no_connection() -> None:
    asked, answer_now, let_go = threading.Event(), threading.Event(), threading.Event()

    def late(request: Request) -> None:
        asked.set()
        answer_now.wait(10)
        answering(200, b"begun", content_length="1000")(request)
        request.connection.settimeout(10)
        if _has_let_go(request):
            let_go.set()

    with hostile_store(late) as storage:
        opening = asyncio.create_task(storage.read(KEY))
        await asyncio.to_thread(asked.wait, 10)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        answer_now.set()

        assert await asyncio.to_thread(let_go.wait, 10)


# A store that is not there


async def test_a_store_that_never_answers_is_unavailable_soon() -> None:
    released = threading.Event()
    started = time.monotonic()

    def silent(_: Request) -> None:
        released.wait(30)

    with hostile_store(silent, patience_seconds=0.3) as storage:
        with pytest.raises(StorageUnavailable):
            await storage.read(KEY)
        released.set()

    assert time.monotonic() - started < 10


async def test_a_port_where_nobody_listens_is_unavailable_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        storage = client_of(f"http://127.0.0.1:{taken.getsockname()[1]}")
        started = time.monotonic()

        with pytest.raises(StorageUnavailable, match="S3_ENDPOINT_URL"):
            await storage.put(KEY, BODY, content_type="image/png")

    assert time.monotonic() - started < 5


async def test_a_host_that_does_not_exist_is_unavailable() -> None:
    storage = client_of("http://store.invalid:9")

    with pytest.raises(StorageUnavailable):
        await storage.head(KEY)
