"""What do tests make, with usual values for all they don't care about?"""

from datetime import date, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from app.accounts import keys
from app.accounts.keys import Caller
from app.database.direct import DirectConnection, DriverConnection
from app.database.pool import Database
from app.generations import records
from app.generations.order import Order, PricedOrder
from app.generations.records import Generation, Held, Image, KeyNotLive, Move, OverLimit
from app.generations.repeats import Attempt, Joined, Known
from app.generations.spool import Spool
from app.generations.stores import Stores
from app.storage.base import Storage
from app.upstream.catalog import Model

PRICE_MICROS = 10_000


def make_model(*, images_max: int = 10) -> Model:
    return Model(
        name="dall-e-3",
        path="/openai/v1/images/generations",
        sizes=("1024x1024",),
        qualities=("standard",),
        default_size="1024x1024",
        default_quality="standard",
        prompt_characters_max=4000,
        images_max=images_max,
        prices={("1024x1024", "standard"): PRICE_MICROS},
        aliases=(),
        retires_on=None,
        price_source="the tests",
        price_date=date(2026, 11, 22),
    )


def make_order(prompt: str = "a cat", *, n: int = 1, cost_micros: int | None = None) -> PricedOrder:
    cost_micros = PRICE_MICROS * n if cost_micros is None else cost_micros
    return PricedOrder(prompt, make_model(), "1024x1024", "standard", n, cost_micros, Order(prompt, n=n).digest)


def make_image(generation_id: UUID, *, position: int = 0) -> Image:
    return Image(
        id=generation_id.hex[:30] + f"{position:02d}",
        position=position,
        storage="folder",
        storage_key=f"2026/11/22/{generation_id.hex}-{position}.png",
        content_type="image/png",
        extension="png",
        width=1024,
        height=1024,
        size_bytes=1,
        sha256=b"\0" * 32,
    )


def make_stores(
    database: Database, home: Storage, *others: Storage, spool_bytes_max: int = 2**33, patience_seconds: float = 5
) -> Stores:
    return Stores(
        home=home,
        spool=Spool(database),
        others={storage.name: storage for storage in others},
        spool_bytes_max=spool_bytes_max,
        picture_bytes_max=2**25,
        patience_seconds=patience_seconds,
    )


async def make_caller(tx: AsyncConnection, name: str = "ada") -> Caller:
    user = await keys.add_user(tx, name)
    key, _ = await keys.create_key(tx, user)
    return Caller(user_id=user.id, user_name=name, api_key_id=key.id)


async def direct(connection: AsyncConnection) -> DirectConnection:
    """The same connection as what orders run their statements on, in the transaction that it may be in."""
    driver_connection = (await connection.get_raw_connection()).driver_connection
    assert isinstance(driver_connection, DriverConnection)
    return DirectConnection(driver_connection)


async def move(
    connection: AsyncConnection, generation_id: UUID, to: Move, *, now: datetime | None = None
) -> Generation | None:
    return await records.move(await direct(connection), generation_id, to, now=now)


async def reserve(
    connection: AsyncConnection,
    caller: Caller,
    order: PricedOrder | None = None,
    *,
    idempotency_key: str | None = None,
    retry_count: int = 0,
    lease_seconds: float = 330,
    join_within_seconds: float = 0,
    now: datetime | None = None,
) -> Held | Known | Joined | OverLimit | KeyNotLive:
    generation_id = uuid7()
    return await records.reserve(
        await direct(connection),
        generation_id=generation_id,
        caller=caller,
        order=order or make_order(),
        sandbox=False,
        storage_stem=f"2026/11/22/{generation_id.hex}",
        lease_seconds=lease_seconds,
        attempt=Attempt(idempotency_key, retry_count),
        join_within_seconds=join_within_seconds,
        now=now,
    )
