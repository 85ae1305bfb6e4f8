"""images by storage key

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_images_storage_storage_key", "images", ["storage", sa.literal_column('storage_key COLLATE "C"')]
    )


def downgrade() -> None:
    op.drop_index("ix_images_storage_storage_key", "images")
