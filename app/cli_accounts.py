"""What can an operator do to users, keys and their limits?"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, cast

import typer
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import budgets, keys
from app.accounts.budgets import Limits
from app.accounts.keys import AccountsError, ApiKey, User
from app.console import Id, Json, on_connection, parse_count, parse_usd, show

users = typer.Typer(help="Whom budgets belong to.", no_args_is_help=True)
api_keys = typer.Typer(help="What callers send.", no_args_is_help=True)

# What a command was told of limits: None takes one away.
Changes = dict[str, int | None]

# Each option, the limit it sets, how it is read, and its help.
_LIMIT_OPTIONS: Mapping[str, tuple[str, Callable[[str], int], str]] = {
    "images_per_day": ("images_per_day_max", parse_count, "Images a UTC day."),
    "images_per_month": ("images_per_month_max", parse_count, "Images a UTC month."),
    "images_total": ("images_total_max", parse_count, "Images altogether."),
    "usd_per_month": ("micros_per_month_max", parse_usd, "USD a UTC month."),
    "in_flight": ("in_flight_max", parse_count, "Generations in flight at once."),
    "requests_per_minute": ("requests_per_minute_max", parse_count, "Orders a minute."),
}


def with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each limit, and hand it those that were given as `changes`.

    Written out, the six options stood in four commands, and a seventh would have been forgotten in one of them.
    """
    signature = inspect.signature(command)
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[int | None, typer.Option(parser=parse, metavar="N", help=f'{text} "none": no limit.')],
        )
        for name, (_, parse, text) in _LIMIT_OPTIONS.items()
    ]

    def with_changes(**given: Any) -> None:
        told = {limit: given.pop(name) for name, (limit, _, _) in _LIMIT_OPTIONS.items()}
        changes = {limit: None if value == -1 else value for limit, value in told.items() if value is not None}
        command(changes=changes, **given)

    own = [parameter for parameter in signature.parameters.values() if parameter.name != "changes"]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    with_changes.__doc__ = command.__doc__
    with_changes.__name__ = command.__name__
    cast("Any", with_changes).__signature__ = signature.replace(parameters=[*own, *options])
    return with_changes


@users.command("add")
@with_limits
def add_user(
    name: str,
    changes: Changes,
    as_json: Json = False,
) -> None:
    """Add a user, with limits; a limit that isn't given is no limit."""

    async def work(tx: AsyncConnection) -> dict[str, Any]:
        user = await keys.add_user(tx, name)
        return _user_row(user, await budgets.set_limits(tx, f"user:{user.id}", changes))

    show(on_connection(work, begin=True), as_json)


@users.command("list")
def list_users(as_json: Json = False) -> None:
    """List the users with their limits."""

    async def work(tx: AsyncConnection) -> list[dict[str, Any]]:
        found = await keys.list_users(tx)
        return [_user_row(user, await budgets.limits_of(tx, f"user:{user.id}")) for user in found]

    show(on_connection(work), as_json)


@users.command("limits")
@with_limits
def limit_user(
    name: str,
    changes: Changes,
    as_json: Json = False,
) -> None:
    """Change a user's limits, "none" taking one away, and show how far each is used."""

    async def work(tx: AsyncConnection) -> list[dict[str, Any]]:
        return await _limit(tx, f"user:{(await keys.find_user(tx, name)).id}", changes)

    show(on_connection(work), as_json)


@users.command("disable")
def disable_user(name: str, as_json: Json = False) -> None:
    """Let a user's keys start nothing more. What is running finishes; images stay."""
    _set_disabled(name, True, as_json)


@users.command("enable")
def enable_user(name: str, as_json: Json = False) -> None:
    """Let a disabled user's keys work again."""
    _set_disabled(name, False, as_json)


@api_keys.command("create")
def create_key(user: str, as_json: Json = False) -> None:
    """Make a key for a user and print it, this once."""

    async def work(tx: AsyncConnection) -> dict[str, Any]:
        made, key = await keys.create_key(tx, await keys.find_user(tx, user))
        return {"id": str(made.id), "user": made.user, "key": key, "created_at": made.created_at.isoformat()}

    show(on_connection(work), as_json)


@api_keys.command("list")
def list_keys(user: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """List the keys of a user, or all: by their last four characters."""

    async def work(tx: AsyncConnection) -> list[dict[str, Any]]:
        owner = await keys.find_user(tx, user) if user else None
        return [_key_row(key) for key in await keys.list_keys(tx, owner)]

    show(on_connection(work), as_json)


@api_keys.command("limits")
@with_limits
def limit_key(
    key_id: Id,
    changes: Changes,
    as_json: Json = False,
) -> None:
    """Change a key's own limits, beside its user's, and show how far each is used."""

    async def work(tx: AsyncConnection) -> list[dict[str, Any]]:
        if all(key.id != key_id for key in await keys.list_keys(tx)):
            raise AccountsError(f"there is no key {key_id}")
        return await _limit(tx, f"key:{key_id}", changes)

    show(on_connection(work), as_json)


@api_keys.command("revoke")
def revoke_key(key_id: Id, as_json: Json = False) -> None:
    """Revoke a key: it starts nothing from the next order on."""

    async def work(tx: AsyncConnection) -> dict[str, Any]:
        return _key_row(await keys.revoke_key(tx, key_id))

    show(on_connection(work), as_json)


@api_keys.command("rotate")
def rotate_key(key_id: Id, as_json: Json = False) -> None:
    """Revoke a key and make its user a new one with the same limits, in one step. Prints the new key, this once."""

    async def work(tx: AsyncConnection) -> dict[str, Any]:
        limits = await budgets.limits_of(tx, f"key:{key_id}")
        made, key = await keys.rotate_key(tx, key_id)
        if limits != Limits():
            await budgets.set_limits(tx, f"key:{made.id}", asdict(limits))
        return {"id": str(made.id), "user": made.user, "key": key, "created_at": made.created_at.isoformat()}

    show(on_connection(work), as_json)


# Budgets


@with_limits
def limit_installation(
    changes: Changes,
    as_json: Json = False,
) -> None:
    """Change the limits of the whole installation, and show how far each is used."""

    async def work(tx: AsyncConnection) -> list[dict[str, Any]]:
        return await _limit(tx, "all", changes)

    show(on_connection(work), as_json)


async def _limit(tx: AsyncConnection, scope: str, changes: Mapping[str, int | None]) -> list[dict[str, Any]]:
    if changes:
        await budgets.set_limits(tx, scope, changes)
    return [asdict(gauge) for gauge in await budgets.gauges_of(tx, [scope])]


def _set_disabled(name: str, disabled: bool, as_json: bool) -> None:
    async def work(tx: AsyncConnection) -> dict[str, Any]:
        await keys.set_disabled(tx, await keys.find_user(tx, name), disabled=disabled)
        user = await keys.find_user(tx, name)
        return _user_row(user, await budgets.limits_of(tx, f"user:{user.id}"))

    show(on_connection(work), as_json)


def _user_row(user: User, limits: Limits) -> dict[str, Any]:
    return {"id": str(user.id), "name": user.name, "disabled": user.disabled_at is not None, "limits": asdict(limits)}


def _key_row(key: ApiKey) -> dict[str, Any]:
    return {
        "id": str(key.id),
        "user": key.user,
        "last_four": key.last_four,
        "created_at": key.created_at.isoformat(),
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }
