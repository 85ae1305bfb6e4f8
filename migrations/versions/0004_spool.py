"""spool

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "spool",
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("storage_key", name=op.f("pk_spool")),
    )
    # Compressed, the whole picture would have to be unpacked for every slice of it that is served.
    op.execute("ALTER TABLE spool ALTER COLUMN body SET STORAGE EXTERNAL")
    op.create_index(
        "ix_images_spooled", "images", ["storage_key"], unique=False, postgresql_where=sa.text("storage = 'spool'")
    )


def downgrade() -> None:
    op.drop_index("ix_images_spooled", table_name="images", postgresql_where=sa.text("storage = 'spool'"))
    op.drop_table("spool")
