"""Who spent what, and what is held for whom?"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

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


@dataclass(frozen=True)
class Outstanding:
    """What is held and not settled yet: so many generations, their images and their micros."""

    generations: int
    images: int
    micros: int


async def outstanding_of(connection: AsyncConnection, user_id: UUID) -> tuple[Outstanding, Outstanding]:
    """Return what a user has running, and what is `unknown`, of whatever day it was held in.

    One statement, over what runs and what is unknown, however much there ever was.
    """
    figures = "SELECT count(*), COALESCE(sum(held_images), 0), COALESCE(sum(held_micros), 0) FROM generations"
    rows = await connection.execute(
        text(
            f"{figures} WHERE lease_until IS NOT NULL AND counted AND user_id = :user_id UNION ALL"
            f" {figures} WHERE state = 'unknown' AND counted AND user_id = :user_id"
        ),
        {"user_id": user_id},
    )
    running, unknown = (Outstanding(*map(int, row)) for row in rows)
    return running, unknown


@dataclass(frozen=True)
class AllUnknown:
    """Every `unknown` generation of the installation, and how long ago the oldest was ordered; 0 without any."""

    generations: int
    micros: int
    oldest_seconds: float


async def all_unknown(connection: AsyncConnection) -> AllUnknown:
    """Return what waits for a person. One statement, over what is unknown only."""
    row = (
        await connection.execute(
            text(
                "SELECT count(*), COALESCE(sum(held_micros), 0),"
                " COALESCE(extract(epoch FROM now() - min(created_at)), 0)"
                " FROM generations WHERE state = 'unknown' AND counted"
            )
        )
    ).one()
    return AllUnknown(int(row[0]), int(row[1]), float(row[2]))
