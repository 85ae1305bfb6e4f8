"""What does an operator's command need: the settings, what it opens for a moment, and how it shows what it found?"""

import asyncio
import json
import re
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.keys import AccountsError
from app.database.binaries import EmbeddedPostgresError
from app.database.embedded import is_made, open_embedded
from app.database.schema import migrate
from app.errors import AppError, DatabaseUnavailable
from app.generations.rehost import RehostFailed
from app.preparation import ServeError, database_words, require_bucket
from app.settings import Settings, SettingsError, load_settings
from app.storage.base import StorageError
from app.telemetry import configure_logging
from app.upstream.catalog import CatalogError
from app.wiring import Neighbours, Wiring, open_database, open_wiring, sandbox_port_note

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]

# What an operator can mend is told in a sentence; anything else is a bug and shows its traceback.
OPERATOR_ERRORS = (
    AccountsError,
    AppError,
    CatalogError,
    EmbeddedPostgresError,
    RehostFailed,
    ServeError,
    SettingsError,
    StorageError,
)


# What a terminal shows in one line, if a window is made for reading.
_LINE_CHARACTERS = 100


class NoInstallation(Exception):
    """There is nothing here that a command could look at. Making something new in its place would hide a wrong turn."""


def load() -> Settings:
    """Return the settings, with logging set so that standard output holds only what was asked for."""
    settings = load_settings()
    configure_logging(level="WARNING", log_format=settings.log_format, secrets=settings.secrets())
    return settings


def on_connection(work: Callable[[AsyncConnection], Awaitable[T]], *, begin: bool = False) -> T:
    """Do `work` in one transaction, on the database of the settings.

    A private Postgres is borrowed from the running service, or started for the moment. Raises NoInstallation where
    there is none, unless the command may `begin` one.
    """
    settings = load()

    async def run(database_url: str) -> T:
        database = open_database(settings, database_url)
        try:
            async with database.transaction() as tx:
                return await work(tx)
        finally:
            await database.close()

    with _database_url(settings, begin=begin) as database_url:
        return _run(run(database_url))


def with_wiring(work: Callable[[Wiring], Awaitable[T]]) -> T:
    """Do `work` with everything a serving process shares. Nothing is sent upstream by it. Raises NoInstallation."""
    settings = load()

    async def run(database_url: str) -> T:
        async with open_wiring(settings, _neighbours(settings, database_url)) as wiring:
            return await work(wiring)

    with _database_url(settings, begin=False) as database_url:
        require_bucket(settings)
        return _run(run(database_url))


def _run(work: Awaitable[T]) -> T:
    async def awaited() -> T:
        return await work

    try:
        return asyncio.run(awaited())
    except DatabaseUnavailable as error:
        if error.not_migrated:
            raise AccountsError("the database was not migrated yet: run `imagekeep migrate` first") from error
        raise


@contextmanager
def _database_url(settings: Settings, *, begin: bool) -> Iterator[str]:
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    if not begin and not is_made(settings.data_dir):
        raise NoInstallation(
            f"there is no installation here (DATA_DIR={settings.data_dir.absolute()}): change to its folder, set"
            " DATA_DIR or DATABASE_URL, or begin one with `imagekeep serve`"
        )
    with open_embedded(settings.data_dir, role="command", binaries_dir=settings.postgres_binaries_dir) as embedded:
        # Nobody else migrates a private Postgres that was never served from.
        migrate(embedded.url)
        yield embedded.url


def _neighbours(settings: Settings, database_url: str) -> Neighbours:
    if settings.tt_api_key is not None:
        return Neighbours(database_url)
    note = sandbox_port_note(settings.data_dir)
    # Where the service's sandbox is, or was: a picture that waits there can be fetched while it runs.
    return Neighbours(database_url, f"http://127.0.0.1:{note.read_text() if note.exists() else 9}")


# Reading


def parse_id(value: str) -> UUID:
    """Return an id. What is none is not repeated: it may be a key, given by mistake."""
    try:
        return UUID(value)
    except ValueError:
        raise typer.BadParameter("must be an id, as `list` and --json show it") from None


Id = Annotated[UUID, typer.Argument(parser=parse_id, metavar="ID")]


def parse_count(value: str) -> int:
    """Return a limit; -1 for the word "none", which takes a limit away."""
    if value.lower() == "none":
        return -1
    if not re.fullmatch(r"\d{1,9}", value):
        raise typer.BadParameter("must be a whole number, or none")
    return int(value)


def parse_usd(value: str) -> int:
    """Return an amount of USD in micros; -1 for "none"."""
    if value.lower() == "none":
        return -1
    try:
        micros = Decimal(value) * 1_000_000
    except InvalidOperation:
        raise typer.BadParameter("must be an amount of USD like 12.50, or none") from None
    if not micros.is_finite() or micros < 0 or micros != int(micros) or micros > 10**15:
        raise typer.BadParameter("must be an amount of USD like 12.50, or none")
    return int(micros)


# Showing


def show(found: Mapping[str, Any] | Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print what a command found: one JSON document and nothing else, or a table for a person."""
    if as_json:
        print(json.dumps(found, default=str))
        return
    rows = [found] if isinstance(found, Mapping) else list(found)
    if not rows:
        print("(none)")
        return
    columns = list(rows[0])
    cells = [[name.upper().replace("_", " ") for name in columns]] + [
        [_cell(row[name]) for name in columns] for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_one(found: Mapping[str, Any], as_json: bool) -> None:
    """Print one thing that a command found: a JSON document, or a line for each of its fields, wrapped."""
    if as_json:
        show(found, as_json)
        return
    width = max(len(name) for name in found)
    for name, value in found.items():
        cells = [_cell(one) for one in value] if isinstance(value, list) else [_cell(value)]
        for cell in cells or ["-"]:
            head, *rest = textwrap.wrap(cell, _LINE_CHARACTERS - width - 2) or [""]
            print(f"{name.replace('_', ' ').ljust(width)}  {head}".rstrip())
            for line in rest:
                print(f"{'':{width}}  {line}")


def say(line: str) -> None:
    """Print a line of what was asked for."""
    print(line)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={amount}" for name, amount in value.items() if amount is not None) or "-"
    return "-" if value is None else str(value)


def complain(error: Exception) -> None:
    """Say on standard error what an operator has to know."""
    said = str(error)
    if isinstance(error, DatabaseUnavailable) and isinstance(error.__cause__, DBAPIError):
        # To a caller it is enough that the database is away; an operator has to know why.
        said = f"The database at DATABASE_URL can't be used: {database_words(error.__cause__)}"
    print(f"imagekeep: {said}", file=sys.stderr)
