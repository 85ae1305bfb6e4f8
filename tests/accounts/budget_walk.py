"""Do the statements and a model of them in Python ever disagree, over thousands of steps and a clock that jumps?

The model is written from the words of docs/architecture.md, not from the SQL. It found the first version of the SQL
wrong: counters drifted when two orders straddled midnight.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import budgets
from app.accounts.keys import Caller
from app.database.pool import Database
from app.generations.records import Held, Image, Move, OverLimit, State
from app.generations.repeats import Joined
from tests.makers import PRICE_MICROS, make_caller, make_image, make_order, move, reserve


@dataclass
class ModelGeneration:
    scopes: tuple[str, ...]
    day: date
    images: int
    state: State = "pending"
    settled_images: int | None = None

    def counts_for(self, scope: str) -> int:
        if self.state == "failed" or (self.state == "lost" and scope != "all"):
            return 0
        return self.images if self.settled_images is None else self.settled_images


@dataclass
class ModelBudget:
    limits: dict[str, int]
    day: date = date(1970, 1, 1)


@dataclass
class Model:
    budgets: dict[str, ModelBudget] = field(default_factory=dict)
    generations: dict[UUID, ModelGeneration] = field(default_factory=dict)

    def used(self, scope: str, day: date) -> dict[str, int]:
        mine = [generation for generation in self.generations.values() if scope in generation.scopes]
        month = [one for one in mine if (one.day.year, one.day.month) == (day.year, day.month)]
        return {
            "in_flight": sum(one.state == "pending" for one in mine),
            "images_per_day": sum(one.counts_for(scope) for one in mine if one.day == day),
            "images_per_month": sum(one.counts_for(scope) for one in month),
            "micros_per_month": sum(one.counts_for(scope) for one in month) * PRICE_MICROS,
            "images_total": sum(one.counts_for(scope) for one in mine),
        }

    def reserve(self, scopes: tuple[str, ...], images: int, now: datetime) -> date | None:
        """The day the order counts in; None when a limit refuses it."""
        limited = {scope: self.budgets[scope] for scope in scopes if scope in self.budgets}
        day = max([now.date(), *(budget.day for budget in limited.values())])
        added = {"in_flight": 1, "micros_per_month": images * PRICE_MICROS}
        for scope, budget in limited.items():
            used = self.used(scope, day)
            if any(used[name] + added.get(name, images) > maximum for name, maximum in budget.limits.items()):
                return None
        for budget in limited.values():
            budget.day = day
        return day


async def walk_statements(database_url: str, *, steps: int, seed: int) -> "Walk":
    """Walk so many steps on an empty database, and return where that led. AssertionError at the first disagreement."""
    # One connection is lent for the whole walk.
    database = Database(database_url, connections_max=2, timeout_seconds=3600)
    try:
        async with database.statement() as connection:
            walk = Walk(random.Random(seed), database, connection)
            await walk.prepare()
            for _ in range(steps):
                await walk.step()
            return walk
    finally:
        await database.close()


class Walk:
    def __init__(self, chance: random.Random, database: Database, connection: AsyncConnection) -> None:
        self.chance = chance
        self.database = database
        self.connection = connection
        self.model = Model()
        self.now = datetime(2026, 11, 29, 22, tzinfo=UTC)
        self.callers: list[Caller] = []
        self.joined = self.refused = self.midnights = self.month_ends = self.steps_back = 0

    async def prepare(self) -> None:
        self.callers = [await make_caller(self.connection, name) for name in ("ada", "bob", "cleo")]
        # `cleo` has no limits of her own, so that orders pass through fewer scopes too.
        for scope in ("all", *(f"user:{caller.user_id}" for caller in self.callers[:2])):
            await self._set_limits(scope)

    async def step(self) -> None:
        steps: list[tuple[Callable[[], object], int]] = [
            (self._order, 10),
            (self._move, 12),
            (self._turn_clock, 4),
            (self._relimit, 1),
        ]
        (chosen,) = self.chance.choices([step for step, _ in steps], [weight for _, weight in steps])
        await chosen()  # type: ignore[misc]
        await self._compare()

    async def _order(self) -> None:
        caller = self.chance.choice(self.callers)
        images = self.chance.choice([1, 1, 1, 2, 3])
        retry_count = self.chance.choice([0, 0, 0, 1, 2])
        answer = await reserve(
            self.connection,
            caller,
            make_order(n=images),
            retry_count=retry_count,
            join_within_seconds=300,
            now=self.now,
        )
        if isinstance(answer, Joined):
            # Nothing was held for it: the comparison after this step sees that.
            joined = self.model.generations[answer.generation_id]
            assert retry_count > 0 or joined.state in ("unknown", "lost")
            assert (joined.scopes, joined.images) == (caller.scopes, images)
            assert joined.state != "failed"
            self.joined += 1
            return
        day = self.model.reserve(caller.scopes, images, self.now)
        if isinstance(answer, OverLimit):
            assert day is None, f"the statement refused {answer.gauge}, the model did not"
            self.refused += 1
            return
        assert isinstance(answer, Held)
        assert day is not None, "the model refused, the statement did not"
        self.model.generations[answer.generation.id] = ModelGeneration(caller.scopes, day, images)

    async def _move(self) -> None:
        if not self.model.generations:
            return
        # Mostly one that can still move, so that limits leave room for new orders; now and then one that can't.
        standing = [
            item for item in self.model.generations.items() if item[1].state not in ("completed", "failed", "lost")
        ]
        choosable = standing if standing and self.chance.random() < 0.8 else list(self.model.generations.items())
        generation_id, modelled = self.chance.choice(choosable[-40:])
        goal: State = self.chance.choice(["generated", "completed", "failed", "unknown", "lost"])
        leaving: tuple[State, ...] = self.chance.choice(
            [("pending",), ("generated",), ("pending", "generated", "unknown"), ("unknown",)]
        )
        delivered = self.chance.randint(1, modelled.images)
        settled = {"completed": delivered, "failed": 0, "lost": modelled.images}.get(goal)
        pictures: list[Image] = []
        if goal == "completed":
            pictures = [make_image(generation_id, position=position) for position in range(delivered)]
        to = Move(
            goal,
            leaving=leaving,
            settled=None if settled is None else (settled, settled * PRICE_MICROS),
            source_urls=["https://example.com/a.png"],
            lease_seconds=90,
            pictures=pictures,
        )
        moved = await move(self.connection, generation_id, to, now=self.now)
        assert (moved is not None) == (modelled.state in leaving)
        if moved is not None:
            modelled.state, modelled.settled_images = goal, settled

    async def _turn_clock(self) -> None:
        before = self.now
        if self.chance.random() < 0.2:
            # To just before a midnight: orders that straddle one, there and back, are where counters went wrong.
            self.now = before.replace(hour=23, minute=58)
        minutes = self.chance.choice([1, 5, 5, 30, 60, 120, 600, 24 * 60, -5, -5, -180])
        self.now += timedelta(minutes=minutes, seconds=self.chance.randint(0, 59))
        self.midnights += self.now.date() > before.date()
        self.month_ends += (self.now.year, self.now.month) > (before.year, before.month)
        self.steps_back += self.now < before

    async def _relimit(self) -> None:
        await self._set_limits(self.chance.choice(list(self.model.budgets)))

    async def _set_limits(self, scope: str) -> None:
        limits = {
            "in_flight": self.chance.randint(3, 12),
            "images_per_day": self.chance.randint(5, 60),
            "images_per_month": self.chance.randint(40, 400),
            "micros_per_month": self.chance.randint(40, 400) * PRICE_MICROS,
            "images_total": 10**6,
        }
        async with self.database.transaction() as tx:
            await budgets.set_limits(tx, scope, {f"{name}_max": value for name, value in limits.items()})
        if scope not in self.model.budgets:
            # A new row counts from the database's own day on; the walk's clock is the one that matters here.
            await self.connection.execute(
                text("UPDATE budgets SET day = 'epoch' WHERE scope = :scope"), {"scope": scope}
            )
            self.model.budgets[scope] = ModelBudget(limits)
        self.model.budgets[scope].limits = limits

    async def _compare(self) -> None:
        rows = await self.connection.execute(text("SELECT * FROM budgets"))
        for row in rows.mappings():
            scope = row["scope"]
            assert row["day"] == self.model.budgets[scope].day, scope
            counted = {
                "in_flight": row["in_flight"],
                "images_per_day": row["images_day"],
                "images_per_month": row["images_month"],
                "micros_per_month": row["micros_month"],
                "images_total": row["images_total"],
            }
            assert counted == self.model.used(scope, row["day"]), scope
        assert await budgets.differences(self.connection) == []
