"""What do the tests of this room share: the books, and the storages that images are kept in?"""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.accounts import budgets
from app.database.pool import Database
from app.storage.base import Storage
from app.storage.folder import FolderStorage
from tests.generations.kept_images import Books
from tests.makers import make_caller
from tests.s3_server import S3Server
from tests.storage.conftest import s3_server, s3_storage  # noqa: F401 - a fixture.


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    database = Database(database_url, connections_max=5, timeout_seconds=10)
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
