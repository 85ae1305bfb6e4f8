"""How do the tests of this room set a scope's limits, and read what it has used?"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import budgets
from app.database.pool import Database


async def set_limits(database: Database, scope: str, **limits: int | None) -> None:
    """Set these limits of a scope, in a transaction of their own; None takes one away."""
    async with database.transaction() as tx:
        await budgets.set_limits(tx, scope, limits)


async def row_of(connection: AsyncConnection, scope: str) -> dict[str, int]:
    """The scope's row in `budgets`; there must be one."""
    found = await connection.execute(text("SELECT * FROM budgets WHERE scope = :scope"), {"scope": scope})
    return dict(found.mappings().one())
