"""repeats without an Idempotency-Key

Revision: 0003, after 0002

Digests written before this revision are of the checked order, not of what was asked: a key that was used then and comes
again is refused as used for another order, never ordered twice.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generations", sa.Column("repeats", sa.Integer(), server_default="0", nullable=False))
    op.add_column("generations", sa.Column("retry_count", sa.SmallInteger(), server_default="0", nullable=False))
    op.add_column("generations", sa.Column("left_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        op.f("ix_generations_api_key_id_order_digest_created_at"),
        "generations",
        ["api_key_id", "order_digest", "created_at"],
        postgresql_where=sa.text("idempotency_key IS NULL"),
    )
    op.create_index(
        "ix_generations_unanswered",
        "generations",
        ["api_key_id", "order_digest", "created_at"],
        postgresql_where=sa.text("left_at IS NOT NULL OR state = 'unknown'"),
    )


def downgrade() -> None:
    op.drop_index("ix_generations_unanswered", table_name="generations")
    op.drop_index(op.f("ix_generations_api_key_id_order_digest_created_at"), table_name="generations")
    op.drop_column("generations", "left_at")
    op.drop_column("generations", "retry_count")
    op.drop_column("generations", "repeats")
