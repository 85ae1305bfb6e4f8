"""Who is calling?"""

from collections.abc import Awaitable, Callable
from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase

from app.accounts.keys import Caller, check_form
from app.api.surface import wiring_of
from app.errors import ApiKeyMissing, ApiKeyMistyped


class ByKey(SecurityBase):
    """A dependency that finds who is calling, and tells the schema that a key is asked for."""

    # /docs has a place to put one. FastAPI's own HTTPBearer would be a second dependency, of which each takes as long
    # as a look-up that is remembered; and the header is read below, in our own words.
    scheme_name = "API key"
    model = HTTPBearerModel(description="`Authorization: Bearer ik_user_...`")

    def __init__(self, find: Callable[[Request], Awaitable[Caller]]) -> None:
        self._find = find

    async def __call__(self, request: Request) -> Caller:
        """As `find`."""
        return await self._find(request)


def bearer_key(request: Request) -> str:
    """Return the key of the `Authorization: Bearer` header, well formed; nobody was asked whether it is anybody's.

    Raises ApiKeyMissing or ApiKeyMistyped.
    """
    key = _bearer(request)
    if not key:
        raise ApiKeyMissing
    check_form(key)
    return key


def either_key(request: Request) -> str:
    """As `bearer_key`, of `Authorization: Bearer` or `TT-API-KEY`, whichever came.

    Two that differ are refused with ApiKeyMistyped: whose budget pays for the order must not be a guess.
    """
    keys = {key for key in (_bearer(request), request.headers.get("tt-api-key", "").strip()) if key}
    if not keys:
        raise ApiKeyMissing(
            "No API key came with this request. Send it as `Authorization: Bearer ik_user_...`, or as `TT-API-KEY`."
        )
    if len(keys) > 1:
        raise ApiKeyMistyped("`Authorization` and `TT-API-KEY` hold two different keys. Send one, or the same in both.")
    (key,) = keys
    check_form(key)
    return key


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


async def look_up(request: Request, key: str) -> Caller:
    """Return who a key speaks for. Raises ApiKeyInvalid, UserDisabled or DatabaseUnavailable.

    `key` was found well formed before a connection is asked for: junk costs the pool nothing, and is told as junk while
    the database is away.
    """
    return _named_in_log(await wiring_of(request).callers.find(key))


async def look_up_for_order(request: Request, key: str) -> Caller:
    """As `look_up`, for an order: RESERVE looks again whether the key is live. See accounts/callers.py."""
    return _named_in_log(await wiring_of(request).callers.find_for_order(key))


def _named_in_log(caller: Caller) -> Caller:
    structlog.contextvars.bind_contextvars(user=caller.user_name, api_key_id=str(caller.api_key_id))
    return caller


async def _by_bearer_key(request: Request) -> Caller:
    return await look_up(request, bearer_key(request))


async def _by_either_key(request: Request) -> Caller:
    return await look_up(request, either_key(request))


Authenticated = Annotated[Caller, Depends(ByKey(_by_bearer_key))]
AuthenticatedByEither = Annotated[Caller, Depends(_by_either_key)]
