"""What do tables and indexes weigh after many orders, beside what stands in them; and what does one Postgres carry?

Runs the three statements of an order as the service does, with nothing around them: no key, no upstream, no picture.
Autovacuum works as it comes. Then all is packed anew, which shows what was air.

python -m bench.bloat --orders 100000
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import uvloop
from sqlalchemy import text
from uuid_utils.compat import uuid7

from app.accounts import keys
from app.accounts.keys import Caller
from app.database.pool import Database
from app.generations import records
from app.generations.order import Order, check
from app.generations.records import Held, Image, Move
from app.upstream.catalog import Catalog, load_catalog
from bench.installation import Installation, prepare
from bench.neighbourhood import Neighbourhood, open_neighbourhood
from bench.processes import cpu_seconds, divide_cores

_IN_FLIGHT = 64
_SIZES = text("""
SELECT c.relname AS name, pg_relation_size(c.oid) AS size_bytes FROM pg_class c
WHERE c.relkind IN ('r', 'i') AND c.relnamespace = 'public'::regnamespace AND pg_relation_size(c.oid) > 1000000
ORDER BY size_bytes DESC""")


def main() -> int:
    """Run it, and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.bloat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--orders", type=int, default=100_000, help="how many orders are made")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="imagekeep-bench-") as folder,
        open_neighbourhood(Path(folder), divide_cores()) as near,
    ):
        uvloop.run(measure(near, asked.orders))
    return 0


async def measure(near: Neighbourhood, orders: int) -> None:
    """Make so many orders, print what they took and weigh, pack everything anew and weigh it again."""
    prepared = await asyncio.to_thread(prepare, near, Installation("bloat"))
    database = Database(prepared.database_url, connections_max=8, timeout_seconds=600)
    try:
        async with database.statement() as connection:
            caller = await keys.find_caller(connection, prepared.keys[0])
        began, postgres_before = time.perf_counter(), cpu_seconds(near.postgres_pid)
        numbers = iter(range(orders))
        catalog = load_catalog(None)
        await asyncio.gather(*(_order_on(database, caller, catalog, numbers) for _ in range(_IN_FLIGHT)))
        took, postgres = time.perf_counter() - began, cpu_seconds(near.postgres_pid) - postgres_before
        print(f"{orders:,} orders, {orders / took:.0f}/s, {postgres * 1000 / orders:.2f} ms of Postgres each")
        grown = await _sizes(database)
        async with database.statement() as connection:
            await connection.execute(text("VACUUM FULL"))
        packed = await _sizes(database)
    finally:
        await database.close()
    for name, size_bytes in grown.items():
        least = packed.get(name, size_bytes)
        print(f"{name:55} {size_bytes / 2**20:8.1f} MiB, packed {least / 2**20:8.1f} MiB: {size_bytes / least:.2f} x")


async def _order_on(database: Database, caller: Caller, catalog: Catalog, numbers: Iterator[int]) -> None:
    seat = database.seat(caller.scopes)
    for number in numbers:
        order = check(Order(prompt=f"a red fox in the snow, number {number}", model="dall-e-3"), catalog)
        generation_id, stem = uuid7(), f"2026/11/22/{secrets.token_hex(16)}"
        held = await records.reserve(
            seat, generation_id=generation_id, caller=caller, order=order, sandbox=False, storage_stem=stem,
            lease_seconds=330, join_within_seconds=600,
        )  # fmt: skip
        assert isinstance(held, Held), held
        urls = ["https://pictures.example/a.png?se=2099-01-01T00%3A00%3A00Z&sig=c2lnbmVkIGJ5IG5vYm9keQ%3D%3D"]
        prompt = "A red fox stands in deep snow."
        made = Move("generated", leaving=("pending",), source_urls=urls, lease_seconds=90, revised_prompt=prompt)
        assert await records.move(seat, generation_id, made)
        image = Image(
            secrets.token_urlsafe(16), 0, "s3:bench", f"{stem}-0.png", "image/png", "png", 1024, 1024, 1_500_000,
            secrets.token_bytes(32),
        )  # fmt: skip
        kept = Move("completed", leaving=("generated",), settled=(1, order.cost_micros), pictures=(image,))
        assert await records.move(seat, generation_id, kept)


async def _sizes(database: Database) -> Mapping[str, int]:
    async with database.statement() as connection:
        return {row.name: row.size_bytes for row in await connection.execute(_SIZES)}


if __name__ == "__main__":
    sys.exit(main())
