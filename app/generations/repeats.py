"""Is this order a repeat of an earlier one, and of which?

A repeat is answered with the earlier generation and charged nothing. It is known by its Idempotency-Key; without one,
by its API key and the same order, if a mark says that it is a repeat: the SDK counts its retries in a header, or the
earlier order's client has no answer yet. Two plain orders side by side bear no mark, and are two images.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.accounts import budgets
from app.accounts.budgets import Gauge
from app.accounts.keys import Caller
from app.database.direct import Runs, prepare

# The Vercel AI SDK sends an order twice more, without a mark, also after a 502 or 504 that forbids it (tried with ai
# 7.0.173). Whoever orders a third time is a person who wants another image.
_PAID_IN_VAIN_REPEATS_MAX = 2

# Among how many of the newest equal orders a chain of retries looks for the one that it began with.
_CHAINS_MAX = 16

# Whoever asks in the name of a key may have looked it up seconds ago.
_LIVE = """
    SELECT k.id FROM api_keys k JOIN users u ON u.id = k.user_id
    WHERE k.id = :api_key_id AND k.revoked_at IS NULL AND u.disabled_at IS NULL"""

# Short look-ups instead of joins: an index then gives the rows in order and within the time, whatever Postgres makes
# of how often the same was ordered. As joins, 150,000 orders for the same were read and sorted for each retry. A
# connection keeps the plan that it made when it began, also when that was in an empty database.
_JOINABLE = """
    EXISTS (SELECT FROM live) AND CAST(:idempotency_key AS text) IS NULL
    AND CAST(:join_within_seconds AS double precision) > 0
    AND g.api_key_id = :api_key_id AND g.order_digest = :order_digest AND g.idempotency_key IS NULL
    -- What surely cost nothing is not joined: a retry of it really retries.
    AND g.state <> 'failed' AND g.deleted_at IS NULL
    AND (g.finished_at IS NULL
        OR g.finished_at > (SELECT ts FROM moment) - make_interval(secs => :join_within_seconds))
    -- Keeps the look-up short for a caller who orders the same all day. No picture is on its way for longer.
    AND g.created_at > (SELECT ts FROM moment) - make_interval(secs => :join_within_seconds) - interval '1 day'"""

# RESERVE's part, and a statement of its own where RESERVE is not asked. Reads `moment`; leaves `live` (one row when the
# key may order) and `joined` (the generation that this order repeats; no row if it is a new one).
#
# FOR UPDATE waits for a repeat that joins at the same instant and then looks again: it finds its generation taken, and
# goes on to the next. Generations are locked before budgets, as in MOVE; a batch has its budgets before both.
JOIN = f"""
live AS MATERIALIZED ({_LIVE}),
unanswered AS MATERIALIZED (
    SELECT g.id FROM generations g WHERE {_JOINABLE}
        AND (g.left_at IS NOT NULL OR (g.state IN ('unknown', 'lost') AND g.repeats < {_PAID_IN_VAIN_REPEATS_MAX}))
        AND (:retry_count = 0 OR g.retry_count < :retry_count)
    ORDER BY g.created_at, g.id LIMIT 1 FOR UPDATE
),
newest AS MATERIALIZED (
    SELECT g.id, g.created_at FROM generations g WHERE {_JOINABLE}
        AND :retry_count > 0 AND g.retry_count < :retry_count AND NOT EXISTS (SELECT FROM unanswered)
    ORDER BY g.created_at DESC LIMIT {_CHAINS_MAX}
),
retried AS MATERIALIZED (
    SELECT g.id FROM generations g
    -- By the index that gave them: a plan that was made in an empty database read the whole table for their ids.
    WHERE g.api_key_id = :api_key_id AND g.order_digest = :order_digest AND g.idempotency_key IS NULL
        AND g.created_at >= (SELECT min(created_at) FROM newest) AND g.id IN (SELECT id FROM newest)
        AND g.retry_count < :retry_count
        AND g.state <> 'failed' AND g.deleted_at IS NULL
    -- A second retry goes on where the first one was, and takes nobody else's order for its own.
    ORDER BY g.retry_count DESC, g.created_at DESC LIMIT 1 FOR UPDATE
),
joined AS (
    UPDATE generations g SET repeats = g.repeats + 1, retry_count = :retry_count, left_at = NULL
    WHERE g.id = (SELECT id FROM unanswered UNION ALL SELECT id FROM retried)
    RETURNING g.id, g.repeats
)"""  # noqa: S608


@dataclass(frozen=True)
class Attempt:
    """How an order came: under which Idempotency-Key, as which of an SDK's retries (0 is none), in which request."""

    idempotency_key: str | None = None
    retry_count: int = 0
    request_id: str | None = None


@dataclass(frozen=True)
class Known:
    """The Idempotency-Key was used before, by this generation. `same_order` tells whether for the same order."""

    generation_id: UUID
    same_order: bool


@dataclass(frozen=True)
class Joined:
    """The order repeats this generation, as the `repeats`-th that does."""

    generation_id: UUID
    repeats: int


# Whatever may join an order has the same: the API key's id, and the digest of what was asked.
Mark = tuple[UUID, bytes]


@dataclass(frozen=True)
class Placed:
    """An order that was taken. A repeat, whose order was `known`, is charged nothing and has no `gauges`.

    `repeats` tells how many repeats its generation had then; None where none may join, because it has a key.
    """

    generation_id: UUID
    mark: Mark
    gauges: tuple[Gauge, ...] = ()
    repeats: int | None = None
    known: bool = False


def join_parameters(
    caller: Caller, order_digest: bytes, attempt: Attempt, join_within_seconds: float
) -> dict[str, object]:
    """Return what JOIN wants to know."""
    return {
        "api_key_id": caller.api_key_id,
        "order_digest": order_digest,
        "idempotency_key": attempt.idempotency_key,
        "retry_count": attempt.retry_count,
        "join_within_seconds": join_within_seconds,
    }


_FIND_KEYED = prepare(f"""
SELECT id, order_digest FROM generations
WHERE user_id = :user_id AND idempotency_key = :idempotency_key AND EXISTS ({_LIVE})""")  # noqa: S608


async def find_keyed(connection: Runs, caller: Caller, order_digest: bytes, idempotency_key: str) -> Known | None:
    """Return the generation that a user's Idempotency-Key names; None when it is free, or the API key is not live."""
    asked = {"user_id": caller.user_id, "api_key_id": caller.api_key_id, "idempotency_key": idempotency_key}
    row = await connection.row(_FIND_KEYED, asked)
    return Known(row[0], row[1] == order_digest) if row else None


_JOIN_ALONE = prepare(f"WITH {budgets.MOMENT}, {JOIN} SELECT id, repeats FROM joined")  # noqa: S608


async def join(
    connection: Runs,
    caller: Caller,
    order_digest: bytes,
    attempt: Attempt,
    *,
    join_within_seconds: float,
    now: datetime | None = None,
) -> Joined | None:
    """Join the earlier generation that this order repeats, as RESERVE does, where no new order is taken.

    One statement. None when it is a new order, and then nothing has changed.
    """
    parameters = join_parameters(caller, order_digest, attempt, join_within_seconds) | {"now": now}
    row = await connection.row(_JOIN_ALONE, parameters)
    return Joined(*row) if row else None


_LEAVE = prepare(f"""
WITH {budgets.MOMENT}
UPDATE generations g SET left_at = m.ts FROM moment m
WHERE g.id = :id AND g.repeats = :repeats AND g.idempotency_key IS NULL""")  # noqa: S608


async def leave(connection: Runs, generation_id: UUID, *, repeats: int, now: datetime | None = None) -> None:
    """Write down that the client of a generation's `repeats`-th repeat (0: of the order itself) has no answer.

    The next repeat joins it then. Nothing changes when one has joined since: that one waits for the answer now.
    """
    await connection.row(_LEAVE, {"id": generation_id, "repeats": repeats, "now": now})
