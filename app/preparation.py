"""What must be in the database before the service can take an order, and what if the database isn't there yet?

It is brought to this release's schema, the sandbox's generations are put out of the books of a real upstream, and the
first user is made. `serve` does not wait for a database that is away: it answers 503, and prepares it when it comes.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable

import structlog
from psycopg import conninfo, pq
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from app.accounts import budgets, keys
from app.database.revisions import OtherRelease
from app.database.schema import migrate
from app.errors import DatabaseUnavailable
from app.settings import Settings
from app.wiring import Neighbours, open_bucket, open_database

log = structlog.get_logger(__name__)

# The first user may spend this much by accident, whoever gets hold of the printed key.
FIRST_USER = "first"
FIRST_USER_IMAGES_PER_DAY_MAX = 100

# What a serving process gets where nobody is to be given notice. Not SIGINT: the terminal sends that one too, and a
# second means "now".
LEAVE_UNANNOUNCED = signal.SIGUSR1

_FIRST_USER_LOCK = 0x6669727374
_LOOK_AGAIN_SECONDS = 1.0
_TELL_AGAIN_SECONDS = 60.0
# libpq takes no less.
_KNOCK_SECONDS = 2


class ServeError(Exception):
    """The service can't start, or go on; the text says why and what to do."""


class DatabaseNotThere(ServeError):
    """No Postgres answers at DATABASE_URL, or one that is still starting. It may come."""


class Failure:
    """What a thread beside the serving one can't go on after: it stops the service, and is raised in its end."""

    def __init__(self) -> None:
        self._errors: list[BaseException] = []

    def tell(self, error: BaseException) -> None:
        """Stop the service in good order, because of this."""
        self._errors.append(error)
        threading.Thread(target=_end_it, name="failure", daemon=True).start()

    def raise_if_any(self) -> None:
        """Raise what was told first."""
        if self._errors:
            raise self._errors[0]


def _end_it() -> None:
    """Ask until it is done: a signal that arrives while the service puts up its handlers is lost."""
    while True:
        # Without a handler, the signal would end this process with everything it has started still running. The parent
        # of workers has none for the first.
        obeyed = [word for word in (LEAVE_UNANNOUNCED, signal.SIGTERM) if signal.getsignal(word) is not signal.SIG_DFL]
        if obeyed:
            os.kill(os.getpid(), obeyed[0])
        time.sleep(_LOOK_AGAIN_SECONDS)


def prepare(settings: Settings, neighbours: Neighbours) -> str | None:
    """Migrate, put the sandbox's generations out of the books of a real upstream, and make the first user.

    Returns the first user's key; None when there were users already. Raises DatabaseNotThere, and ServeError for a
    database that refuses. Before it makes a key, it raises as `require_bucket`.
    """
    before, now = migrate_or_tell(neighbours.database_url)
    if before != now:
        log.info("migrated", before=before, now=now)
    try:
        if asyncio.run(_has_users(settings, neighbours)):
            return None
        # The key that is made now is shown in the banner and never again, so nothing may come in between.
        require_bucket(settings)
        return asyncio.run(_make_first_user(settings, neighbours))
    except DatabaseUnavailable as error:
        said = database_words(error.__cause__) if isinstance(error.__cause__, DBAPIError) else "no answer in time"
        raise DatabaseNotThere(f"The database at DATABASE_URL broke off while it was prepared: {said}") from error


def preparing_later(
    settings: Settings, neighbours: Neighbours, announce: Callable[[str | None], None], failure: Failure
) -> None:
    """Prepare in a thread as soon as the database is there, then call `announce` with the first user's key, if new.

    A database that refuses is told to `failure`. Nobody waits for the thread: it ends with the process.
    """

    def work() -> None:
        told_at = time.monotonic()
        while True:
            time.sleep(_LOOK_AGAIN_SECONDS)
            try:
                key = prepare(settings, neighbours)
            except DatabaseNotThere as away:
                if time.monotonic() - told_at > _TELL_AGAIN_SECONDS:
                    told_at = time.monotonic()
                    log.warning("database_not_there", detail=str(away))
            except BaseException as error:  # noqa: BLE001 - whatever it is, the main thread raises it.
                failure.tell(error)
                return
            else:
                log.info("database_came")
                announce(key)
                return

    threading.Thread(target=work, name="preparation", daemon=True).start()


def migrate_or_tell(database_url: str) -> tuple[str | None, str]:
    """Migrate, and return the revisions before and after.

    Raises DatabaseNotThere, and ServeError with what an operator can mend.
    """
    _require_answer(database_url)
    try:
        return migrate(database_url)
    except OperationalError as error:
        # Gone since, or just shutting down.
        _require_answer(database_url)
        raise ServeError(f"The database at DATABASE_URL can't be used: {database_words(error)}") from error
    except OtherRelease as error:
        raise ServeError(f"The database was made by another release, perhaps a newer one: {error}") from error


def database_words(error: DBAPIError) -> str:
    """Return what Postgres or its driver said, in one line and without the statement. It holds no password."""
    return " ".join(str(error.orig).split())


def require_bucket(settings: Settings) -> None:
    """Raise StorageMisconfigured where no bucket could be reached with these settings: half of the credentials, say.

    One that merely doesn't answer yet is no reason not to start.
    """
    if settings.s3_bucket is not None:
        asyncio.run(open_bucket(settings).close())


def _require_answer(database_url: str) -> None:
    """Raise DatabaseNotThere unless a Postgres answers, if only to refuse.

    By libpq's own knock: the driver raises one OperationalError for nobody there and for a wrong password, told apart
    only by words in the server's language.
    """
    url = make_url(database_url)
    _, parameters = url.get_dialect()().create_connect_args(url)
    parameters["connect_timeout"] = _KNOCK_SECONDS
    knock = pq.PGconn.ping(conninfo.make_conninfo("", **parameters).encode())
    if knock == pq.Ping.REJECT:
        raise DatabaseNotThere("The database at DATABASE_URL can't be used: Postgres is starting or stopping")
    if knock == pq.Ping.NO_RESPONSE:
        raise DatabaseNotThere(f"The database at DATABASE_URL can't be used: nobody answers at {url.host}:{url.port}")


async def _has_users(settings: Settings, neighbours: Neighbours) -> bool:
    """Put the sandbox's generations out of the books of a real upstream, and look whether there are users."""
    database = open_database(settings, neighbours.database_url)
    try:
        async with database.transaction() as tx:
            if neighbours.sandbox_url is None and (left_out := await budgets.leave_sandbox_out(tx)):
                log.info("sandbox_left_out_of_the_books", generations=left_out)
            return bool(await keys.list_users(tx))
    finally:
        await database.close()


async def _make_first_user(settings: Settings, neighbours: Neighbours) -> str | None:
    database = open_database(settings, neighbours.database_url)
    try:
        async with database.transaction() as tx:
            # Two replicas that start at once would both make one.
            await tx.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _FIRST_USER_LOCK})
            if await keys.list_users(tx):
                return None
            user = await keys.add_user(tx, FIRST_USER)
            await budgets.set_limits(tx, f"user:{user.id}", {"images_per_day_max": FIRST_USER_IMAGES_PER_DAY_MAX})
            return (await keys.create_key(tx, user))[1]
    finally:
        await database.close()
