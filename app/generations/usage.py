"""Who spent what?"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True)
class Usage:
    """What one user had of one model in one UTC month. Micros are what the installation paid or may have to pay.

    `held` is what runs or is unknown, `lost` what was paid and not delivered; `settled` was delivered.
    """

    user: str
    model: str
    images_settled: int
    micros_settled: int
    images_held: int
    micros_held: int
    images_lost: int
    micros_lost: int


async def usage_of(connection: AsyncConnection, month: date) -> Sequence[Usage]:
    """Return the usage of the month that `month` lies in, by user and model, without what the budgets don't count."""
    rows = await connection.execute(
        text(
            "SELECT u.name AS user, g.model,"
            " COALESCE(sum(g.settled_images) FILTER (WHERE g.state = 'completed'), 0) AS images_settled,"
            " COALESCE(sum(g.settled_micros) FILTER (WHERE g.state = 'completed'), 0) AS micros_settled,"
            " COALESCE(sum(g.held_images) FILTER (WHERE g.settled_images IS NULL), 0) AS images_held,"
            " COALESCE(sum(g.held_micros) FILTER (WHERE g.settled_images IS NULL), 0) AS micros_held,"
            " COALESCE(sum(g.settled_images) FILTER (WHERE g.state = 'lost'), 0) AS images_lost,"
            " COALESCE(sum(g.settled_micros) FILTER (WHERE g.state = 'lost'), 0) AS micros_lost"
            " FROM generations g JOIN users u ON u.id = g.user_id"
            " WHERE g.counted"
            " AND date_trunc('month', g.day::timestamp) = date_trunc('month', CAST(:month AS timestamp))"
            " GROUP BY u.name, g.model ORDER BY u.name, g.model"
        ),
        {"month": month},
    )
    return [
        Usage(row["user"], row["model"], *(int(row[name]) for name in list(Usage.__dataclass_fields__)[2:]))
        for row in rows.mappings()
    ]
