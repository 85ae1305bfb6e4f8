"""What do the tests of this room share: a pool wide enough for crowds, and a connection of it?"""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database.pool import Database


@pytest.fixture
async def database(emptied_database_url: str) -> AsyncIterator[Database]:
    # Hundreds of orders at once wait here for a connection, on a machine that may be busy.
    opened = Database(emptied_database_url, connections_max=20, timeout_seconds=30)
    yield opened
    await opened.close()


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[AsyncConnection]:
    async with database.statement() as lent:
        yield lent
