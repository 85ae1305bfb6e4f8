"""What does the `imagekeep` command offer: starting the service, and everything an operator does on a server?"""

import getpass
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import budgets, keys
from app.accounts.keys import AccountsError
from app.cli_accounts import api_keys, limit_installation, users
from app.cli_verify import verify
from app.console import (
    OPERATOR_ERRORS,
    Id,
    Json,
    NoInstallation,
    complain,
    load,
    on_connection,
    show,
    show_one,
    with_wiring,
)
from app.database.embedded import open_embedded
from app.generations import images, records
from app.generations.records import Generation
from app.generations.recovery import recover_once
from app.generations.usage import usage_of
from app.preparation import ServeError, migrate_or_tell
from app.settings import load_settings
from app.wiring import Wiring

cli = typer.Typer(
    help="Imagekeep keeps a paid image API's key, and keeps the images.", no_args_is_help=True, add_completion=False
)
generations = typer.Typer(help="What was ordered, and how it stands.", no_args_is_help=True)
storage = typer.Typer(help="Where images live.", no_args_is_help=True)
cli.add_typer(users, name="users")
cli.add_typer(api_keys, name="keys")
cli.add_typer(generations, name="generations")
cli.add_typer(storage, name="storage")
cli.command("limits")(limit_installation)
cli.command("verify")(verify)


def main() -> None:
    """Run a command. What an operator can mend ends with a sentence on standard error and exit status 1.

    2 tells, as for a mistyped command, that nothing was looked at: there is no installation here.
    """
    try:
        cli()
    except NoInstallation as error:
        complain(error)
        sys.exit(2)
    except OPERATOR_ERRORS as error:
        complain(error)
        sys.exit(1)


# Running


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; BIND_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; PORT.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve; WORKERS.")] = None,
    as_json: Json = False,
) -> None:
    """Run the service, with whatever the settings leave open: a private Postgres, a folder, the sandbox."""
    # The surfaces take 0.3 s to import, and no other command needs them.
    from app.serve import serve as serve_installation  # noqa: PLC0415

    serve_installation(load_settings(bind_host=host, port=port, workers=workers), as_json=as_json)


@cli.command()
def migrate(as_json: Json = False) -> None:
    """Bring the database to this release's schema."""
    settings = load()
    if settings.database_url is not None:
        before, now = migrate_or_tell(settings.database_url.get_secret_value())
    else:
        with open_embedded(settings.data_dir, role="command", binaries_dir=settings.postgres_binaries_dir) as embedded:
            before, now = migrate_or_tell(embedded.url)
    show({"before": before, "now": now}, as_json)


@cli.command()
def sandbox(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")],
    draw: Annotated[bool, typer.Option(help="Draw the pictures, or answer with blank ones, for load.")] = True,
    url_lifetime_seconds: Annotated[float, typer.Option(help="How long a picture's address works.")] = 7200,
    delay_seconds: Annotated[float, typer.Option(help="How long every order takes.")] = 0,
    as_json: Json = False,
) -> None:
    """Run the sandbox alone: an upstream that speaks TTAPI and draws its pictures locally."""
    # No other command needs it, and serving starts it as a process of its own.
    from app.sandbox.server import bind, run_sandbox  # noqa: PLC0415

    try:
        bind("127.0.0.1", port).close()
    except OSError as error:
        # Found before anything is shown, so that a script never reads an address that nobody answers at.
        raise ServeError(f"Port {port} on 127.0.0.1 can't be had ({error.strerror}). Choose another --port.") from error
    show({"url": f"http://127.0.0.1:{port}", "witness": f"http://127.0.0.1:{port}/witness"}, as_json)
    sys.stdout.flush()
    run_sandbox(
        host="127.0.0.1", port=port, draw=draw, url_lifetime_seconds=url_lifetime_seconds, delay_seconds=delay_seconds
    )


# Budgets


@cli.command()
def usage(
    month: Annotated[str | None, typer.Option(metavar="YYYY-MM", help="A UTC month; this one if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Show who spent what in a month: settled, held, and lost, in images and micros (1 USD = 1,000,000)."""
    day = _month(month) if month else datetime.now(UTC).date()

    async def work(tx: AsyncConnection) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in await usage_of(tx, day)]

    show(on_connection(work), as_json)


@cli.command()
def reconcile(as_json: Json = False) -> None:
    """Recount every budget from the generations. Exit status 1 if any counter differs; nothing is changed."""

    async def work(tx: AsyncConnection) -> list[dict[str, Any]]:
        return [asdict(difference) for difference in await budgets.differences(tx)]

    found = on_connection(work)
    show(found, as_json)
    if found:
        raise typer.Exit(1)


# Generations and images


@generations.command("list")
def list_generations(
    state: Annotated[str | None, typer.Option(help="Only those in this state, such as unknown.")] = None,
    user: Annotated[str | None, typer.Option(help="Only those of this user.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: Json = False,
) -> None:
    """List generations, newest first."""
    if state is not None and state not in (*records.RUNNING, *records.ENDED):
        raise typer.BadParameter(
            f"must be one of {', '.join((*records.RUNNING, *records.ENDED))}", param_hint="--state"
        )

    async def work(tx: AsyncConnection) -> list[dict[str, Any]]:
        owner = (await keys.find_user(tx, user)).id if user else None
        found = await records.page(tx, limit=limit, user_id=owner, state=state, with_deleted=True)
        names = await _names(tx)
        return [_generation_row(generation, names) for generation in found]

    rows = on_connection(work)
    show(rows if as_json else [_generation_line(row) for row in rows], as_json)


@generations.command("show")
def show_generation(generation_id: Id, as_json: Json = False) -> None:
    """Show one generation whole, but for its prompt."""

    async def work(tx: AsyncConnection) -> dict[str, Any]:
        generation = await records.find(tx, generation_id)
        if generation is None:
            raise AccountsError(f"there is no generation {generation_id}")
        row = _generation_row(generation, await _names(tx))
        pictures = [{"id": image.id, "storage": image.storage, "key": image.storage_key} for image in generation.images]
        return row | {
            "n": generation.held_images,
            "asked": generation.asked,
            "used_micros": generation.used_micros,
            "failure_detail": generation.failure_detail,
            "finished_at": generation.finished_at.isoformat() if generation.finished_at else None,
            "request_id": generation.request_id,
            "attempts": generation.attempts,
            "lease_until": str(generation.lease_until) if generation.lease_until else None,
            "images": pictures,
        }

    show_one(on_connection(work), as_json)


@generations.command("resolve")
def resolve_generation(
    generation_id: Id,
    billed: Annotated[
        bool | None, typer.Option("--billed/--not-billed", help="What the provider's account says; one must be given.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who says so; the account on this machine if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Settle an `unknown` generation by what the provider's account says; a picture that is in storage outranks it."""
    if billed is None:
        raise typer.BadParameter(
            "or --not-billed must be given: look whether the provider's account was charged for it",
            param_hint="--billed",
        )

    async def work(wiring: Wiring) -> dict[str, Any]:
        async with wiring.database.statement() as connection:
            generation = await records.find(connection, generation_id)
        if generation is None or generation.state != "unknown":
            raise AccountsError(f"there is no generation {generation_id} in the state unknown")
        resolved = await wiring.driver.resolve(generation, billed=billed, by=by or _account())
        if resolved is None:
            raise AccountsError("it moved on meanwhile: look again")
        async with wiring.database.statement() as connection:
            return _generation_row(resolved, await _names(connection))

    row = with_wiring(work)
    show(row if as_json else _generation_line(row), as_json)


@cli.command()
def recover(as_json: Json = False) -> None:
    """Drive on every generation whose lease has run out, now, as the service does by itself."""

    async def work(wiring: Wiring) -> dict[str, Any]:
        claimed = ended = erased = unspooled = 0
        while True:
            done = await recover_once(
                wiring.database,
                wiring.driver,
                wiring.stores,
                lease_seconds=wiring.settings.generated_lease_seconds,
            )
            claimed, ended, erased = claimed + done.claimed, ended + done.ended, erased + done.erased
            unspooled += done.unspooled
            if not done.claimed and not done.unspooled:
                return {"claimed": claimed, "ended": ended, "erased": erased, "unspooled": unspooled}

    show(with_wiring(work), as_json)


@storage.command("move")
def move_images(as_json: Json = False) -> None:
    """Carry every image that lives elsewhere to the storage of the settings, while the service runs."""

    async def work(wiring: Wiring) -> dict[str, Any]:
        moved = await images.move_all(wiring.database, wiring.stores, prefix=wiring.settings.s3_prefix)
        return {"to": wiring.home.name, "images": moved.images, "bytes": moved.bytes, "failures": list(moved.failures)}

    done = with_wiring(work)
    show(done, as_json)
    if done["failures"]:
        raise typer.Exit(1)


async def _names(connection: AsyncConnection) -> Mapping[UUID, str]:
    return {user.id: user.name for user in await keys.list_users(connection)}


def _generation_row(generation: Generation, names: Mapping[UUID, str]) -> dict[str, Any]:
    return {
        "id": str(generation.id),
        "user": names[generation.user_id],
        "state": generation.state,
        "failure_code": generation.failure_code,
        "model": generation.model,
        "size": generation.size,
        "quality": generation.quality,
        "held_micros": generation.held_micros,
        "settled_micros": generation.settled_micros,
        "sandbox": generation.sandbox,
        "created_at": generation.created_at.isoformat(),
    }


def _generation_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a generation fits a line: money is shown as held for as long as it is held."""
    settled = row["settled_micros"]
    return {
        "id": row["id"],
        "created": row["created_at"][:19],
        "user": row["user"],
        "state": row["state"],
        "failure": row["failure_code"],
        "usd_held": budgets.in_usd(row["held_micros"]) if settled is None else None,
        "usd_settled": None if settled is None else budgets.in_usd(settled),
        "model": row["model"],
        "size": row["size"],
        "quality": row["quality"],
        "sandbox": "yes" if row["sandbox"] else None,
    }


def _account() -> str:
    """Who runs this command, as far as the machine knows: behind sudo, the person and not root."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # A container may run as a bare number.
        return f"uid {os.getuid()}"


def _month(text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise typer.BadParameter("must be like 2026-11", param_hint="--month") from None
