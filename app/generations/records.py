"""Which states can a generation be in, and which statements move it?

    (nothing) --RESERVE--> pending --answer--> generated --stored--> completed      charged
                              |--surely not billed--> failed                        given back
                              |--may be billed--> unknown --late answer--> generated or completed
                              |                     |--a person says--> failed or lost
                              |--picture stored already--> completed
                           generated --source expired--> lost                       given back; `all` keeps the spend

RESERVE and MOVE are one statement each, which succeeds or fails whole, whether or not others share its commit. Every
MOVE names the states it may leave: no row back means that someone else moved it first, and nothing is settled twice.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import budgets
from app.accounts.budgets import Gauge
from app.accounts.keys import Caller
from app.database.direct import Row, Runs, array_of, prepare
from app.database.tables import generations, images
from app.generations import repeats
from app.generations.order import Asked, PricedOrder
from app.generations.repeats import Attempt, Joined, Known

State = Literal["pending", "generated", "completed", "failed", "unknown", "lost"]

# From these nothing moves on its own any more. `unknown` still can: by a late answer, or by a person.
ENDED: tuple[State, ...] = ("completed", "failed", "unknown", "lost")
RUNNING: tuple[State, ...] = ("pending", "generated")

_PLAIN = Attempt()


@dataclass(frozen=True)
class Image:
    """One picture of a generation, and where it lives."""

    id: str
    position: int
    storage: str
    storage_key: str
    content_type: str
    extension: str
    width: int
    height: int
    size_bytes: int
    sha256: bytes
    deleted_at: datetime | None = None


@dataclass(frozen=True)
class Generation:
    """One accepted order, as its row says. What each field means stands in database/tables.py."""

    id: UUID
    user_id: UUID
    api_key_id: UUID
    state: State
    failure_code: str | None
    failure_detail: str | None
    idempotency_key: str | None
    order_digest: bytes
    asked: Asked | None
    model: str
    size: str
    quality: str
    prompt: str | None = field(repr=False)
    revised_prompt: str | None = field(repr=False)
    sandbox: bool
    held_images: int
    held_micros: int
    used_micros: int | None
    settled_images: int | None
    settled_micros: int | None
    storage_stem: str
    lease_until: datetime | None
    attempts: int
    source_urls: Sequence[str] | None = field(repr=False)
    source_expires_at: datetime | None
    request_id: str | None
    created_at: datetime
    finished_at: datetime | None
    deleted_at: datetime | None
    images: tuple[Image, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing moves it on its own any more."""
        return self.state in ENDED


# A row of these is the beginning of a Generation.
_COLUMNS = [name for name in Generation.__dataclass_fields__ if name != "images"]
IMAGE_COLUMNS = list(Image.__dataclass_fields__)


def columns_of(alias: str, names: Sequence[str]) -> str:
    """Return what a statement is to answer, column by column. With a star it answers otherwise once a newer release
    has added a column, which Postgres refuses of a prepared one: upstream's answer then had nowhere to be kept.
    """
    return ", ".join(f"{alias}.{name}" for name in names)


@dataclass(frozen=True)
class Held:
    """RESERVE held the price: the generation is `pending`, and its reserver alone may send the order."""

    generation: Generation
    gauges: tuple[Gauge, ...]


@dataclass(frozen=True)
class OverLimit:
    """A limit refused the order; nothing was held. `gauge` is the broken one that lasts longest."""

    gauge: Gauge


@dataclass(frozen=True)
class KeyNotLive:
    """The key was revoked, or its user disabled, since it was looked up; nothing was held."""


_RESERVE = prepare(f"""
WITH {budgets.MOMENT},
{repeats.JOIN},
known AS MATERIALIZED (
    -- Before any limit: a replay on a spent quota is an answer, not a refusal. Not for a key that is not live.
    SELECT id, order_digest = :order_digest AS same_order FROM generations
    WHERE user_id = :user_id AND idempotency_key = CAST(:idempotency_key AS text) AND EXISTS (SELECT FROM live)
),
allowed AS MATERIALIZED (
    SELECT id FROM live WHERE NOT EXISTS (SELECT FROM known) AND NOT EXISTS (SELECT FROM joined)
),
{budgets.HOLD},
inserted AS (
    INSERT INTO generations (id, user_id, api_key_id, scopes, state, idempotency_key, order_digest, asked, model, size,
        quality, prompt, sandbox, held_images, held_micros, day, storage_stem, lease_until, request_id, created_at,
        retry_count)
    SELECT :id, :user_id, :api_key_id, CAST(:scopes AS text[]), 'pending', CAST(:idempotency_key AS text),
        :order_digest, CAST(:asked AS jsonb), :model, :size, :quality, :prompt, :sandbox, :images, :micros, f.day,
        :storage_stem, m.ts + make_interval(secs => :lease_seconds), CAST(:request_id AS text), m.ts, :retry_count
    FROM allowed, frame f, moment m WHERE NOT EXISTS (SELECT FROM refusal)
    RETURNING *
)
SELECT (SELECT id FROM known) AS known_id, (SELECT same_order FROM known) AS same_order,
    (SELECT id FROM joined) AS joined_id, (SELECT repeats FROM joined) AS joined_repeats,
    (SELECT to_jsonb(r) FROM refusal r) AS refusal,
    COALESCE((SELECT jsonb_agg(to_jsonb(g)) FROM gauges g), '[]') AS gauges, {columns_of("i", _COLUMNS)}
FROM (SELECT 1) one LEFT JOIN inserted i ON true""")  # noqa: S608


async def reserve(
    connection: Runs,
    *,
    generation_id: UUID,
    caller: Caller,
    order: PricedOrder,
    sandbox: bool,
    storage_stem: str,
    lease_seconds: float,
    attempt: Attempt = _PLAIN,
    join_within_seconds: float = 0,
    now: datetime | None = None,
) -> Held | Known | Joined | OverLimit | KeyNotLive:
    """Look for what it repeats, re-check the key, check every limit of every scope, hold, and insert `pending`.

    One statement; a second look where orders with one new key came at the same instant.
    """
    parameters = {
        **repeats.join_parameters(caller, order.digest, attempt, join_within_seconds),
        "id": generation_id,
        "user_id": caller.user_id,
        "scopes": array_of(caller.scopes),
        "asked": json.dumps(order.asked) if order.asked else None,
        "model": order.model.name,
        "size": order.size,
        "quality": order.quality,
        "prompt": order.prompt,
        "sandbox": sandbox,
        "images": order.n,
        "micros": order.cost_micros,
        "storage_stem": storage_stem,
        "lease_seconds": lease_seconds,
        "request_id": attempt.request_id,
        "now": now,
    }
    row = await _reserve_row(connection, parameters)
    known_id, same_order, joined_id, joined_repeats, refusal, gauges, *inserted = row
    if known_id is not None:
        return Known(known_id, same_order)
    if joined_id is not None:
        return Joined(joined_id, joined_repeats)
    if refusal is not None:
        # The limit may have been spent by an order with this very key, which this statement began too early to see.
        if attempt.idempotency_key is not None and (
            known := await repeats.find_keyed(connection, caller, order.digest, attempt.idempotency_key)
        ):
            return known
        return OverLimit(_gauge(refusal, "used_before"))
    if inserted[0] is None:
        return KeyNotLive()
    return Held(Generation(*inserted), tuple(_gauge(gauge, "used_after") for gauge in gauges))


async def _reserve_row(connection: Runs, parameters: Mapping[str, object]) -> Row:
    while True:
        try:
            row = await connection.row(_RESERVE, parameters)
        except IntegrityError as error:
            # The unique index lets one of two orders with a new key in, and rolls the other back whole; asked again,
            # it finds the first. Not for ever: each time somebody else has gone on.
            if "uq_generations_user_id_idempotency_key" not in str(error.orig):
                raise
        else:
            assert row is not None, "RESERVE always answers"
            return row


_MOVE = prepare(f"""
WITH {budgets.MOMENT},
standing AS MATERIALIZED (
    SELECT g.* FROM generations g, moment m
    WHERE g.id = :id AND g.state = ANY(CAST(:leaving AS text[]))
        AND (NOT CAST(:if_source_expired AS boolean) OR g.source_expires_at < m.ts)
    FOR UPDATE OF g
),
{budgets.SETTLE},
moved AS (
    UPDATE generations g SET
        state = :state,
        failure_code = CAST(:failure_code AS text),
        failure_detail = CAST(:failure_detail AS text),
        -- A failure that is surely free leaves the key free, so that a retry really retries.
        idempotency_key = CASE WHEN :state = 'failed' THEN NULL ELSE g.idempotency_key END,
        -- A late answer must not bring words back to a generation that was deleted while it was unknown.
        revised_prompt = CASE WHEN g.deleted_at IS NULL
            THEN COALESCE(CAST(:revised_prompt AS text), g.revised_prompt) END,
        source_urls = CASE WHEN :state = 'generated' THEN CAST(:source_urls AS text[]) END,
        source_expires_at = CASE WHEN :state = 'generated' THEN COALESCE(
            CAST(:source_expires_at AS timestamptz), m.ts + make_interval(secs => :source_lifetime_seconds))
            ELSE g.source_expires_at END,
        lease_until = CASE WHEN :state = 'generated' THEN m.ts + make_interval(secs => :lease_seconds) END,
        used_micros = COALESCE(CAST(:used_micros AS bigint), g.used_micros),
        settled_images = CAST(:settled_images AS int),
        settled_micros = CAST(:settled_micros AS bigint),
        finished_at = CASE WHEN :state = 'generated' THEN NULL ELSE m.ts END
    -- Waits for the budgets' locks by name; that CTEs happen to run in order is no promise of Postgres.
    FROM standing s, moment m, (SELECT count(*) FROM locked) waited
    WHERE g.id = s.id
    RETURNING g.*
),
pictures AS (
    INSERT INTO images (id, generation_id, position, storage, storage_key, content_type, extension, width, height,
        size_bytes, sha256, deleted_at)
    SELECT x.id, m.id, x.position, x.storage, x.storage_key, x.content_type, x.extension, x.width, x.height,
        x.size_bytes, decode(x.sha256, 'hex'),
        -- Deleted while it was unknown: what turns up then is to be erased, and its URL answers 410.
        m.deleted_at
    FROM moved m CROSS JOIN jsonb_to_recordset(CAST(:images AS jsonb)) AS x(id text, position smallint, storage text,
        storage_key text, content_type text, extension text, width int, height int, size_bytes bigint, sha256 text)
)
SELECT {columns_of("m", _COLUMNS)} FROM moved m""")  # noqa: S608


@dataclass(frozen=True)
class Move:
    """Where a generation goes, and from where it may. Fields that the new state doesn't have stay None.

    `settled` is (images, micros), `used_micros` what upstream's own count comes to. `source_lifetime_seconds` counts
    when `source_expires_at` is not known. With `if_source_expired` it moves only once the source has expired by the
    database's clock: no replica's own clock may decide that a paid image is lost.
    """

    state: State
    leaving: Sequence[State]
    settled: tuple[int, int] | None = None
    used_micros: int | None = None
    failure_code: str | None = None
    failure_detail: str | None = None
    source_urls: Sequence[str] | None = None
    source_expires_at: datetime | None = None
    source_lifetime_seconds: float = 3600
    lease_seconds: float = 0
    revised_prompt: str | None = None
    pictures: Sequence[Image] = ()
    if_source_expired: bool = False


async def move(connection: Runs, generation_id: UUID, to: Move, *, now: datetime | None = None) -> Generation | None:
    """Move a generation if it stands where it may leave from, and its budgets and images with it.

    One statement. Returns it as it stands then; None when it stood elsewhere, and then nothing has changed.
    """
    settled_images, settled_micros = to.settled if to.settled is not None else (None, None)
    parameters = {
        # What has a statement's parameter of its own name goes as it is.
        **vars(to),
        "id": generation_id,
        "leaving": array_of(to.leaving),
        "settled_images": settled_images,
        "settled_micros": settled_micros,
        "source_urls": array_of(to.source_urls) if to.source_urls is not None else None,
        "images": json.dumps([_image_json(picture) for picture in to.pictures]),
        "now": now,
    }
    row = await connection.row(_MOVE, parameters)
    return Generation(*(*row, tuple(to.pictures))) if row is not None else None


_CLAIM = f"""
WITH {budgets.MOMENT}
UPDATE generations g SET lease_until = m.ts + make_interval(secs => :lease_seconds), attempts = g.attempts + 1
FROM moment m WHERE g.id IN (
    SELECT x.id FROM generations x, moment n WHERE x.lease_until < n.ts
    ORDER BY x.lease_until LIMIT :batch_max OFFSET :skipped FOR UPDATE OF x SKIP LOCKED
) RETURNING {columns_of("g", _COLUMNS)}"""  # noqa: S608


async def claim(
    connection: AsyncConnection, *, lease_seconds: float, batch_max: int, skipped: int = 0, now: datetime | None = None
) -> Sequence[Generation]:
    """Take over up to `batch_max` generations whose lease has run out, oldest first, all but the first `skipped`."""
    asked = {"lease_seconds": lease_seconds, "batch_max": batch_max, "skipped": skipped, "now": now}
    rows = await connection.execute(text(_CLAIM), asked)
    return [Generation(*row) for row in rows]


async def find(connection: AsyncConnection, generation_id: UUID, *, user_id: UUID | None = None) -> Generation | None:
    """Return a generation with its images; None when there is none, or when it is not this user's."""
    query = select(*(generations.c[name] for name in _COLUMNS)).where(generations.c.id == generation_id)
    if user_id is not None:
        query = query.where(generations.c.user_id == user_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    return (await _with_images(connection, [Generation(*row)]))[0]


async def page(
    connection: AsyncConnection,
    *,
    limit: int,
    user_id: UUID | None = None,
    before: UUID | None = None,
    state: State | None = None,
    with_deleted: bool = False,
) -> Sequence[Generation]:
    """Return up to `limit` generations, newest first, from the one before `before` on, with their images."""
    query = select(*(generations.c[name] for name in _COLUMNS)).order_by(generations.c.id.desc()).limit(limit)
    if user_id is not None:
        query = query.where(generations.c.user_id == user_id)
    if before is not None:
        query = query.where(generations.c.id < before)
    if state is not None:
        query = query.where(generations.c.state == state)
    if not with_deleted:
        query = query.where(generations.c.deleted_at.is_(None))
    rows = await connection.execute(query)
    return await _with_images(connection, [Generation(*row) for row in rows])


async def _with_images(connection: AsyncConnection, found: Sequence[Generation]) -> list[Generation]:
    ids = [generation.id for generation in found if generation.state == "completed"]
    if not ids:
        return list(found)
    rows = await connection.execute(
        select(images.c.generation_id, *(images.c[name] for name in IMAGE_COLUMNS))
        .where(images.c.generation_id.in_(ids))
        .order_by(images.c.generation_id, images.c.position)
    )
    pictures: dict[UUID, list[Image]] = {}
    for row in rows.mappings():
        image = Image(**{name: row[name] for name in IMAGE_COLUMNS})
        pictures.setdefault(row["generation_id"], []).append(image)
    return [_replace_images(generation, tuple(pictures.get(generation.id, ()))) for generation in found]


def _replace_images(generation: Generation, pictures: tuple[Image, ...]) -> Generation:
    return Generation(**{**generation.__dict__, "images": pictures})


def _gauge(gauge: Mapping[str, Any], used: str) -> Gauge:
    return Gauge(gauge["scope"], gauge["name"], gauge["maximum"], gauge[used], gauge["resets_in_seconds"])


def _image_json(image: Image) -> dict[str, Any]:
    columns = {name: getattr(image, name) for name in IMAGE_COLUMNS if name != "deleted_at"}
    return {**columns, "sha256": image.sha256.hex()}
