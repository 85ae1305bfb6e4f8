"""Does every storage keep the one contract? Each test runs on a folder, a bucket, one opened late, and the spool."""

import asyncio
import gc
import hashlib
import os

import pytest

from app.storage.base import CHUNK_BYTES, LISTED_MAX, ObjectMissing, Storage, StoredObject
from tests.storage.conftest import whole

pytestmark = pytest.mark.anyio

KEY = "2026/11/22/ab12cd34ab12cd34ab12cd34ab12cd34-0.png"
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
BIG = os.urandom(5_000_000)
CONNECTIONS_KEPT_MAX = 10


async def test_what_was_put_is_read_back(storage: Storage) -> None:
    await storage.put(KEY, PICTURE, content_type="image/png")

    assert await whole(storage, KEY) == PICTURE


@pytest.mark.parametrize("checked", [False, True])
async def test_a_picture_in_lent_memory_is_kept_as_it_was_when_it_was_put(storage: Storage, checked: bool) -> None:
    if checked:
        # From then on a bucket may be written to in another way.
        await storage.check()
    memory = bytearray(BIG)
    body = memoryview(memory)[: len(BIG) - 10]
    await storage.put(KEY, body, content_type="image/png", sha256=hashlib.sha256(body).digest())
    body.release()
    memory[:] = bytes(len(BIG))

    assert await whole(storage, KEY) == BIG[:-10]


@pytest.mark.parametrize(
    ("extension", "content_type"), [("png", "image/png"), ("jpg", "image/jpeg"), ("webp", "image/webp")]
)
async def test_head_tells_size_and_content_type(storage: Storage, extension: str, content_type: str) -> None:
    await storage.put(f"a/b.{extension}", PICTURE, content_type=content_type)

    assert await storage.head(f"a/b.{extension}") == StoredObject(f"a/b.{extension}", len(PICTURE), content_type)


async def test_the_same_bytes_may_be_put_again(storage: Storage) -> None:
    await storage.put(KEY, PICTURE, content_type="image/png")
    await storage.put(KEY, PICTURE, content_type="image/png")

    assert await whole(storage, KEY) == PICTURE


async def test_another_put_replaces_the_whole_object(storage: Storage) -> None:
    await storage.put(KEY, BIG, content_type="image/png")
    await storage.put(KEY, PICTURE, content_type="image/png")

    assert await whole(storage, KEY) == PICTURE


async def test_an_empty_body_is_an_object_without_bytes(storage: Storage) -> None:
    await storage.put(KEY, b"", content_type="image/png")

    assert (await storage.head(KEY)).bytes == 0
    assert await whole(storage, KEY) == b""


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, 1),
        (0, len(PICTURE)),
        (10, 20),
        (10, None),
        (len(PICTURE) - 5, None),
        (len(PICTURE) - 5, 5),
        (len(PICTURE) - 5, 500),
        (0, 10 * len(PICTURE)),
        (len(PICTURE), None),
        (len(PICTURE) + 1, 5),
        (3, 0),
    ],
)
async def test_a_range_gives_just_its_bytes(storage: Storage, start: int, length: int | None) -> None:
    await storage.put(KEY, PICTURE, content_type="image/png")
    end = None if length is None else start + length

    stream = await storage.read(KEY, start=start, length=length)

    assert stream.bytes_total == len(PICTURE[start:end])
    assert b"".join([chunk async for chunk in stream]) == PICTURE[start:end]


@pytest.mark.parametrize(("start", "length"), [(-1, None), (0, -1)])
async def test_a_negative_range_is_a_bug(storage: Storage, start: int, length: int | None) -> None:
    with pytest.raises(ValueError, match="range"):
        await storage.read(KEY, start=start, length=length)


@pytest.mark.parametrize("key", [KEY, "2026", "2026/11"])
async def test_a_missing_key_is_surely_missing(storage: Storage, key: str) -> None:
    await storage.put("2026/11/other.png", PICTURE, content_type="image/png")

    with pytest.raises(ObjectMissing):
        await storage.head(key)


@pytest.mark.parametrize("length", [None, 0, 5])
async def test_reading_a_missing_key_is_refused_before_the_first_byte(storage: Storage, length: int | None) -> None:
    with pytest.raises(ObjectMissing) as refused:
        await storage.read(KEY, length=length)

    assert refused.value.storage == storage.name


async def test_a_deleted_object_is_missing_and_may_be_deleted_again(storage: Storage) -> None:
    await storage.put(KEY, PICTURE, content_type="image/png")

    await storage.delete(KEY)
    await storage.delete(KEY)

    with pytest.raises(ObjectMissing):
        await storage.head(KEY)


async def test_twenty_puts_at_once_all_arrive(storage: Storage) -> None:
    bodies = {f"2026/11/22/{number}.png": PICTURE + bytes([number]) for number in range(20)}

    await asyncio.gather(*(storage.put(key, body, content_type="image/png") for key, body in bodies.items()))

    assert {key: await whole(storage, key) for key in bodies} == bodies


async def test_a_big_object_comes_in_chunks_of_bounded_size(storage: Storage) -> None:
    await storage.put(KEY, BIG, content_type="image/png")

    chunks = [chunk async for chunk in await storage.read(KEY)]

    assert b"".join(chunks) == BIG
    assert {len(chunk) for chunk in chunks[:-1]} == {CHUNK_BYTES}
    assert 0 < len(chunks[-1]) <= CHUNK_BYTES


async def test_slow_readers_do_not_hold_up_a_put(storage: Storage) -> None:
    await storage.put(KEY, BIG, content_type="image/png")
    readers = [await storage.read(KEY) for _ in range(20)]
    for reader in readers:
        await anext(reader)

    await asyncio.wait_for(storage.put("other.png", PICTURE, content_type="image/png"), timeout=10)

    rests = [b"".join([chunk async for chunk in reader]) for reader in readers]
    assert rests == [BIG[CHUNK_BYTES:]] * 20


@pytest.mark.parametrize("chunks_read", [0, 1])
async def test_closing_early_frees_file_and_socket(storage: Storage, chunks_read: int) -> None:
    await storage.put(KEY, BIG, content_type="image/png")
    before = _descriptors_open()

    for _ in range(3 * CONNECTIONS_KEPT_MAX):
        stream = await storage.read(KEY)
        for _ in range(chunks_read):
            await anext(stream)
        await stream.aclose()

    assert _descriptors_open() <= before
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_forgotten_reader_frees_file_and_socket(storage: Storage) -> None:
    await storage.put(KEY, BIG, content_type="image/png")
    before = _descriptors_open()

    for _ in range(3 * CONNECTIONS_KEPT_MAX):
        await anext(await storage.read(KEY))
    gc.collect()

    assert _descriptors_open() <= before


async def test_readers_cancelled_anywhere_leave_nothing_open(storage: Storage) -> None:
    await storage.put(KEY, BIG, content_type="image/png")
    before = _descriptors_open()
    readers = [asyncio.create_task(whole(storage, KEY)) for _ in range(40)]

    for reader in readers:
        for _ in range(10):
            await asyncio.sleep(0)
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await storage.close()
    cancelled = [reader.cancelled() for reader in readers]
    # A cancelled reader's traceback keeps what it held, and a connection to Postgres takes a moment to be closed.
    del reader, readers
    async with asyncio.timeout(10):
        while _descriptors_open() > before:
            gc.collect()
            await asyncio.sleep(0.01)

    assert any(cancelled)


async def test_objects_are_listed_by_the_bytes_of_their_keys_with_size_and_age(storage: Storage) -> None:
    # What a folder would sort otherwise: a dash and a dot come before the slash, a digit comes after it.
    keys = ["a-b.png", "a.png", "a/b.png", "a/b/c.png", "a0.png", "B.png", "b-/c.png", "b/c.png"]
    for size, key in enumerate(keys):
        await storage.put(key, bytes(size), content_type="image/png")

    listed = [one async for one in storage.objects()]

    assert [(one.key, one.bytes) for one in listed] == sorted((key, size) for size, key in enumerate(keys))
    assert all(0 <= one.age_seconds < 60 for one in listed)


@pytest.mark.parametrize(
    ("prefix", "keys"),
    [
        ("", ["2026/11/21/a.png", "2026/11/22/a.png", "2026/12/01/a.png", "2026x.png"]),
        ("2026/11/", ["2026/11/21/a.png", "2026/11/22/a.png"]),
        ("2026/11/2", ["2026/11/21/a.png", "2026/11/22/a.png"]),
        ("2026/11/22/a.png", ["2026/11/22/a.png"]),
        ("2026", ["2026/11/21/a.png", "2026/11/22/a.png", "2026/12/01/a.png", "2026x.png"]),
        ("2027/", []),
        ("../", []),
    ],
)
async def test_a_listing_holds_what_begins_with_the_prefix_and_nothing_else(
    storage: Storage, prefix: str, keys: list[str]
) -> None:
    for key in ("2026/12/01/a.png", "2026/11/22/a.png", "2026/11/21/a.png", "2026x.png"):
        await storage.put(key, PICTURE, content_type="image/png")

    assert [one.key async for one in storage.objects(prefix)] == keys


async def test_a_listing_goes_on_over_pages_and_can_be_left_early(storage: Storage) -> None:
    keys = [f"2026/11/{number % 3:02d}/{number:05d}.png" for number in range(LISTED_MAX + 205)]
    for start in range(0, len(keys), 50):
        await asyncio.gather(*(storage.put(key, b"", content_type="image/png") for key in keys[start : start + 50]))

    listed = [one.key async for one in storage.objects()]
    first = [one.key async for one in storage.objects("2026/11/01/")][:1]

    assert listed == sorted(keys)
    assert first == ["2026/11/01/00001.png"]


async def test_a_deleted_object_is_listed_no_more(storage: Storage) -> None:
    await storage.put(KEY, PICTURE, content_type="image/png")
    await storage.delete(KEY)

    assert [one async for one in storage.objects()] == []


async def test_check_passes_and_leaves_the_objects_alone(storage: Storage) -> None:
    await storage.put(KEY, PICTURE, content_type="image/png")

    await storage.check()
    await storage.check()

    assert await whole(storage, KEY) == PICTURE


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../up.png",
        "a/../../up.png",
        "a/./b.png",
        "a//b.png",
        "a/",
        "..",
        ".",
        ".hidden.png",
        "a\\b.png",
        "a\0.png",
        "a\n.png",
        "a b.png",
        "bär.png",
        "a" * 201,
        "a/" * 600 + "b",
    ],
)
async def test_a_key_that_is_not_one_plain_path_is_a_bug(storage: Storage, key: str) -> None:
    for call in (storage.head(key), storage.read(key), storage.delete(key), storage.put(key, b"", content_type="x/y")):
        with pytest.raises(ValueError, match="not a storage key"):
            await call


def _descriptors_open() -> int:
    return len(os.listdir("/dev/fd"))
