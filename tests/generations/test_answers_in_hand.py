"""Is what one process alone knows of a paid order held until it is written down, whatever stands in the way?

The driver's way to Postgres goes through a proxy, its home is a folder that goes away, and a trigger refuses statements
with an error that nobody foresaw. The rows are looked at past all of that.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from app.accounts import budgets
from app.accounts.keys import Caller
from app.database.pool import Database
from app.generations import records
from app.generations.driver import Driver
from app.generations.leases import Leases
from app.generations.records import Generation, Held, Move
from app.generations.recovery import recover_once
from app.generations.rehost import Rehost, RehostFailed
from app.generations.stores import Stores
from app.storage.folder import FolderStorage
from app.storage.s3 import S3Storage
from app.upstream.breaker import Breaker
from app.upstream.catalog import load_catalog
from app.upstream.client import Upstream
from app.upstream.download import Downloader
from app.upstream.room import Room
from tests.generations.parts import Parts
from tests.makers import make_caller, make_order, make_stores, move, reserve
from tests.s3_server import running_s3
from tests.sandbox_server import RunningSandbox
from tests.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

LEASE_SECONDS = 1.0
# A statement that fails as none is foreseen to: the schema is right, the row is right, and Postgres answers.
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not today'; END $$;
CREATE TRIGGER refuse BEFORE {what} FOR EACH ROW EXECUTE FUNCTION refuse()"""
MOVES = "UPDATE OF state ON generations"


@dataclass(frozen=True)
class Hands:
    """A driver whose database is behind `proxy` and whose home is `folder`, and the `books` as they really are."""

    driver: Driver
    stores: Stores
    proxy: TcpProxy
    folder: Path
    books: Database
    caller: Caller

    async def drive(self, prompt: str) -> "asyncio.Task[Generation]":
        async with self.books.statement() as connection:
            held = await reserve(connection, self.caller, make_order(prompt), lease_seconds=LEASE_SECONDS)
        assert isinstance(held, Held)
        return asyncio.create_task(self.driver.drive(held.generation))

    async def execute(self, statements: str) -> None:
        async with self.books.transaction() as connection:
            for statement in statements.split(";\n"):
                await connection.execute(text(statement))

    async def row(self) -> Generation:
        async with self.books.statement() as connection:
            (generation,) = await records.page(connection, limit=2)
        return generation

    async def lease_is_over(self) -> bool:
        async with self.books.statement() as connection:
            return bool((await connection.execute(text("SELECT lease_until < now() FROM generations"))).scalar())

    def take_home_away(self) -> None:
        self.folder.rename(self.folder.with_name("away"))

    def bring_home_back(self) -> None:
        self.folder.with_name("away").rename(self.folder)


@pytest.fixture(params=[2**33])
async def hands(
    request: pytest.FixtureRequest, database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> AsyncIterator[Hands]:
    """Parametrized with the spool's limit; 0 is none."""
    url = make_url(database_url)
    books = Database(database_url, connections_max=5, timeout_seconds=10)
    with TcpProxy(url.host or "", url.port or 0) as proxy:
        behind = url.set(port=proxy.port).render_as_string(hide_password=False)
        database = Database(behind, connections_max=5, timeout_seconds=1)
        home = FolderStorage(tmp_path / "home")
        upstream = Upstream(
            base_url=sandbox.url,
            api_key="a-key",
            connect_timeout_seconds=5,
            read_timeout_seconds=10,
            total_timeout_seconds=10,
        )
        downloader = Downloader(allow_loopback_http=True, timeout_seconds=5)
        stores = make_stores(database, home, spool_bytes_max=request.param)
        rehost = Rehost(
            downloader=downloader,
            stores=stores,
            room=Room(bytes_max=10**7),
            pixels_max=10**8,
            in_flight_max=4,
            threads_max=2,
        )
        driver = Driver(
            database=database,
            upstream=upstream,
            breaker=Breaker(open_seconds=0),
            catalog=load_catalog(None),
            rehost=rehost,
            leases=Leases(pending_seconds=LEASE_SECONDS, generated_seconds=LEASE_SECONDS, source_lifetime_seconds=3600),
        )
        async with books.transaction() as tx:
            caller = await make_caller(tx)
            await budgets.set_limits(tx, f"user:{caller.user_id}", {"images_total_max": 100})
        yield Hands(driver, stores, proxy, tmp_path / "home", books, caller)
        for part in (rehost, downloader, upstream, stores, home, database, books):
            await part.close()


async def until(condition: Callable[[], bool | Awaitable[bool]], *, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ("a cat", "completed"),
        ("a cat [[b64]]", "completed"),
        ("a cat [[status 403]]", "failed"),
        ("a cat [[drop]]", "unknown"),
    ],
)
async def test_an_error_of_the_database_that_nobody_foresaw_drops_no_answer(
    hands: Hands, sandbox: RunningSandbox, prompt: str, state: str
) -> None:
    await hands.execute(REFUSE.format(what=MOVES))
    with capture_logs() as lines:
        driving = await hands.drive(prompt)
        await until(lambda: len([line for line in lines if line["event"] == "move_failed"]) >= 2 or driving.done())
        kept = [path for path in hands.folder.rglob("*.png") if path.is_file()]
        await hands.execute("DROP TRIGGER refuse ON generations")
        ended = await driving

    failed = next(line for line in lines if line["event"] == "move_failed")
    assert (failed["log_level"], failed["sqlstate"], failed["detail"]) == ("error", "P0001", "not today")
    assert len(kept) == (state == "completed"), "it was stored before its row said so"
    assert (ended.state, sandbox.witness()["asked"]) == (state, 1)
    async with hands.books.statement() as connection:
        assert await budgets.differences(connection) == []


async def test_recovery_is_not_held_up_by_a_row_that_can_not_be_moved(hands: Hands) -> None:
    async with hands.books.statement() as connection:
        await reserve(connection, hands.caller, lease_seconds=-1)
    await hands.execute(REFUSE.format(what=MOVES))

    async with asyncio.timeout(10):
        recovered = await recover_once(hands.books, hands.driver, hands.stores, lease_seconds=LEASE_SECONDS)

    assert (recovered.claimed, recovered.ended) == (1, 0)
    assert (await hands.row()).state == "pending"


@pytest.mark.parametrize("prompt", ["a cat", "a cat [[b64]]"])
@pytest.mark.parametrize("recovered", [False, True])
async def test_a_picture_outlives_that_database_and_storage_are_both_away_for_longer_than_the_lease(
    hands: Hands, sandbox: RunningSandbox, prompt: str, recovered: bool
) -> None:
    driving = await hands.drive(prompt + " [[delay 0.5]]")
    await until(lambda: sandbox.witness()["asked"] > 0)
    hands.proxy.refuse()
    hands.take_home_away()
    await until(hands.lease_is_over)
    # Longer than any try or pause that is under way when the lease ends.
    await asyncio.wait({driving}, timeout=2 * LEASE_SECONDS)
    if recovered:
        async with hands.books.statement() as connection:
            await records.claim(connection, lease_seconds=60, batch_max=8)
            await move(connection, (await hands.row()).id, records.Move("unknown", leaving=("pending",)))

    hands.proxy.pass_through()
    hands.bring_home_back()
    ended = await driving

    assert (ended.state, len(ended.images), sandbox.witness()["asked"]) == ("completed", 1, 1)
    async with hands.books.statement() as connection:
        assert await budgets.differences(connection) == []


@pytest.mark.parametrize("hands", [0], indirect=True)
async def test_sources_that_could_not_be_committed_are_as_soon_as_the_database_is_back(
    hands: Hands, sandbox: RunningSandbox
) -> None:
    driving = await hands.drive("a cat [[delay 0.5]]")
    await until(lambda: sandbox.witness()["asked"] > 0)
    hands.proxy.refuse()
    hands.take_home_away()
    await until(lambda: sandbox.witness()["pictures"]["asked"] > 0)

    hands.proxy.pass_through()
    left = await driving
    hands.bring_home_back()

    assert left.state == "generated", "recovery goes on with it"
    assert left.source_urls


async def test_a_spool_that_refuses_a_picture_for_what_nobody_foresaw_drops_none(
    hands: Hands, sandbox: RunningSandbox
) -> None:
    await hands.execute(REFUSE.format(what="INSERT ON spool"))
    hands.take_home_away()
    with capture_logs() as lines:
        driving = await hands.drive("a cat [[b64]]")
        await until(lambda: any(line["event"] == "rehost_failed" for line in lines) or driving.done())

    hands.bring_home_back()
    ended = await driving

    assert (ended.state, ended.images[0].storage) == ("completed", "folder")


# A storage that hangs


@pytest.fixture
async def hung(parts: Parts, tmp_path: Path) -> AsyncIterator[Driver]:
    """A driver whose storage takes every question and answers none for a minute."""
    with running_s3(tmp_path / "s3") as server:
        bucket = S3Storage(
            server.bucket,
            endpoint_url=server.url,
            region="us-east-1",
            path_style=True,
            access_key_id=server.access_key_id,
            secret_access_key=server.secret_access_key,
            read_timeout_seconds=60,
        )
        downloader = Downloader(allow_loopback_http=True, timeout_seconds=5)
        stores = make_stores(parts.database, bucket)
        rehost = Rehost(
            downloader=downloader,
            stores=stores,
            room=Room(bytes_max=10**7),
            pixels_max=10**8,
            in_flight_max=4,
            threads_max=2,
        )
        server.freeze()
        yield Driver(
            database=parts.database,
            upstream=parts.upstream,
            breaker=Breaker(open_seconds=0),
            catalog=load_catalog(None),
            rehost=rehost,
            leases=Leases(pending_seconds=LEASE_SECONDS, generated_seconds=LEASE_SECONDS, source_lifetime_seconds=3600),
        )
        server.thaw()
        for part in (rehost, downloader, stores, bucket):
            await part.close()


async def test_recovery_leaves_a_row_to_the_next_round_when_storage_hangs(parts: Parts, hung: Driver) -> None:
    generation = await parts.reserve(lease_seconds=-1)
    async with parts.database.statement() as connection:
        (claimed,) = await records.claim(connection, lease_seconds=60, batch_max=1)
    began = time.monotonic()

    left = await hung.drive(claimed)

    assert (left.id, left.state) == (generation.id, "pending")
    assert time.monotonic() - began < 10


async def test_a_persons_word_is_not_taken_while_storage_hangs(parts: Parts, hung: Driver) -> None:
    await parts.reserve()
    unknown = await parts.recovered()

    with pytest.raises(RehostFailed):
        async with asyncio.timeout(10):
            await hung.resolve(unknown, billed=False, by="ada")


@pytest.mark.parametrize("hands", [0], indirect=True)
async def test_a_runner_lets_go_of_a_picture_whose_order_a_person_has_ended(
    hands: Hands, sandbox: RunningSandbox
) -> None:
    driving = await hands.drive("a cat [[b64]] [[delay 0.5]]")
    await until(lambda: sandbox.witness()["asked"] > 0)
    hands.take_home_away()
    await until(hands.lease_is_over)
    row = await hands.row()
    async with hands.books.statement() as connection:
        await move(connection, row.id, Move("unknown", leaving=("pending",)))
        word = Move("failed", leaving=("unknown",), settled=(0, 0), failure_code="upstream_failed")
        await move(connection, row.id, word)

    # Between two tries lie 23 seconds at most.
    ended = await asyncio.wait_for(driving, 30)

    assert ended.state == "failed"
    hands.bring_home_back()
