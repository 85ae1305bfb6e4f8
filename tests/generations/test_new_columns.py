"""Does a process that has run for a while go on when a newer release brings columns to its tables?

The driver of Postgres prepares a statement that it was asked for a few times. One whose answer would have more columns
than it had then is refused, on that connection for ever: the answer to a paid order would find no row to be kept in.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from app.accounts import budgets
from app.accounts.keys import Caller
from app.database.pool import Database
from app.database.tables import metadata
from app.generations import images, records
from app.generations.records import Held, Move
from app.storage.folder import FolderStorage
from tests.makers import PRICE_MICROS, make_caller, make_image, make_stores, move, reserve

pytestmark = pytest.mark.anyio

# psycopg prepares at the sixth.
TIMES = 8


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """One connection, which every statement goes over."""
    opened = Database(database_url, connections_max=1, timeout_seconds=10)
    yield opened
    await opened.close()


async def order_and_settle(database: Database, caller: Caller, folder: Path) -> None:
    """One generation's whole life, a take-over by recovery and a deletion included."""
    async with database.statement() as connection:
        held = await reserve(connection, caller, lease_seconds=-1)
        assert isinstance(held, Held)
        (claimed,) = await records.claim(connection, lease_seconds=60, batch_max=1)
        generation_id = claimed.id
        generated = Move("generated", leaving=("pending",), source_urls=["https://a.example"], lease_seconds=60)
        assert await move(connection, generation_id, generated) is not None
        picture = make_image(generation_id)
        completed = Move("completed", leaving=("generated",), settled=(1, PRICE_MICROS), pictures=[picture])
        assert await move(connection, generation_id, completed) is not None
        found = await records.find(connection, generation_id, user_id=caller.user_id)
        assert found is not None
        assert found.state == "completed"
        assert await images.find(connection, picture.id) is not None
        await budgets.gauges_of(connection, caller.scopes)
    await images.delete(database, make_stores(database, FolderStorage(folder)), found)


async def add_columns(database_url: str) -> None:
    """Give every table a column, over a connection of its own: altered over ours, the driver would prepare anew."""
    newer = Database(database_url, connections_max=1, timeout_seconds=10)
    async with newer.transaction() as tx:
        for table in metadata.tables:
            await tx.execute(text(f"ALTER TABLE {table} ADD COLUMN of_a_newer_release int NOT NULL DEFAULT 0"))
    await newer.close()


async def test_statements_that_were_prepared_go_on_when_tables_get_new_columns(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    async with database.transaction() as tx:
        caller = await make_caller(tx)
        await budgets.set_limits(tx, f"user:{caller.user_id}", {"images_total_max": 100})
    for _ in range(TIMES):
        await order_and_settle(database, caller, tmp_path)

    await add_columns(database_url)

    await order_and_settle(database, caller, tmp_path)
