"""Which shape has the database, and how does it get to the shape this release needs?"""

import time
from importlib.resources import as_file, files

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

log = structlog.get_logger(__name__)

# A server that accepts and says nothing, or has vanished, must not hold a start for ever.
_CONNECT_ARGS = {"connect_timeout": 10, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}

# Two processes that start at once would both create the tables; the second waits here and then finds them made.
_ADVISORY_LOCK = 0x696D6167656B


# Less than a replica's statement waits for (DATABASE_TIMEOUT_SECONDS); those that had to wait get through in the pause.
_LOCK_PATIENCE = "1s"
_AGAIN_SECONDS = 2.0
_LOCK_NOT_AVAILABLE = "55P03"


def migrate(database_url: str) -> tuple[str | None, str]:
    """Bring the database to this release's schema, under a lock that a second migrator waits for.

    Returns the revisions before and after. Raises what SQLAlchemy raises where the database can't be reached.
    """
    engine = create_engine(database_url, hide_parameters=True, connect_args=_CONNECT_ARGS)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _ADVISORY_LOCK})
            connection.commit()
            before = MigrationContext.configure(connection).get_current_revision()
            connection.commit()
            head = head_revision()
            if before != head:
                _upgrade(connection)
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _ADVISORY_LOCK})
            connection.commit()
            return before, head
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> None:
    """Upgrade as soon as the tables are free for it: a dump holds them for as long as it takes.

    Whoever waits for a table keeps all from it who come after, so an older replica would take no order meanwhile.
    """
    while True:
        connection.execute(text("SELECT set_config('lock_timeout', :patience, false)"), {"patience": _LOCK_PATIENCE})
        try:
            with as_file(files("migrations")) as folder:
                config = Config(attributes={"connection": connection})
                config.set_main_option("script_location", str(folder).replace("%", "%%"))
                command.upgrade(config, "head")
                connection.execute(text("SET lock_timeout TO DEFAULT"))
                connection.commit()
            return
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            connection.rollback()
            log.warning("migration_waits", detail="its tables are in use")
        time.sleep(_AGAIN_SECONDS)


async def takes_writes(connection: AsyncConnection) -> bool:
    """Return whether the database takes writes: a standby that was not promoted yet does not."""
    return (await connection.execute(text("SHOW transaction_read_only"))).scalar() == "off"


async def current_revision(connection: AsyncConnection) -> str | None:
    """Return the revision the database is at. Raises what SQLAlchemy raises before the first migration."""
    revision: str | None = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    return revision


def head_revision() -> str:
    """Return the revision this release needs."""
    with as_file(files("migrations")) as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        head = ScriptDirectory.from_config(config).get_current_head()
    assert head is not None, "a release without migrations can't be"
    return head
