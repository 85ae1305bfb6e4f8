"""What do tests of a generation's way hold in their hands: a driver, what it works with, and the rows it moves?"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image as Pillow
from sqlalchemy import text

from app.accounts import budgets
from app.accounts.keys import Caller
from app.database.pool import Database
from app.generations import records
from app.generations.driver import Driver
from app.generations.records import Generation, Held, Move
from app.generations.recovery import recover_once
from app.generations.stores import Stores
from app.storage.folder import FolderStorage
from app.upstream.client import Upstream
from tests.makers import make_order, move, reserve


@dataclass(frozen=True)
class Parts:
    """A driver on the sandbox, and one user whose orders are limited, as is the installation.

    `home` is `folder`, which a test may take away and bring back.
    """

    database: Database
    folder: Path
    home: FolderStorage
    upstream: Upstream
    stores: Stores
    driver: Driver
    caller: Caller

    async def reserve(self, prompt: str = "a cat", *, n: int = 1, lease_seconds: float = 60) -> Generation:
        """A generation that is pending."""
        async with self.database.statement() as connection:
            held = await reserve(connection, self.caller, make_order(prompt, n=n), lease_seconds=lease_seconds)
        assert isinstance(held, Held)
        return held.generation

    async def move(self, generation: Generation, to: Move) -> Generation:
        """The generation once it has moved there, which it must."""
        async with self.database.statement() as connection:
            moved = await move(connection, generation.id, to)
        assert moved is not None
        return moved

    async def find(self, generation: Generation) -> Generation:
        """The generation as it stands now, with its images."""
        async with self.database.statement() as connection:
            found = await records.find(connection, generation.id)
        assert found is not None
        return found

    async def execute(self, statement: str) -> None:
        async with self.database.statement() as connection:
            await connection.execute(text(statement))

    async def let_leases_run_out(self) -> None:
        """Leave every generation that somebody runs to recovery."""
        await self.execute("UPDATE generations SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL")

    async def recover(self) -> None:
        """Let recovery run once. The budgets must be what the generations say afterwards."""
        await recover_once(self.database, self.driver, self.stores, lease_seconds=60)
        async with self.database.statement() as connection:
            assert await budgets.differences(connection) == []

    async def recovered(self) -> Generation:
        """Let every lease run out and recovery run once, over the one generation there is, and return it."""
        await self.let_leases_run_out()
        await self.recover()
        async with self.database.statement() as connection:
            (generation,) = await records.page(connection, limit=2)
        return generation


def png() -> bytes:
    """A small picture."""
    target = BytesIO()
    Pillow.new("RGB", (64, 64), "teal").save(target, "PNG")
    return target.getvalue()
