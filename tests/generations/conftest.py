"""What do the tests of this room share: the books, the storages that images are kept in, and a driver at work?"""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.accounts import budgets
from app.database.pool import Database
from app.generations.driver import Driver
from app.generations.leases import Leases
from app.generations.rehost import Rehost
from app.storage.base import Storage
from app.storage.folder import FolderStorage
from app.upstream.breaker import Breaker
from app.upstream.catalog import load_catalog
from app.upstream.client import Upstream
from app.upstream.download import Downloader
from app.upstream.room import Room
from tests.generations.kept_images import Books
from tests.generations.parts import Parts
from tests.makers import make_caller, make_stores
from tests.s3_server import S3Server
from tests.sandbox_server import RunningSandbox
from tests.storage.conftest import s3_server, s3_storage  # noqa: F401 - a fixture.


@pytest.fixture
async def books(emptied_database_url: str) -> AsyncIterator[Books]:
    database = Database(emptied_database_url, connections_max=5, timeout_seconds=10)
    async with database.transaction() as tx:
        caller = await make_caller(tx)
        await budgets.set_limits(tx, f"user:{caller.user_id}", {"images_total_max": 10_000})
        await budgets.set_limits(tx, "all", {"images_per_day_max": 10_000})
    yield Books(database, caller)
    await database.close()


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[FolderStorage]:
    storage = FolderStorage(tmp_path / "images")
    yield storage
    await storage.close()


@pytest.fixture(params=["folder", "bucket"])
async def storage(
    request: pytest.FixtureRequest,
    folder: FolderStorage,
    s3_server: S3Server,  # noqa: F811
) -> AsyncIterator[Storage]:
    """Either storage."""
    if request.param == "folder":
        yield folder
        return
    bucket = s3_storage(s3_server, s3_server.make_bucket(f"b-{secrets.token_hex(8)}"))
    yield bucket
    await bucket.close()


@pytest.fixture
async def parts(
    emptied_database_url: str, sandbox: RunningSandbox, folder: FolderStorage, tmp_path: Path
) -> AsyncIterator[Parts]:
    database = Database(emptied_database_url, connections_max=5, timeout_seconds=10)
    upstream = Upstream(
        base_url=sandbox.url,
        api_key="a-key",
        connect_timeout_seconds=5,
        read_timeout_seconds=10,
        total_timeout_seconds=10,
    )
    downloader = Downloader(allow_loopback_http=True, timeout_seconds=5)
    stores = make_stores(database, folder)
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
        leases=Leases(pending_seconds=2, generated_seconds=2, source_lifetime_seconds=3600),
    )
    async with database.transaction() as tx:
        caller = await make_caller(tx)
        await budgets.set_limits(tx, f"user:{caller.user_id}", {"images_total_max": 100})
        await budgets.set_limits(tx, "all", {"images_total_max": 100})
    yield Parts(database, tmp_path / "images", folder, upstream, stores, driver, caller)
    await rehost.close()
    await downloader.close()
    await upstream.close()
    await stores.close()
    await database.close()
