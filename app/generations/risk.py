"""Which paid pictures are not in storage yet, and until when can they still be fetched?"""

import math
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database.tables import generations


@dataclass(frozen=True)
class AtRisk:
    """Generations that upstream has made and that are not kept yet, and the seconds until the first source expires.

    Negative once it has expired; infinite when there is none.
    """

    generations: int
    seconds: float


async def at_risk(connection: AsyncConnection) -> AtRisk:
    """Return what would be lost if nothing could be fetched or kept from now on, by the database's clock."""
    first_end = func.min(generations.c.source_expires_at)
    query = select(func.count(), func.extract("epoch", first_end - func.now())).where(
        # The second for the index over what is running.
        generations.c.state == "generated",
        generations.c.lease_until.is_not(None),
    )
    count, seconds = (await connection.execute(query)).one()
    return AtRisk(count, math.inf if seconds is None else float(seconds))


async def source_expired(connection: AsyncConnection, generation_id: UUID) -> bool:
    """Return whether a generation's source has expired by the database's clock; False while that is not known."""
    expired = select(generations.c.source_expires_at < func.now()).where(generations.c.id == generation_id)
    return bool((await connection.execute(expired)).scalar())
