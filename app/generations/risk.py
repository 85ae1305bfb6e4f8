"""Which paid pictures are not in storage yet, and until when can they still be fetched?"""

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database.tables import generations


async def source_expired(connection: AsyncConnection, generation_id: UUID) -> bool:
    """Return whether a generation's source has expired by the database's clock; False while that is not known."""
    expired = select(generations.c.source_expires_at < func.now()).where(generations.c.id == generation_id)
    return bool((await connection.execute(expired)).scalar())
