"""Is this release's revision known without Alembic, and does a migration leave an older replica its tables?"""

from concurrent.futures import ThreadPoolExecutor

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from app.database.revisions import head_revision
from app.database.schema import migrate
from tests.service import rows

WAITING = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'generations'::regclass"


def downgrade(database_url: str, revision: str) -> None:
    """Bring the database back to an older release's schema."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "migrations")
        command.downgrade(config, revision)
        connection.commit()
    engine.dispose()


def test_the_revision_that_this_release_needs_is_the_one_that_alembic_ends_at() -> None:
    config = Config()
    config.set_main_option("script_location", "migrations")

    assert head_revision() == ScriptDirectory.from_config(config).get_current_head()


def test_a_migration_that_waits_for_a_dump_holds_up_no_order(database_url: str) -> None:
    downgrade(database_url, "0004")
    url = database_url.replace("+psycopg", "")
    with (
        # Waited for last: what keeps the migration is let go before.
        ThreadPoolExecutor(1) as thread,
        psycopg.connect(url) as dump,
        psycopg.connect(url, autocommit=True) as replica,
    ):
        dump.execute("LOCK TABLE generations IN ACCESS SHARE MODE")
        migrated = thread.submit(migrate, database_url)
        while not rows(database_url, WAITING):
            assert not migrated.done()

        replica.execute("SET statement_timeout = '5s'")
        replica.execute("UPDATE generations SET repeats = repeats")
        assert not migrated.done()
        dump.rollback()

        assert migrated.result() == ("0004", head_revision())
