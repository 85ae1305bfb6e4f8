"""What do tests of a verification go through: books whose images are kept in a folder or a bucket?"""

import hashlib
import secrets
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import text

from app.accounts.keys import Caller
from app.database.pool import Database
from app.generations.findings import Report
from app.generations.records import Generation, Held, Image, Move
from app.generations.verify import Care, verify
from app.storage.base import Storage
from tests.makers import PRICE_MICROS, make_image, make_order, move, reserve

PICTURE = b"\x89PNG and what else makes a picture"
# Everything is old enough, and nobody is waited for, unless a test is about just that.
CARE = Care(lease_seconds=0, prefixes={}, pause_seconds=0)


@dataclass(frozen=True)
class Books:
    """A database with one user, whose orders are limited, as is the installation."""

    database: Database
    caller: Caller

    async def hold(self, *, n: int = 1) -> Generation:
        """A generation that is pending, its lease good for minutes."""
        async with self.database.statement() as connection:
            held = await reserve(connection, self.caller, make_order(n=n))
        assert isinstance(held, Held)
        return held.generation

    async def move(self, generation: Generation, to: Move) -> Generation:
        async with self.database.statement() as connection:
            moved = await move(connection, generation.id, to)
        assert moved is not None
        return moved

    async def keep(self, storage: Storage, *, n: int = 1, body: bytes = PICTURE) -> Generation:
        """A completed generation whose images are in `storage`."""
        generation = await self.hold(n=n)
        pictures = [picture_of(generation, storage, position, body) for position in range(n)]
        for picture in pictures:
            await storage.put(picture.storage_key, body, content_type="image/png")
        return await self.move(
            generation, Move("completed", leaving=("pending",), settled=(n, n * PRICE_MICROS), pictures=pictures)
        )

    async def execute(self, statement: str, **parameters: Any) -> None:
        async with self.database.statement() as connection:
            await connection.execute(text(statement), parameters)

    async def verify(self, *storages: Storage, care: Care = CARE) -> Report:
        return await verify(self.database, {storage.name: storage for storage in storages}, care)


def picture_of(generation: Generation, storage: Storage, position: int, body: bytes) -> Image:
    drawn = make_image(generation.id, position=position)
    return replace(
        drawn,
        id=secrets.token_hex(16),
        storage=storage.name,
        storage_key=f"{generation.storage_stem}-{position}.png",
        size_bytes=len(body),
        sha256=hashlib.sha256(body).digest(),
    )


def told(report: Report) -> list[tuple[str, str]]:
    """Every violation by kind and subject."""
    return sorted((violation.kind, violation.subject) for violation in report.listed)
