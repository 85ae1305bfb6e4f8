"""What do tests share: a real Postgres, a real service on a port, and a sandbox as its upstream?"""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psycopg
import pytest
import structlog
from psycopg import sql
from sqlalchemy.engine import make_url

from app.database.embedded import open_embedded
from app.database.pool import Database
from app.database.schema import migrate
from app.database.tables import metadata
from tests.sandbox_server import RunningSandbox, running_sandbox
from tests.service import Service, running_service

T = TypeVar("T")

_TEMPLATE = "imagekeep_template"
# What the test before left open must not go on: as DROP DATABASE ... WITH (FORCE) does it.
_LEAVE = """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""
_EMPTY = "; ".join(f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> Iterator[None]:
    """structlog's own default draws every local of a crash, keys too, and takes seconds for it."""
    structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def copy_cluster(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """What makes a data folder with a private Postgres that has run, and has an empty database.

    Copied, for initdb takes 2 s of CPU each time.
    """
    made = tmp_path_factory.mktemp("cluster") / "made"
    open_embedded(made, role="serve", durable=False).close()

    def copy(data_dir: Path) -> Path:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", made, data_dir], check=True)
        return data_dir

    return copy


@pytest.fixture(scope="session")
def postgres_url(copy_cluster: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Postgres of this test process's own, with a migrated template database. Not durable, so it is fast."""
    data_dir = copy_cluster(tmp_path_factory.mktemp("postgres") / "data")
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        _execute(postgres.url, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_TEMPLATE)))
        migrate(_at(postgres.url, _TEMPLATE))
        yield postgres.url


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """A fresh, migrated database for one test."""
    with _database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str) -> Iterator[str]:
    """A fresh, migrated database for the tests of one file."""
    with _database(postgres_url) as url:
        yield url


@contextmanager
def _database(postgres_url: str) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    _execute(
        postgres_url,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(_TEMPLATE)),
    )
    yield _at(postgres_url, name)
    _execute(postgres_url, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def shared_database_url(postgres_url: str) -> str:
    """The one database that `emptied_database_url` empties; it goes with its server."""
    name = f"shared_{uuid4().hex}"
    _execute(
        postgres_url,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(_TEMPLATE)),
    )
    return _at(postgres_url, name)


@pytest.fixture
def emptied_database_url(shared_database_url: str) -> str:
    """A migrated database without a row, which takes a tenth of the time of a fresh one.

    For tests that change nothing but rows, and count neither commits nor connections: others were here before.
    """
    _execute(shared_database_url, sql.SQL(f"{_LEAVE}; {_EMPTY}").format())
    return shared_database_url


@pytest.fixture
def on_database(database_url: str) -> Callable[[Callable[[Database], Awaitable[T]]], T]:
    """Run a coroutine function on a pool of its own, from a test that is not async."""

    def run(work: Callable[[Database], Awaitable[T]]) -> T:
        async def opened() -> T:
            database = Database(database_url, connections_max=8, timeout_seconds=10)
            try:
                return await work(database)
            finally:
                await database.close()

        return asyncio.run(opened())

    return run


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[RunningSandbox]:
    """A sandbox with blank pictures: drawing one takes longer than all the rest of an order."""
    with running_sandbox(draw=False) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared_sandbox: RunningSandbox) -> RunningSandbox:
    """The sandbox, with its witness set back to nothing asked."""
    shared_sandbox.reset()
    return shared_sandbox


@pytest.fixture
def service(database_url: str, sandbox: RunningSandbox, tmp_path: Path) -> Iterator[Service]:
    """The whole application under a real uvicorn on a port, in this process, with one user and key."""
    with running_service(database_url=database_url, upstream_url=sandbox.url, data_dir=tmp_path / "data") as running:
        yield running


def _at(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _execute(url: str, statement: sql.Composed) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement)
