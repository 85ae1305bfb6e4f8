"""Who is calling: how API keys are made, checked, found and revoked, and whose they are?"""

import binascii
import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from uuid import UUID

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from app.database.direct import Runs, prepare
from app.database.tables import api_keys, users
from app.errors import ApiKeyInvalid, ApiKeyMistyped, UserDisabled

PREFIX = "ik_user_"
# For secret scanners; docs/operations.md shows it as a rule for gitleaks.
KEY_PATTERN = r"ik_user_[0-9A-Za-z]{38}"

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_CHARACTERS = 32  # 62 ** 32 is 190 bits
_CHECKSUM_CHARACTERS = 6  # 62 ** 6 holds every CRC32


@dataclass(frozen=True)
class Caller:
    """A user and the key that speaks for them, known for this request."""

    user_id: UUID
    user_name: str
    api_key_id: UUID

    @property
    def scopes(self) -> tuple[str, ...]:
        """Every scope an order of this caller counts in."""
        return scopes_of(self.user_id, self.api_key_id)


@lru_cache(maxsize=1024)
def scopes_of(user_id: UUID, api_key_id: UUID) -> tuple[str, ...]:
    """Return every scope in which an order counts that this key of this user has made."""
    return "all", f"key:{api_key_id}", f"user:{user_id}"


@dataclass(frozen=True)
class User:
    """A user as the operator sees them."""

    id: UUID
    name: str
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True)
class ApiKey:
    """A key as the operator sees it: all but the key."""

    id: UUID
    user: str
    last_four: str
    created_at: datetime
    revoked_at: datetime | None


def make_key() -> str:
    """Return a new API key: a readable prefix, 190 random bits, and a checksum of both in base 62."""
    body = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
    return body + _checksum(body)


def check_form(key: str) -> None:
    """Raise ApiKeyMistyped unless the key's form and checksum are right. Asks nobody, so junk costs no look-up."""
    body, checksum = key[:-_CHECKSUM_CHARACTERS], key[-_CHECKSUM_CHARACTERS:]
    if not re.fullmatch(KEY_PATTERN, key) or not secrets.compare_digest(_checksum(body), checksum):
        raise ApiKeyMistyped


def digest_of(key: str) -> bytes:
    """Return what is stored of a key: its SHA-256."""
    return hashlib.sha256(key.encode()).digest()


def _checksum(body: str) -> str:
    number = binascii.crc32(body.encode())
    characters = []
    for _ in range(_CHECKSUM_CHARACTERS):
        number, rest = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[rest])
    return "".join(reversed(characters))


async def find_caller(connection: AsyncConnection, key: str) -> Caller:
    """Return who a key speaks for.

    Raises ApiKeyMistyped, ApiKeyInvalid (unknown or revoked) or UserDisabled. RESERVE looks again, so a key that is
    revoked between the two starts nothing.
    """
    check_form(key)
    row = (
        await connection.execute(
            select(api_keys.c.id, api_keys.c.revoked_at, users.c.id.label("user_id"), users.c.name, users.c.disabled_at)
            .join(users, users.c.id == api_keys.c.user_id)
            .where(api_keys.c.digest == digest_of(key))
        )
    ).one_or_none()
    if row is None or row.revoked_at is not None:
        raise ApiKeyInvalid
    if row.disabled_at is not None:
        raise UserDisabled
    return Caller(user_id=row.user_id, user_name=row.name, api_key_id=row.id)


_STANDING = prepare("""
SELECT k.revoked_at IS NULL, u.disabled_at IS NULL FROM api_keys k JOIN users u ON u.id = k.user_id
WHERE k.id = :api_key_id""")


async def why_not_live(connection: Runs, caller: Caller) -> ApiKeyInvalid | UserDisabled:
    """Return what an order is refused with whose key RESERVE found not to be live."""
    row = await connection.row(_STANDING, {"api_key_id": caller.api_key_id})
    key_is_live, user_is_enabled = row or (False, True)
    return UserDisabled() if key_is_live and not user_is_enabled else ApiKeyInvalid()


class AccountsError(Exception):
    """What the operator asked of users or keys can't be done; the text says why."""


async def add_user(tx: AsyncConnection, name: str) -> User:
    """Add a user. Raises AccountsError when the name is taken or empty."""
    if not name.strip() or not name.isprintable():
        raise AccountsError("a user's name must be printable and not empty")
    taken = (await tx.execute(select(users.c.id).where(users.c.name == name))).one_or_none()
    if taken:
        raise AccountsError(f"there is a user {name!r} already")
    row = (await tx.execute(insert(users).values(id=uuid7(), name=name).returning(users))).one()
    return User(row.id, row.name, row.created_at, row.disabled_at)


async def find_user(connection: AsyncConnection, name: str) -> User:
    """Return a user by name. Raises AccountsError when there is none."""
    row = (await connection.execute(select(users).where(users.c.name == name))).one_or_none()
    if row is None:
        raise AccountsError(f"there is no user {name!r}")
    return User(row.id, row.name, row.created_at, row.disabled_at)


async def list_users(connection: AsyncConnection) -> Sequence[User]:
    """Return every user, by name."""
    rows = await connection.execute(select(users).order_by(users.c.name))
    return [User(row.id, row.name, row.created_at, row.disabled_at) for row in rows]


async def set_disabled(connection: AsyncConnection, user: User, *, disabled: bool) -> None:
    """Disable a user, so that their keys start nothing more, or enable them again."""
    await connection.execute(
        update(users).where(users.c.id == user.id).values(disabled_at=func.now() if disabled else None)
    )


async def create_key(connection: AsyncConnection, user: User) -> tuple[ApiKey, str]:
    """Make a key for a user. The second value is the key itself, which nobody can ask for again."""
    key = make_key()
    row = (
        await connection.execute(
            insert(api_keys)
            .values(id=uuid7(), user_id=user.id, digest=digest_of(key), last_four=key[-4:])
            .returning(api_keys)
        )
    ).one()
    return ApiKey(row.id, user.name, row.last_four, row.created_at, row.revoked_at), key


async def list_keys(connection: AsyncConnection, user: User | None = None) -> Sequence[ApiKey]:
    """Return the keys of one user, or of all, oldest first."""
    query = select(api_keys, users.c.name).join(users, users.c.id == api_keys.c.user_id).order_by(api_keys.c.id)
    if user is not None:
        query = query.where(api_keys.c.user_id == user.id)
    rows = await connection.execute(query)
    return [ApiKey(row.id, row.name, row.last_four, row.created_at, row.revoked_at) for row in rows]


async def revoke_key(connection: AsyncConnection, api_key_id: UUID) -> ApiKey:
    """Revoke a key, from the next statement on. Revoking twice is fine. Raises AccountsError for an unknown id."""
    row = (
        await connection.execute(
            update(api_keys)
            .where(api_keys.c.id == api_key_id, users.c.id == api_keys.c.user_id)
            .values(revoked_at=func.coalesce(api_keys.c.revoked_at, func.now()))
            .returning(api_keys, users.c.name)
        )
    ).one_or_none()
    if row is None:
        raise AccountsError(f"there is no key {api_key_id}")
    return ApiKey(row.id, row.name, row.last_four, row.created_at, row.revoked_at)


async def rotate_key(tx: AsyncConnection, api_key_id: UUID) -> tuple[ApiKey, str]:
    """Revoke a key and make its user a new one, in one transaction. Returns and raises as above.

    The new key has a budget of its own, without limits: whoever rotates carries over those of the old one.
    """
    revoked = select(api_keys.c.id).where(api_keys.c.id == api_key_id, api_keys.c.revoked_at.is_not(None))
    if (await tx.execute(revoked)).one_or_none():
        raise AccountsError("that key is revoked already; `imagekeep keys create` makes its user a new one")
    old = await revoke_key(tx, api_key_id)
    return await create_key(tx, await find_user(tx, old.user))
