"""How does a database get from one revision to this release's, with replicas at work on it?"""

import time
from importlib.resources import as_file, files

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from app.database.revisions import OtherRelease

log = structlog.get_logger(__name__)

# Less than a replica's statement waits for (DATABASE_TIMEOUT_SECONDS); those that had to wait get through in the pause.
_LOCK_PATIENCE = "1s"
_AGAIN_SECONDS = 2.0
_LOCK_NOT_AVAILABLE = "55P03"


def upgrade(connection: Connection) -> str | None:
    """Upgrade as soon as the tables are free for it: a dump holds them for as long as it takes.

    Whoever waits for a table keeps all from it who come after, so an older replica would take no order meanwhile.
    Returns the revision before. Raises OtherRelease.
    """
    try:
        before = MigrationContext.configure(connection).get_current_revision()
        connection.commit()
        while not _upgraded(connection):
            time.sleep(_AGAIN_SECONDS)
        return before
    except CommandError as error:
        raise OtherRelease(str(error)) from error


def _upgraded(connection: Connection) -> bool:
    """Upgrade, and return False if the tables were in use."""
    connection.execute(text("SELECT set_config('lock_timeout', :patience, false)"), {"patience": _LOCK_PATIENCE})
    try:
        with as_file(files("migrations")) as folder:
            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(folder).replace("%", "%%"))
            command.upgrade(config, "head")
            connection.execute(text("SET lock_timeout TO DEFAULT"))
            connection.commit()
        return True
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        connection.rollback()
        log.warning("migration_waits", detail="its tables are in use")
        return False
