"""Does recovery, as it runs in a service, let nothing that is slow hold up anything else?

Sources are silent until the test lets them answer; storage hangs where the test says so.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image as Pillow
from sqlalchemy import text

from app.accounts.keys import Caller
from app.connections.connection import Body
from app.database.pool import Database
from app.generations import records
from app.generations.driver import Driver
from app.generations.leases import Leases
from app.generations.records import Generation, Held, Move
from app.generations.recovery import recover_for_ever
from app.generations.rehost import Rehost
from app.generations.runner import Runner
from app.generations.stores import Stores
from app.storage.base import ObjectStream
from app.storage.folder import FolderStorage
from app.upstream.breaker import Breaker
from app.upstream.catalog import load_catalog
from app.upstream.client import Upstream
from app.upstream.download import Downloader
from app.upstream.room import Room
from tests.makers import make_caller, make_order, make_stores, move, reserve

pytestmark = pytest.mark.anyio


# Longer than any test takes: what waited for it would be seen to wait.
LONG_SECONDS = 120
PLACES = 4
# Short enough for a test to see what a step does once its look for stored pictures has hung.
GENERATED_SECONDS = 30


@dataclass
class Source:
    """A host of pictures that says nothing before it is told to: `asked` counts by path, `answering` are let go."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    answering: dict[str, asyncio.Event] = field(default_factory=dict)

    def picture(self, name: str) -> str:
        self.answering[f"/{name}.png"] = asyncio.Event()
        return f"{self.url}/{name}.png"

    async def asked_for(self) -> int:
        return len(self.asked)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            self.asked.append(path)
            await self.answering[path].wait()
            body = _png()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
            await writer.drain()
        finally:
            writer.close()


class Home(FolderStorage):
    """A folder that hangs, or breaks, where it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.hangs_at: str | None = None
        self.breaks_for: str | None = None
        self.asked = asyncio.Event()

    async def put(self, key: str, body: Body, *, content_type: str, sha256: bytes | None = None) -> None:
        await self._perhaps_hang("put")
        await super().put(key, body, content_type=content_type)

    async def delete(self, key: str) -> None:
        await self._perhaps_hang("delete")
        await super().delete(key)

    async def read(self, key: str, *, start: int = 0, length: int | None = None) -> ObjectStream:
        await self._perhaps_hang("read")
        if self.breaks_for is not None and key.startswith(self.breaks_for):
            raise ValueError("nobody foresaw this")
        return await super().read(key, start=start, length=length)

    async def _perhaps_hang(self, where: str) -> None:
        if self.hangs_at == where:
            self.asked.set()
            await asyncio.sleep(LONG_SECONDS)


@dataclass(frozen=True)
class Parts:
    database: Database
    home: Home
    stores: Stores
    driver: Driver
    source: Source
    caller: Caller

    async def reserve(self) -> Generation:
        async with self.database.statement() as connection:
            held = await reserve(connection, self.caller, make_order("a cat"))
        assert isinstance(held, Held)
        return held.generation

    async def left(self, name: str | None = None) -> Generation:
        """A generation that was left behind: pending, or generated with a picture of this name at the source."""
        generation = await self.reserve()
        if name is not None:
            made = Move("generated", leaving=("pending",), source_urls=[self.source.picture(name)], lease_seconds=1)
            async with self.database.statement() as connection:
                assert await move(connection, generation.id, made) is not None
        await self.run_out(generation)
        return generation

    async def run_out(self, generation: Generation) -> None:
        await self.execute(f"UPDATE generations SET lease_until = now() - interval '1 s' WHERE id = '{generation.id}'")

    async def kept(self) -> Generation:
        """A generation whose picture is in the spool, where nobody has to fetch it from anywhere."""
        generation = await self.reserve()
        key = f"{generation.storage_stem}-0.png"
        await self.stores.spool.put(key, _png(), content_type="image/png")
        return await self.driver.drive(replace(generation, attempts=1))

    async def find(self, generation: Generation) -> Generation:
        async with self.database.statement() as connection:
            found = await records.find(connection, generation.id)
        assert found is not None
        return found

    async def state(self, generation: Generation) -> str:
        return (await self.find(generation)).state

    async def attempts(self, generation: Generation) -> int:
        return (await self.find(generation)).attempts

    async def lives(self, generation: Generation) -> str | None:
        """The storage that its picture is in; None once it is erased."""
        query = text("SELECT storage FROM images WHERE generation_id = :id AND erased_at IS NULL")
        async with self.database.statement() as connection:
            storage: str | None = (await connection.execute(query, {"id": generation.id})).scalar()
        return storage

    async def execute(self, statement: str) -> None:
        async with self.database.statement() as connection:
            await connection.execute(text(statement))

    @asynccontextmanager
    async def recovering(self, *, places: int = PLACES, interval_seconds: float = 0.1) -> AsyncIterator[None]:
        """Recovery as a service runs it, ended as a service ends it."""
        recovery = asyncio.create_task(
            recover_for_ever(
                self.database,
                self.driver,
                self.stores,
                places=places,
                lease_seconds=LONG_SECONDS,
                interval_seconds=interval_seconds,
            )
        )
        try:
            yield
        finally:
            recovery.cancel()
            with suppress(asyncio.CancelledError):
                await recovery


@pytest.fixture
async def source() -> AsyncIterator[Source]:
    source = Source()
    server = await asyncio.start_server(source.serve, "127.0.0.1")
    source.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield source
    for event in source.answering.values():
        event.set()
    server.close()


@pytest.fixture
async def parts(database_url: str, source: Source, tmp_path: Path) -> AsyncIterator[Parts]:
    database = Database(database_url, connections_max=5, timeout_seconds=10)
    home = Home(tmp_path / "home")
    upstream = Upstream(
        base_url=source.url,
        api_key="a-key",
        connect_timeout_seconds=5,
        read_timeout_seconds=10,
        total_timeout_seconds=10,
    )
    downloader = Downloader(allow_loopback_http=True, timeout_seconds=LONG_SECONDS)
    stores = make_stores(database, home)
    rehost = Rehost(
        downloader=downloader,
        stores=stores,
        room=Room(bytes_max=10**7),
        pixels_max=10**8,
        in_flight_max=2 * PLACES,
        threads_max=2,
    )
    driver = Driver(
        database=database,
        upstream=upstream,
        breaker=Breaker(open_seconds=0),
        catalog=load_catalog(None),
        rehost=rehost,
        leases=Leases(
            pending_seconds=LONG_SECONDS, generated_seconds=GENERATED_SECONDS, source_lifetime_seconds=LONG_SECONDS
        ),
    )
    async with database.transaction() as tx:
        caller = await make_caller(tx)
    yield Parts(database, home, stores, driver, source, caller)
    await rehost.close()
    await downloader.close()
    await upstream.close()
    await stores.close()
    await home.close()
    await database.close()


def _png() -> bytes:
    target = BytesIO()
    Pillow.new("RGB", (64, 64), "teal").save(target, "PNG")
    return target.getvalue()


async def eventually(question: Callable[[], Awaitable[object]], answer: object) -> None:
    async with asyncio.timeout(20):
        while await question() != answer:
            await asyncio.sleep(0.02)


async def test_a_silent_source_holds_up_no_generation_that_is_left_behind_after_it(parts: Parts) -> None:
    silent = await parts.left("silent")
    async with parts.recovering():
        await eventually(parts.source.asked_for, 1)

        later = await parts.left()

        await eventually(lambda: parts.state(later), "unknown")
        assert await parts.state(silent) == "generated"


async def test_no_more_are_driven_at_once_than_there_are_places_and_one_that_comes_free_is_taken_at_once(
    parts: Parts,
) -> None:
    for number in range(PLACES + 1):
        await parts.left(str(number))
    async with parts.recovering(interval_seconds=LONG_SECONDS):
        await eventually(parts.source.asked_for, PLACES)

        parts.source.answering[parts.source.asked[3]].set()

        await eventually(parts.source.asked_for, PLACES + 1)


async def test_silent_sources_hold_up_no_picture_of_an_order_that_was_just_made(parts: Parts) -> None:
    for number in range(2 * PLACES):
        await parts.left(str(number))
    async with parts.recovering():
        await eventually(parts.source.asked_for, PLACES)
        made = Move("generated", leaving=("pending",), source_urls=[parts.source.picture("new")], lease_seconds=60)
        parts.source.answering["/new.png"].set()
        async with parts.database.statement() as connection:
            new = await move(connection, (await parts.reserve()).id, made)
        assert new is not None

        driven = await asyncio.wait_for(parts.driver.drive(new), 20)

        assert driven.state == "completed"


async def test_one_row_that_can_not_be_claimed_holds_up_no_other(parts: Parts) -> None:
    poisoned, beside = await parts.left(), await parts.left()
    await parts.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$"
    )
    await parts.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON generations FOR EACH ROW"
        f" WHEN (OLD.id = '{poisoned.id}') EXECUTE FUNCTION refuse()"
    )

    async with parts.recovering():
        await eventually(lambda: parts.state(beside), "unknown")

    assert await parts.state(poisoned) == "pending"


@pytest.mark.parametrize("places", [1, PLACES])
async def test_one_row_that_can_not_be_read_holds_up_no_other(parts: Parts, places: int) -> None:
    unreadable, beside = await parts.left(), await parts.left()
    await parts.execute(f"UPDATE generations SET created_at = 'infinity' WHERE id = '{unreadable.id}'")

    async with parts.recovering(places=places):
        await eventually(lambda: parts.state(beside), "unknown")


async def test_a_client_waits_no_longer_than_two_leases_although_nobody_can_take_its_order_over(parts: Parts) -> None:
    runner = Runner(
        database=parts.database,
        driver=parts.driver,
        stores=parts.stores,
        breaker=Breaker(open_seconds=0),
        catalog=load_catalog(None),
        sandbox=False,
        storage_prefix="",
        pending_lease_seconds=1,
        in_flight_max=4,
        join_within_seconds=0,
        waiters_max=8,
    )
    left = await parts.left()

    answer = await asyncio.wait_for(runner.wait(left.id, parts.caller.user_id, seconds=None), 10)

    assert answer.state == "pending"


async def test_a_former_storage_that_hangs_is_no_reason_not_to_fetch_from_a_source_that_lives(parts: Parts) -> None:
    left = await parts.left("quick")
    parts.source.answering["/quick.png"].set()
    parts.home.hangs_at = "read"
    async with parts.recovering():
        await eventually(lambda: parts.state(left), "completed")


async def test_a_generation_that_outlasts_its_lease_again_and_again_takes_one_place_and_is_driven_once(
    parts: Parts,
) -> None:
    slow = await parts.left("slow")
    async with parts.recovering():
        await eventually(parts.source.asked_for, 1)
        for attempts in range(2, 11):
            await parts.run_out(slow)
            await eventually(lambda: parts.attempts(slow), attempts)

        parts.source.answering["/slow.png"].set()

        await eventually(lambda: parts.state(slow), "completed")
        assert parts.source.asked == ["/slow.png"]


async def test_a_storage_that_hangs_while_it_erases_holds_up_nothing_else(parts: Parts) -> None:
    deleted = await parts.kept()
    async with parts.recovering():
        await eventually(lambda: parts.lives(deleted), "folder")
        parts.home.hangs_at = "delete"
        await parts.execute("UPDATE images SET deleted_at = now()")
        await asyncio.wait_for(parts.home.asked.wait(), 20)

        spooled, later = await parts.kept(), await parts.left()

        await eventually(lambda: parts.state(later), "unknown")
        await eventually(lambda: parts.lives(spooled), "folder")


async def test_a_storage_that_hangs_while_the_spool_is_emptied_holds_up_nothing_else(parts: Parts) -> None:
    spooled, deleted = await parts.kept(), await parts.kept()
    parts.home.hangs_at = "put"
    async with parts.recovering():
        await asyncio.wait_for(parts.home.asked.wait(), 20)

        later = await parts.left()
        await parts.execute(f"UPDATE images SET deleted_at = now() WHERE generation_id = '{deleted.id}'")

        await eventually(lambda: parts.state(later), "unknown")
        await eventually(lambda: parts.lives(deleted), None)
        assert await parts.lives(spooled) == "spool"


async def test_what_nobody_foresaw_of_one_generation_ends_neither_the_others_nor_recovery(parts: Parts) -> None:
    broken, beside = await parts.left(), await parts.left()
    parts.home.breaks_for = broken.storage_stem
    async with parts.recovering():
        await eventually(lambda: parts.state(beside), "unknown")

        later = await parts.left()

        await eventually(lambda: parts.state(later), "unknown")
        assert await parts.state(broken) == "pending"


async def test_when_it_is_cancelled_nothing_of_it_runs_on(parts: Parts) -> None:
    before = asyncio.all_tasks()
    await parts.left("silent")

    async with parts.recovering():
        await eventually(parts.source.asked_for, 1)

    # The host of the source, which runs beside us, doesn't know yet that nobody waits for it.
    left = [task for task in asyncio.all_tasks() - before if "Source.serve" not in repr(task)]
    assert left == []
