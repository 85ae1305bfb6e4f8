"""Who is calling, without asking the database for each order?"""

import time
from collections import OrderedDict
from dataclasses import dataclass

from app.accounts.keys import Caller, check_form, digest_of, find_caller
from app.database.pool import Database

_REMEMBERED_SECONDS_MAX = 10
CALLERS_MAX = 1_024


@dataclass(frozen=True)
class _Found:
    caller: Caller
    at: float


class Callers:
    """Whom this process has found by their keys. Nothing of a key is kept but its digest."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._found: OrderedDict[bytes, _Found] = OrderedDict()

    async def find(self, key: str) -> Caller:
        """Return who a key speaks for at this moment. Raises as keys.find_caller, and DatabaseUnavailable."""
        digest = digest_of(key)
        # Whatever comes of it now, what was known before is not to be used again.
        self._found.pop(digest, None)
        async with self._database.statement() as connection:
            caller = await find_caller(connection, key)
        self._found[digest] = _Found(caller, time.monotonic())
        while len(self._found) > CALLERS_MAX:
            self._found.popitem(last=False)
        return caller

    async def find_for_order(self, key: str) -> Caller:
        """As `find`, or who it spoke for up to 10 s ago.

        For an order and nothing else: RESERVE looks whether the key is live, in the statement that would hold its
        price, so a key that was revoked starts nothing. Whose a key is never changes.
        """
        check_form(key)
        found = self._found.get(digest_of(key))
        if found is not None and time.monotonic() - found.at < _REMEMBERED_SECONDS_MAX:
            return found.caller
        return await self.find(key)
