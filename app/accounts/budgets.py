"""What does an order cost, whose budgets does it come out of, and how do the counters stay true?

Every order counts in several scopes: `all`, its user, its key. A scope with a limit has one row in `budgets`, and two
statements of generations/records.py move it: RESERVE holds before the paid call, MOVE settles or gives back after it.
The parts of those statements that are about budgets stand here; they are tried against a model in tests/accounts.

What a generation counts for, in a scope:

    pending, generated, unknown     what was held
    completed                       what was settled
    failed                          nothing
    lost                            what was held in `all`, whose money is gone; nothing elsewhere
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database.tables import budgets

# The moment of a statement: the database's clock, which every replica shares. Tests pass `now` instead.
MOMENT = "moment AS (SELECT COALESCE(CAST(:now AS timestamptz), now()) AS ts)"

# RESERVE's part. Reads `allowed` (one row when the order may go on) and `moment`; leaves `frame` (the day the order
# counts in), `gauges` (every limit it meets, before and after), `refusal` (the broken limit that lasts longest; no row
# if none is broken) and `held`.
HOLD = """
locked AS MATERIALIZED (
    -- Always in scope order: taken crosswise, the same rows deadlocked 117 times in one race.
    SELECT b.* FROM budgets b, allowed WHERE b.scope = ANY(CAST(:scopes AS text[])) ORDER BY b.scope FOR UPDATE OF b
),
frame AS (
    -- One day for all scopes, and never back: two orders that straddle midnight, or a clock that was set back, would
    -- else count in a window whose giving-back goes elsewhere.
    SELECT GREATEST(max(l.day), max((m.ts AT TIME ZONE 'UTC')::date)) AS day FROM moment m LEFT JOIN locked l ON true
),
raised AS (
    SELECT l.*, f.day AS new_day, m.ts,
        l.in_flight + 1 AS new_in_flight,
        CASE WHEN l.day = f.day THEN l.images_day ELSE 0 END AS old_images_day,
        CASE WHEN same.month THEN l.images_month ELSE 0 END AS old_images_month,
        CASE WHEN same.month THEN l.micros_month ELSE 0 END AS old_micros_month,
        clock.old AS old_request_clock,
        clock.old + make_interval(secs => 60.0 / NULLIF(l.requests_per_minute_max, 0)) AS new_request_clock
    FROM locked l CROSS JOIN frame f CROSS JOIN moment m
    CROSS JOIN LATERAL (
        SELECT date_trunc('month', l.day::timestamp) = date_trunc('month', f.day::timestamp) AS month
    ) same
    CROSS JOIN LATERAL (
        -- A clock that was set back leaves `request_clock` far ahead; LEAST keeps that from refusing for hours.
        SELECT GREATEST(LEAST(l.request_clock, m.ts + interval '60 s'), m.ts) AS old
    ) clock
),
gauges AS (
    SELECT r.scope, x.*,
        -- GREATEST takes no notice of NULL: what never resets would reset in a second.
        CASE WHEN x.resets_at IS NOT NULL THEN GREATEST(1, ceil(extract(epoch FROM x.resets_at - r.ts))) END::int
            AS resets_in_seconds
    FROM raised r CROSS JOIN LATERAL (VALUES
        ('in_flight', r.in_flight_max::bigint, r.in_flight::bigint, r.new_in_flight::bigint,
            r.new_in_flight > r.in_flight_max, r.ts + interval '2 s'),
        -- Used is what the clock is ahead by; it was rounded to microseconds. Refused, an order waits for room for one;
        -- allowed, it is told when all of them are free again.
        ('requests_per_minute', r.requests_per_minute_max,
            ceil(extract(epoch FROM r.old_request_clock - r.ts) * r.requests_per_minute_max / 60 - 0.01)::bigint,
            ceil(extract(epoch FROM r.new_request_clock - r.ts) * r.requests_per_minute_max / 60 - 0.01)::bigint,
            r.requests_per_minute_max = 0 OR r.new_request_clock > r.ts + interval '60 s' + interval '1 ms',
            CASE WHEN r.new_request_clock > r.ts + interval '60 s' + interval '1 ms'
                THEN r.new_request_clock - interval '60 s'
                ELSE COALESCE(r.new_request_clock, r.ts + interval '60 s') END),
        ('images_per_day', r.images_per_day_max, r.old_images_day, r.old_images_day + :images,
            r.old_images_day + :images > r.images_per_day_max,
            (r.new_day + 1)::timestamp AT TIME ZONE 'UTC'),
        ('images_per_month', r.images_per_month_max, r.old_images_month, r.old_images_month + :images,
            r.old_images_month + :images > r.images_per_month_max,
            (date_trunc('month', r.new_day::timestamp) + interval '1 month') AT TIME ZONE 'UTC'),
        ('micros_per_month', r.micros_per_month_max, r.old_micros_month, r.old_micros_month + :micros,
            r.old_micros_month + :micros > r.micros_per_month_max,
            (date_trunc('month', r.new_day::timestamp) + interval '1 month') AT TIME ZONE 'UTC'),
        ('images_total', r.images_total_max, r.images_total, r.images_total + :images,
            r.images_total + :images > r.images_total_max, NULL)
    ) AS x(name, maximum, used_before, used_after, broken, resets_at)
    WHERE x.maximum IS NOT NULL
),
refusal AS (
    SELECT * FROM gauges WHERE broken ORDER BY resets_at DESC NULLS FIRST, scope LIMIT 1
),
held AS (
    UPDATE budgets b SET in_flight = r.new_in_flight, request_clock = COALESCE(r.new_request_clock, b.request_clock),
        day = r.new_day, images_day = r.old_images_day + :images, images_month = r.old_images_month + :images,
        micros_month = r.old_micros_month + :micros, images_total = b.images_total + :images
    -- Named once more for the index: a connection that began when there were few budgets read all of them ever after.
    FROM raised r
    WHERE b.scope = r.scope AND b.scope = ANY(CAST(:scopes AS text[])) AND NOT EXISTS (SELECT FROM refusal)
)"""

# MOVE's part. Reads `standing` (the generation, locked, as it stood) and the parameters of where it goes; leaves
# `locked` and `settled`. It changes nothing for a generation the budgets don't count.
SETTLE = """
locked AS MATERIALIZED (
    SELECT b.scope FROM budgets b JOIN standing s ON s.counted AND b.scope = ANY(s.scopes)
    ORDER BY b.scope FOR UPDATE OF b
),
change AS (
    SELECT l.scope, s.day, s.state, c.images, c.micros FROM standing s CROSS JOIN locked l
    CROSS JOIN LATERAL (SELECT
        CASE WHEN CAST(:state AS text) = 'completed' THEN CAST(:settled_images AS int) - s.held_images
             WHEN :state = 'failed' OR (:state = 'lost' AND l.scope <> 'all') THEN -s.held_images
             ELSE 0 END AS images,
        CASE WHEN :state = 'completed' THEN CAST(:settled_micros AS bigint) - s.held_micros
             WHEN :state = 'failed' OR (:state = 'lost' AND l.scope <> 'all') THEN -s.held_micros
             ELSE 0 END AS micros
    ) c
),
settled AS (
    -- Given back only into the window it was taken from.
    UPDATE budgets b SET
        in_flight = b.in_flight - (c.state = 'pending' AND :state <> 'pending')::int,
        images_day = b.images_day + CASE WHEN b.day = c.day THEN c.images ELSE 0 END,
        images_month = b.images_month + CASE WHEN date_trunc('month', b.day::timestamp)
            = date_trunc('month', c.day::timestamp) THEN c.images ELSE 0 END,
        micros_month = b.micros_month + CASE WHEN date_trunc('month', b.day::timestamp)
            = date_trunc('month', c.day::timestamp) THEN c.micros ELSE 0 END,
        images_total = b.images_total + c.images
    FROM change c
    WHERE b.scope = c.scope AND b.scope = ANY((SELECT scopes FROM standing)::text[])
)"""

# Every limited scope as the generations say it should be, in one snapshot with what the counters say.
_RECOUNT = """
SELECT b.scope,
    count(*) FILTER (WHERE g.state = 'pending') AS in_flight,
    COALESCE(sum(c.images) FILTER (WHERE g.day = b.day), 0) AS images_day,
    COALESCE(sum(c.images) FILTER (WHERE m.same), 0) AS images_month,
    COALESCE(sum(c.micros) FILTER (WHERE m.same), 0) AS micros_month,
    COALESCE(sum(c.images), 0) AS images_total
FROM budgets b
LEFT JOIN (SELECT x.*, s.scope FROM generations x CROSS JOIN LATERAL unnest(x.scopes) AS s(scope) WHERE x.counted) g
    ON g.scope = b.scope
LEFT JOIN LATERAL (SELECT
    CASE WHEN g.state = 'lost' AND b.scope <> 'all' THEN 0 ELSE COALESCE(g.settled_images, g.held_images) END AS images,
    CASE WHEN g.state = 'lost' AND b.scope <> 'all' THEN 0 ELSE COALESCE(g.settled_micros, g.held_micros) END AS micros
) c ON true
LEFT JOIN LATERAL (
    SELECT date_trunc('month', g.day::timestamp) = date_trunc('month', b.day::timestamp) AS same
) m ON true
GROUP BY b.scope"""

_COUNTERS = ("in_flight", "images_day", "images_month", "micros_month", "images_total")


@dataclass(frozen=True)
class Limits:
    """The limits of a scope. None is no limit, 0 refuses everything. Money in micros."""

    in_flight_max: int | None = None
    requests_per_minute_max: int | None = None
    images_per_day_max: int | None = None
    images_per_month_max: int | None = None
    images_total_max: int | None = None
    micros_per_month_max: int | None = None


LIMIT_NAMES = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True)
class Gauge:
    """One limit of one scope, and its use, held included. `name` is the limit's, without `_max`."""

    scope: str
    name: str
    maximum: int
    used: int | None
    resets_in_seconds: int | None

    @property
    def remaining(self) -> int | None:
        """What is left, never below 0; None where a count makes no sense (requests per minute)."""
        return None if self.used is None else max(0, self.maximum - self.used)


@dataclass(frozen=True)
class Difference:
    """A counter that doesn't say what the generations say."""

    scope: str
    counter: str
    counted: int
    recounted: int


async def set_limits(tx: AsyncConnection, scope: str, changes: Mapping[str, int | None]) -> Limits:
    """Change the named limits of a scope, None meaning no limit, and return all its limits.

    Runs in `tx`. A scope's first limit counts what it has used so far from the generations. The lock holds every
    RESERVE and MOVE back for that moment: one that began before would count in neither the row nor the recount.
    """
    assert set(changes) <= set(LIMIT_NAMES)
    await tx.execute(text("LOCK TABLE generations IN EXCLUSIVE MODE"))
    before = await limits_of(tx, scope)
    limits = Limits(**{**asdict(before), **changes})
    if limits == Limits():
        await tx.execute(delete(budgets).where(budgets.c.scope == scope))
        return limits
    await tx.execute(
        text(
            "INSERT INTO budgets (scope, day) VALUES (:scope, GREATEST((now() AT TIME ZONE 'UTC')::date,"
            " (SELECT max(day) FROM generations WHERE scopes @> ARRAY[CAST(:scope AS text)])))"
            " ON CONFLICT (scope) DO NOTHING"
        ),
        {"scope": scope},
    )
    await tx.execute(budgets.update().where(budgets.c.scope == scope).values(**asdict(limits)))
    if before == Limits():
        await _rewrite(tx, scope)
    return limits


async def limits_of(connection: AsyncConnection, scope: str) -> Limits:
    """Return the limits of a scope; all None when it has no row."""
    row = (await connection.execute(select(budgets).where(budgets.c.scope == scope))).mappings().one_or_none()
    return Limits(**{name: row[name] for name in LIMIT_NAMES}) if row else Limits()


async def gauges_of(connection: AsyncConnection, scopes: Sequence[str]) -> Sequence[Gauge]:
    """Return how far each limit of these scopes is used now, by the database's clock."""
    rows = await connection.execute(
        select(budgets, text("now() AS ts")).where(budgets.c.scope.in_(scopes)).order_by(budgets.c.scope)
    )
    return [gauge for row in rows.mappings() for gauge in _gauges(row)]


def _gauges(row: Mapping[Any, Any]) -> list[Gauge]:
    now: datetime = row["ts"].astimezone(UTC)
    today = max(now.date(), row["day"])
    tomorrow = _midnight(today + timedelta(days=1))
    next_month = _midnight((today.replace(day=1) + timedelta(days=32)).replace(day=1))
    this_day = row["day"] == today
    this_month = (row["day"].year, row["day"].month) == (today.year, today.month)
    used: list[tuple[str, int | None, datetime | None]] = [
        ("in_flight", row["in_flight"], None),
        ("requests_per_minute", None, None),
        ("images_per_day", row["images_day"] if this_day else 0, tomorrow),
        ("images_per_month", row["images_month"] if this_month else 0, next_month),
        ("micros_per_month", row["micros_month"] if this_month else 0, next_month),
        ("images_total", row["images_total"], None),
    ]
    return [
        Gauge(row["scope"], name, maximum, count, int((reset - now).total_seconds()) + 1 if reset else None)
        for name, count, reset in used
        if (maximum := row[f"{name}_max"]) is not None
    ]


def in_usd(micros: int) -> str:
    """Return an amount in USD with all its digits, and two at least: "12.50", "0.001"."""
    whole, rest = divmod(micros, 1_000_000)
    return f"{whole}.{f'{rest:06d}'.rstrip('0').ljust(2, '0')}"


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


async def differences(connection: AsyncConnection) -> Sequence[Difference]:
    """Recount every budget from the generations and return where the counters differ; nothing is changed.

    One statement, so one snapshot: it is exact on a running installation too.
    """
    counters = ", ".join(f"b.{name} AS counted_{name}, r.{name} AS {name}" for name in _COUNTERS)
    query = f"SELECT b.scope, {counters} FROM budgets b JOIN ({_RECOUNT}) r ON r.scope = b.scope ORDER BY b.scope"  # noqa: S608
    rows = (await connection.execute(text(query))).mappings().all()
    return [
        Difference(row["scope"], name, int(row[f"counted_{name}"]), int(row[name]))
        for row in rows
        for name in _COUNTERS
        if row[f"counted_{name}"] != row[name]
    ]


async def leave_sandbox_out(tx: AsyncConnection) -> int:
    """Take what the sandbox made out of the books, so that pictures drawn for trying never count as money.

    Runs in `tx`, at a start with a real upstream. Returns how many generations that were.
    """
    # At every start but one there are none. The lock holds back all orders of all replicas, from the moment it is
    # asked for: taken to go through every generation for nothing, each replica that starts would be felt by the others.
    if not (await tx.execute(text("SELECT EXISTS (SELECT FROM generations WHERE sandbox AND counted)"))).scalar():
        return 0
    await tx.execute(text("LOCK TABLE generations IN EXCLUSIVE MODE"))
    left_out = (await tx.execute(text("UPDATE generations SET counted = false WHERE sandbox AND counted"))).rowcount
    if left_out:
        await _rewrite(tx, None)
    return left_out


async def _rewrite(tx: AsyncConnection, scope: str | None) -> None:
    counters = ", ".join(f"{name} = r.{name}" for name in _COUNTERS)
    await tx.execute(
        text(
            f"UPDATE budgets b SET {counters} FROM ({_RECOUNT}) r"  # noqa: S608
            " WHERE b.scope = r.scope AND (CAST(:scope AS text) IS NULL OR b.scope = :scope)"
        ),
        {"scope": scope},
    )
