"""How do tests get the whole service on a real port, and look into its database?"""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import uvicorn
from psycopg.rows import dict_row

from app.accounts import budgets, keys
from app.database.pool import Database
from app.main import create_app
from app.settings import Settings
from app.wiring import Neighbours

# What upstream is told. Unlike anything else in the tests, so that a leak can be searched for.
TT_API_KEY = "tt-canary-0123456789abcdef"


@dataclass(frozen=True)
class Service:
    """The application at work. `client` speaks for the first user, with `key`."""

    url: str
    database_url: str = field(repr=False)
    key: str = field(repr=False)
    client: httpx.Client

    def order(self, prompt: str, *, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """POST /images as the first user."""
        return self.client.post("/images", json={"prompt": prompt, **body}, headers=headers)

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """What the database holds, asked on a connection of the test's own."""
        return rows(self.database_url, query, *parameters)

    def generation(self) -> dict[str, Any]:
        """The one generation there is."""
        (generation,) = self.rows("SELECT * FROM generations")
        return generation


def rows(database_url: str, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run one statement and return its rows as dicts; none for a statement that returns nothing."""
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True, row_factory=dict_row) as connection:
        cursor = connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


def add_user(database_url: str, name: str = "ada", **limits: int | None) -> str:
    """Add a user with these limits (`images_per_day_max=3`) and return a key of theirs."""

    async def work() -> str:
        database = Database(database_url, connections_max=1, timeout_seconds=10)
        try:
            async with database.transaction() as tx:
                user = await keys.add_user(tx, name)
                if limits:
                    await budgets.set_limits(tx, f"user:{user.id}", limits)
                return (await keys.create_key(tx, user))[1]
        finally:
            await database.close()

    return asyncio.run(work())


def differences(database_url: str) -> list[Any]:
    """Recount every budget; what `imagekeep reconcile` would print."""

    async def work() -> list[Any]:
        database = Database(database_url, connections_max=1, timeout_seconds=10)
        try:
            async with database.statement() as connection:
                return list(await budgets.differences(connection))
        finally:
            await database.close()

    return asyncio.run(work())


@contextmanager
def running_service(
    *,
    database_url: str,
    upstream_url: str,
    data_dir: Path,
    limits: dict[str, int | None] | None = None,
    **settings: Any,
) -> Iterator[Service]:
    """The application under a real uvicorn in a thread, with a real upstream as far as it can tell.

    Settings are given by their field names. Ready when this yields; drained and closed when it returns.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    chosen: dict[str, Any] = {
        "tt_api_key": TT_API_KEY,
        "tt_api_base_url": upstream_url,
        "allow_private_image_hosts": True,
        "data_dir": data_dir,
        "public_url": url,
        "recovery_interval_seconds": 0.2,
        # Tests order faults one after another; a breaker that opened would be the next test's surprise.
        "breaker_seconds": 0,
        **settings,
    }
    app = create_app(Settings(_env_file=None, **chosen), Neighbours(database_url))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, access_log=False, server_header=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="service", daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.001)
        key = add_user(database_url, "first", **(limits or {}))
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, verify=False, trust_env=False, timeout=60) as client:
            yield Service(url, database_url, key, client)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
    assert not thread.is_alive(), "the service did not stop"
