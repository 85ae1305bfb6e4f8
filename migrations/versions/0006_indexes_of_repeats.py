"""the indexes that an order's look for what it repeats is made with

Revision: 0006, after 0005

The index of those without an answer left lost ones out, which the statement asks for too, and so no plan could use it:
each order read all of its caller's equal ones of a day. And the unique one held every order, with a key or without.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_KEYED = "uq_generations_user_id_idempotency_key"
_UNANSWERED = "ix_generations_unanswered"


def upgrade() -> None:
    _lock()
    op.drop_constraint(_KEYED, "generations", type_="unique")
    op.create_index(
        _KEYED,
        "generations",
        ["user_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    _replace_unanswered("left_at IS NOT NULL OR state IN ('unknown', 'lost')")


def downgrade() -> None:
    _lock()
    op.drop_index(_KEYED, table_name="generations")
    op.create_unique_constraint(_KEYED, "generations", ["user_id", "idempotency_key"])
    _replace_unanswered("left_at IS NOT NULL OR state = 'unknown'")


def _lock() -> None:
    # At once: whoever takes a table bit by bit, and wants more of it in the end, deadlocks with those who came between.
    op.execute("LOCK TABLE generations IN ACCESS EXCLUSIVE MODE")


def _replace_unanswered(where: str) -> None:
    op.drop_index(_UNANSWERED, table_name="generations")
    op.create_index(
        _UNANSWERED, "generations", ["api_key_id", "order_digest", "created_at"], postgresql_where=sa.text(where)
    )
