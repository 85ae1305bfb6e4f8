"""what was asked for, and what upstream says was used

Revision: 0005, after 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generations", sa.Column("asked", postgresql.JSONB(), nullable=True))
    op.add_column("generations", sa.Column("used_micros", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("generations", "used_micros")
    op.drop_column("generations", "asked")
