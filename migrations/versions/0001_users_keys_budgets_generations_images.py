"""users, keys, budgets, generations, images

Revision: 0001, after nothing
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("in_flight_max", sa.Integer(), nullable=True),
        sa.Column("requests_per_minute_max", sa.Integer(), nullable=True),
        sa.Column("images_per_day_max", sa.Integer(), nullable=True),
        sa.Column("images_per_month_max", sa.Integer(), nullable=True),
        sa.Column("images_total_max", sa.Integer(), nullable=True),
        sa.Column("micros_per_month_max", sa.BigInteger(), nullable=True),
        sa.Column("in_flight", sa.Integer(), server_default="0", nullable=False),
        sa.Column("request_clock", sa.DateTime(timezone=True), server_default="epoch", nullable=False),
        sa.Column("day", sa.Date(), server_default="epoch", nullable=False),
        sa.Column("images_day", sa.Integer(), server_default="0", nullable=False),
        sa.Column("images_month", sa.Integer(), server_default="0", nullable=False),
        sa.Column("micros_month", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("images_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("images_day >= 0", name=op.f("ck_budgets_images_day")),
        sa.CheckConstraint("images_month >= 0", name=op.f("ck_budgets_images_month")),
        sa.CheckConstraint("images_total >= 0", name=op.f("ck_budgets_images_total")),
        sa.CheckConstraint("in_flight >= 0", name=op.f("ck_budgets_in_flight")),
        sa.CheckConstraint("micros_month >= 0", name=op.f("ck_budgets_micros_month")),
        sa.PrimaryKeyConstraint("scope", name=op.f("pk_budgets")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("name <> ''", name=op.f("ck_users_name_not_empty")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("last_four", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    op.create_index(op.f("ix_api_keys_user_id"), "api_keys", ["user_id"], unique=False)
    op.create_table(
        "generations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("failure_code", sa.Text(), nullable=True),
        sa.Column("failure_detail", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("order_digest", sa.LargeBinary(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("size", sa.Text(), nullable=False),
        sa.Column("quality", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("revised_prompt", sa.Text(), nullable=True),
        sa.Column("sandbox", sa.Boolean(), nullable=False),
        sa.Column("counted", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("held_images", sa.Integer(), nullable=False),
        sa.Column("held_micros", sa.BigInteger(), nullable=False),
        sa.Column("settled_images", sa.Integer(), nullable=True),
        sa.Column("settled_micros", sa.BigInteger(), nullable=True),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("storage_stem", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("source_urls", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("source_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state IN ('completed', 'failed', 'lost')) = (settled_micros IS NOT NULL AND settled_images IS NOT NULL)",
            name=op.f("ck_generations_settled"),
        ),
        sa.CheckConstraint(
            "(state IN ('pending', 'generated')) = (lease_until IS NOT NULL)", name=op.f("ck_generations_lease")
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'generated', 'completed', 'failed', 'unknown', 'lost')",
            name=op.f("ck_generations_state"),
        ),
        sa.CheckConstraint("held_images > 0 AND held_micros > 0", name=op.f("ck_generations_held")),
        sa.CheckConstraint(
            "settled_images <= held_images AND settled_micros <= held_micros",
            name=op.f("ck_generations_settled_within_held"),
        ),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_generations_api_key_id_api_keys")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_generations_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generations")),
        sa.UniqueConstraint("storage_stem", name=op.f("uq_generations_storage_stem")),
        sa.UniqueConstraint("user_id", "idempotency_key", name=op.f("uq_generations_user_id_idempotency_key")),
    )
    op.create_index(
        "ix_generations_lease_until",
        "generations",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("lease_until IS NOT NULL"),
    )
    op.create_index(
        "ix_generations_unknown", "generations", ["id"], unique=False, postgresql_where=sa.text("state = 'unknown'")
    )
    op.create_index("ix_generations_user_id_id", "generations", ["user_id", "id"], unique=False)
    op.create_table(
        "images",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("generation_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("storage", sa.Text(), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("extension", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["generation_id"], ["generations.id"], name=op.f("fk_images_generation_id_generations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
        sa.UniqueConstraint("generation_id", "position", name=op.f("uq_images_generation_id_position")),
    )
    op.create_index(
        "ix_images_to_erase",
        "images",
        ["id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NOT NULL AND erased_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_images_to_erase",
        table_name="images",
        postgresql_where=sa.text("deleted_at IS NOT NULL AND erased_at IS NULL"),
    )
    op.drop_table("images")
    op.drop_index("ix_generations_user_id_id", table_name="generations")
    op.drop_index("ix_generations_unknown", table_name="generations", postgresql_where=sa.text("state = 'unknown'"))
    op.drop_index(
        "ix_generations_lease_until", table_name="generations", postgresql_where=sa.text("lease_until IS NOT NULL")
    )
    op.drop_table("generations")
    op.drop_index(op.f("ix_api_keys_user_id"), table_name="api_keys")
    op.drop_table("api_keys")
    op.drop_table("users")
    op.drop_table("budgets")
