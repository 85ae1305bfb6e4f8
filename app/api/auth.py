"""Who is calling?"""

from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from app.accounts.keys import Caller, check_form, find_caller
from app.api.surface import wiring_of
from app.errors import ApiKeyMissing, ApiKeyMistyped

# For the schema alone, so that /docs has a place to put a key; the header is read below, in our own words.
bearer = HTTPBearer(auto_error=False, scheme_name="API key", description="`Authorization: Bearer ik_user_...`")


async def bearer_key(request: Request, _: Annotated[object, Depends(bearer)]) -> str:
    """Return the key of the `Authorization: Bearer` header, well formed; nobody was asked whether it is anybody's.

    Raises ApiKeyMissing or ApiKeyMistyped.
    """
    key = _bearer(request)
    if not key:
        raise ApiKeyMissing
    check_form(key)
    return key


async def either_key(request: Request) -> str:
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
    async with wiring_of(request).database.statement() as connection:
        caller = await find_caller(connection, key)
    structlog.contextvars.bind_contextvars(user=caller.user_name, api_key_id=str(caller.api_key_id))
    return caller


async def _by_bearer_key(request: Request, key: Annotated[str, Depends(bearer_key)]) -> Caller:
    return await look_up(request, key)


async def _by_either_key(request: Request, key: Annotated[str, Depends(either_key)]) -> Caller:
    return await look_up(request, key)


Authenticated = Annotated[Caller, Depends(_by_bearer_key)]
AuthenticatedByEither = Annotated[Caller, Depends(_by_either_key)]
