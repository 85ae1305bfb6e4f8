"""The services under test: started once, and for each test with empty books and one new user.

Starting a service takes longer than most of these tests; emptying its tables takes milliseconds.
They end with this package: a service in a thread sets the metrics of the whole process, and once set them to nothing
between two looks of a test elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from sqlalchemy.engine import make_url
from uuid_utils.compat import uuid7

from app.accounts.keys import digest_of, make_key
from tests.api.surfaces import SURFACES, Surface
from tests.sandbox_server import RunningSandbox
from tests.service import Service, running_service

Books = psycopg.Connection[dict[str, Any]]


@dataclass(frozen=True)
class SharedService(Service):
    """A service whose books are looked into over one kept connection: making one takes longer than looking."""

    books: Books = field(repr=False)

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """As Service.rows."""
        cursor = self.books.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="package")
def shared_service(
    postgres_url: str, shared_sandbox: RunningSandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedService]:
    with (
        _database(postgres_url) as database_url,
        running_service(
            database_url=database_url,
            upstream_url=shared_sandbox.url,
            data_dir=tmp_path_factory.mktemp("shared"),
            # Nothing here is left to recovery.
            recovery_interval_seconds=30,
        ) as running,
        _connected(database_url) as books,
    ):
        yield SharedService(**vars(running), books=books)


@pytest.fixture(scope="package")
def shared_hasty_service(
    postgres_url: str, shared_sandbox: RunningSandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedService]:
    with (
        _database(postgres_url) as database_url,
        running_service(
            database_url=database_url,
            upstream_url=shared_sandbox.url,
            data_dir=tmp_path_factory.mktemp("hasty"),
            upstream_timeout_seconds=0.5,
            pending_lease_seconds=5,
            generated_lease_seconds=1,
        ) as running,
        _connected(database_url) as books,
    ):
        yield SharedService(**vars(running), books=books)


@pytest.fixture
def service(shared_service: SharedService, sandbox: RunningSandbox) -> Service:
    """The service with empty books, and one new user without limits."""
    return _emptied(shared_service)


@pytest.fixture
def hasty_service(shared_hasty_service: SharedService, sandbox: RunningSandbox) -> Service:
    """As `service`; waits half a second for upstream, and a second for a picture before recovery takes over."""
    return _emptied(shared_hasty_service)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Where a service of the test's own keeps its images."""
    return tmp_path / "data"


@pytest.fixture(params=SURFACES, ids=lambda surface: surface.name)
def surface(request: pytest.FixtureRequest) -> Surface:
    """Each wire format in turn."""
    chosen: Surface = request.param
    return chosen


def _emptied(running: SharedService) -> Service:
    books = running.books
    key = make_key()
    user_id, api_key_id = uuid7(), uuid7()
    with books.transaction():
        books.execute("DELETE FROM images; DELETE FROM generations; DELETE FROM budgets")
        books.execute("DELETE FROM api_keys; DELETE FROM users")
        books.execute("INSERT INTO users (id, name) VALUES (%s, 'first')", (user_id,))
        books.execute(
            "INSERT INTO api_keys (id, user_id, digest, last_four) VALUES (%s, %s, %s, %s)",
            (api_key_id, user_id, digest_of(key), key[-4:]),
        )
    running.client.headers["authorization"] = f"Bearer {key}"
    return replace(running, key=key)


def _connected(database_url: str) -> Books:
    return psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True, row_factory=dict_row)


@contextmanager
def _database(postgres_url: str) -> Iterator[str]:
    name = f"api_{uuid4().hex}"
    template = sql.Identifier("imagekeep_template")
    server = postgres_url.replace("+psycopg", "")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), template))
    yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
