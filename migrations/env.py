"""Alembic's entry: migrates the connection it is handed, or DATABASE_URL for a developer who writes a revision."""

import os

from alembic import context
from sqlalchemy import Connection, create_engine

from app.database.tables import metadata


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, compare_server_default=False)
    with context.begin_transaction():
        context.run_migrations()


handed: Connection | None = context.config.attributes.get("connection")
if handed is not None:
    run(handed)
else:
    engine = create_engine(os.environ["DATABASE_URL"])
    with engine.connect() as opened:
        run(opened)
        opened.commit()
