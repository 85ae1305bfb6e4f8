"""Who is calling?"""

from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from app.accounts.keys import Caller, check_form, find_caller
from app.api.surface import wiring_of
from app.errors import ApiKeyMissing

# For the schema alone, so that /docs has a place to put a key; the header is read below, in our own words.
bearer = HTTPBearer(auto_error=False, scheme_name="API key", description="`Authorization: Bearer ik_user_...`")


def presented_key(request: Request) -> str:
    """Return the key of the `Authorization: Bearer` header, well formed; nobody was asked whether it is anybody's.

    Raises ApiKeyMissing or ApiKeyMistyped.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiKeyMissing
    check_form(key.strip())
    return key.strip()


async def authenticate(request: Request, _: Annotated[object, Depends(bearer)]) -> Caller:
    """Return who the `Authorization: Bearer` header speaks for.

    Raises ApiKeyMissing, ApiKeyMistyped, ApiKeyInvalid, UserDisabled or DatabaseUnavailable.
    """
    # Before a connection is asked for: junk costs the pool nothing, and is told as junk while the database is away.
    key = presented_key(request)
    async with wiring_of(request).database.statement() as connection:
        caller = await find_caller(connection, key)
    structlog.contextvars.bind_contextvars(user=caller.user_name, api_key_id=str(caller.api_key_id))
    return caller


Authenticated = Annotated[Caller, Depends(authenticate)]
