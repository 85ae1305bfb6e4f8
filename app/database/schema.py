"""Which shape has the database, and how does it get to the shape this release needs?"""

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database.revisions import head_revision

# A server that accepts and says nothing, or has vanished, must not hold a start for ever.
_CONNECT_ARGS = {"connect_timeout": 10, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}

# Two processes that start at once would both create the tables; the second waits here and then finds them made.
_ADVISORY_LOCK = 0x696D6167656B

# What Postgres answers where there is no such table.
_NO_TABLE = "42P01"


def migrate(database_url: str) -> tuple[str | None, str]:
    """Bring the database to this release's schema, under a lock that a second migrator waits for.

    Returns the revisions before and after. Raises OtherRelease, and what SQLAlchemy raises where the database can't be
    reached.
    """
    engine = create_engine(database_url, hide_parameters=True, connect_args=_CONNECT_ARGS)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _ADVISORY_LOCK})
            connection.commit()
            head = head_revision()
            before = head if _revisions(connection) == [head] else _upgrade(connection)
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _ADVISORY_LOCK})
            connection.commit()
            return before, head
    finally:
        engine.dispose()


def _revisions(connection: Connection) -> list[str]:
    """Return what stands in Alembic's own table: one revision; none before the first migration."""
    try:
        return list(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _NO_TABLE:
            raise
        return []
    finally:
        connection.rollback()


def _upgrade(connection: Connection) -> str | None:
    # Alembic takes 0.11 s to import, and few starts have anything to migrate.
    from app.database.migration import upgrade  # noqa: PLC0415

    return upgrade(connection)


async def takes_writes(connection: AsyncConnection) -> bool:
    """Return whether the database takes writes: a standby that was not promoted yet does not."""
    return (await connection.execute(text("SHOW transaction_read_only"))).scalar() == "off"


async def current_revision(connection: AsyncConnection) -> str | None:
    """Return the revision the database is at. Raises what SQLAlchemy raises before the first migration."""
    revision: str | None = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    return revision
