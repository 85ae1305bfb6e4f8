"""The storages under test: a folder, and a bucket of a real S3 server."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.database.pool import Database
from app.generations.spool import Spool
from app.storage.base import Storage
from app.storage.deferred import DeferredStorage
from app.storage.folder import FolderStorage
from app.storage.s3 import S3Storage
from tests.s3_server import S3Server, running_s3


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests that leave it running; each takes a bucket of its own."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
async def bucket(s3_server: S3Server) -> AsyncIterator[S3Storage]:
    """A storage on a new, empty bucket."""
    storage = s3_storage(s3_server, s3_server.make_bucket(f"b-{secrets.token_hex(8)}"))
    yield storage
    await storage.close()


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[FolderStorage]:
    """A storage on a new folder, `tmp_path/pictures`."""
    storage = FolderStorage(tmp_path / "pictures")
    yield storage
    await storage.close()


@pytest.fixture
async def spool(emptied_database_url: str) -> AsyncIterator[Spool]:
    """The spool of an empty database, over one connection: so nothing may hold it between two chunks."""
    database = Database(emptied_database_url, connections_max=1, timeout_seconds=10)
    yield Spool(database)
    await database.close()


@pytest.fixture
async def deferred(s3_server: S3Server) -> AsyncIterator[DeferredStorage]:
    """A storage on a new, empty bucket, which is opened when it is first needed."""
    name = s3_server.make_bucket(f"d-{secrets.token_hex(8)}")
    storage = DeferredStorage(f"s3:{name}", lambda: s3_storage(s3_server, name))
    yield storage
    await storage.close()


@pytest.fixture(params=["folder", "bucket", "deferred", "spool"])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Any storage: what is promised of one is promised of all."""
    storage: Storage = request.getfixturevalue(request.param)
    return storage


def s3_storage(server: S3Server, bucket: str, *, secret_access_key: str | None = None) -> S3Storage:
    """A storage on one bucket of the server."""
    return S3Storage(
        bucket,
        endpoint_url=server.url,
        region="us-east-1",
        path_style=True,
        access_key_id=server.access_key_id,
        secret_access_key=secret_access_key or server.secret_access_key,
    )


async def whole(storage: Storage, key: str, *, start: int = 0, length: int | None = None) -> bytes:
    """The bytes that `read` gives, in one piece."""
    return b"".join([chunk async for chunk in await storage.read(key, start=start, length=length)])
