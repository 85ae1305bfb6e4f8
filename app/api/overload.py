"""Is this process so full that an order is not worth a look, or a client's wait not worth keeping?"""

from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request

from app.accounts.keys import Caller
from app.api.auth import ByKey, bearer_key, either_key, look_up_for_order
from app.api.prefer import Preference, read_retry_count
from app.api.surface import wiring_of


async def arrive(request: Request, key: str) -> Caller:
    """Return who orders, or raise Overloaded when no slot is free, before the database or the body is looked at.

    A full process gets orders by the hundred; looked up one by one, their keys would queue for the connections that the
    orders in flight are settled on. One that is marked as a repeat may need no slot. `key` was found well formed: who
    has none is not told to come back. Raises what `look_up_for_order` raises as well.
    """
    marked = "idempotency-key" in request.headers or read_retry_count(request) > 0
    with wiring_of(request).runner.arriving(may_be_repeat=marked):
        return await look_up_for_order(request, key)


async def _by_bearer_key(request: Request) -> Caller:
    return await arrive(request, bearer_key(request))


async def _by_either_key(request: Request) -> Caller:
    return await arrive(request, either_key(request))


Ordering = Annotated[Caller, Depends(ByKey(_by_bearer_key))]
OrderingByEither = Annotated[Caller, Depends(_by_either_key)]


def unless_crowded(request: Request, preference: Preference) -> Preference:
    """Return the preference, without its wait where as many clients wait in this process as may.

    They get the state as it is, and come back: it costs them a request, and nobody an answer.
    """
    if preference.wait_seconds == 0 or not wiring_of(request).runner.crowded:
        return preference
    return replace(preference, wait_seconds=0, applied={})
