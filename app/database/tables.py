"""What do we remember?

Six tables. `generations` is the ledger: what a generation held and settled never changes once it has ended, and every
counter in `budgets` can be recounted from it. Limits and states are constraints here too, so that a mistake in a
statement is refused by the database instead of being kept.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_NOW = text("now()")
_TIME = DateTime(timezone=True)

users = Table(
    "users",
    metadata,
    Column("id", Uuid, primary_key=True),
    # What the operator calls them; told apart exactly as written.
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
    # A disabled user's keys start nothing; what is running finishes, what was made stays.
    Column("disabled_at", _TIME),
    CheckConstraint("name <> ''", name="name_not_empty"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False, index=True),
    # SHA-256 of the whole key. 190 random bits need no slow hash; the key itself is shown once and kept nowhere.
    Column("digest", LargeBinary, nullable=False, unique=True),
    # The last four characters, so that a person can tell keys apart in a list.
    Column("last_four", Text, nullable=False),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
    Column("revoked_at", _TIME),
)

budgets = Table(
    "budgets",
    metadata,
    # `all`, `user:<id>` or `key:<id>`. A scope without any limit has no row, so that nothing queues for it.
    Column("scope", Text, primary_key=True),
    # The limits. NULL is no limit; 0 refuses everything.
    Column("in_flight_max", Integer),
    Column("requests_per_minute_max", Integer),
    Column("images_per_day_max", Integer),
    Column("images_per_month_max", Integer),
    Column("images_total_max", Integer),
    Column("micros_per_month_max", BigInteger),
    # The use. `pending` generations of this scope:
    Column("in_flight", Integer, nullable=False, server_default="0"),
    # The theoretical arrival time of GCRA: the whole request rate in one column.
    Column("request_clock", _TIME, nullable=False, server_default="epoch"),
    # The UTC day that `images_day` belongs to, and whose month `images_month` and `micros_month` belong to. It rolls
    # over when an order comes, and never back.
    Column("day", Date, nullable=False, server_default="epoch"),
    Column("images_day", Integer, nullable=False, server_default="0"),
    Column("images_month", Integer, nullable=False, server_default="0"),
    Column("micros_month", BigInteger, nullable=False, server_default="0"),
    Column("images_total", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("in_flight >= 0", name="in_flight"),
    CheckConstraint("images_day >= 0", name="images_day"),
    CheckConstraint("images_month >= 0", name="images_month"),
    CheckConstraint("micros_month >= 0", name="micros_month"),
    CheckConstraint("images_total >= 0", name="images_total"),
    # Each order rewrites the same few rows: room on the page keeps those updates off the index.
    postgresql_with={"fillfactor": "50"},
)

generations = Table(
    "generations",
    metadata,
    # UUIDv7, made by us before the row is written, so that a lost answer of the database can be asked for by name.
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("api_key_id", Uuid, ForeignKey("api_keys.id"), nullable=False),
    # Every scope this generation counts in, limited or not, so that a limit set later can be recounted.
    Column("scopes", ARRAY(Text), nullable=False),
    Column("state", Text, nullable=False),
    # Why it failed, was lost, or is unknown: a `code` of errors.py.
    Column("failure_code", Text),
    # Our own words and upstream's status, for the operator. Never upstream's body, which can echo a key.
    Column("failure_detail", Text),
    Column("idempotency_key", Text),
    # SHA-256 of what was asked: a key that comes again with another order is refused, and a repeat without one found.
    Column("order_digest", LargeBinary, nullable=False),
    # {model, size, quality} as they were asked for, null where left out; NULL unless the catalog made others of them.
    Column("asked", JSONB(none_as_null=True)),
    Column("model", Text, nullable=False),
    Column("size", Text, nullable=False),
    Column("quality", Text, nullable=False),
    # Both NULL once the image was deleted.
    Column("prompt", Text),
    Column("revised_prompt", Text),
    # Made by the sandbox: priced and limited like a real one, and left out of the books when a real key comes.
    Column("sandbox", Boolean, nullable=False),
    # Whether the budgets count it. False only for sandbox generations from before the first start with a real key.
    Column("counted", Boolean, nullable=False, server_default=text("true")),
    # What RESERVE held, and what the end settled. Settled is what the installation spent: a lost image costs it the
    # price, while its user is given back.
    Column("held_images", Integer, nullable=False),
    Column("held_micros", BigInteger, nullable=False),
    # What upstream's answer says was used, priced and cut to what was held; NULL where it doesn't say.
    Column("used_micros", BigInteger),
    Column("settled_images", Integer),
    Column("settled_micros", BigInteger),
    # The UTC day it was held in; giving back goes only there.
    Column("day", Date, nullable=False),
    # Random, fixed at RESERVE: pictures are stored as {stem}-{position}.{extension}. It lets recovery find a picture
    # that was stored before its row said so.
    Column("storage_stem", Text, nullable=False, unique=True),
    # Until when, by the database's clock, its runner is left alone. NULL once nobody runs it.
    Column("lease_until", _TIME),
    # How often recovery has claimed it. 0 is the runner that reserved it, the only one that may send the order.
    Column("attempts", Integer, nullable=False, server_default="0"),
    # Upstream's passing addresses, kept while they are needed and erased at the end: a signature opens the image.
    Column("source_urls", ARRAY(Text)),
    Column("source_expires_at", _TIME),
    # How many repeats without an Idempotency-Key joined it (generations/repeats.py), and the retry count that the last
    # of them came with, or the order itself. A chain of retries counts up: one that begins anew is another order's.
    Column("repeats", Integer, nullable=False, server_default="0"),
    Column("retry_count", SmallInteger, nullable=False, server_default="0"),
    # When its client was found gone, or could not be answered. The next repeat takes the mark away and the answer on.
    Column("left_at", _TIME),
    # The request that ordered it, to find its lines in the log.
    Column("request_id", Text),
    Column("created_at", _TIME, nullable=False),
    Column("finished_at", _TIME),
    Column("deleted_at", _TIME),
    CheckConstraint("state IN ('pending', 'generated', 'completed', 'failed', 'unknown', 'lost')", name="state"),
    CheckConstraint("(state IN ('pending', 'generated')) = (lease_until IS NOT NULL)", name="lease"),
    CheckConstraint(
        "(state IN ('completed', 'failed', 'lost')) = (settled_micros IS NOT NULL AND settled_images IS NOT NULL)",
        name="settled",
    ),
    CheckConstraint("held_images > 0 AND held_micros > 0", name="held"),
    CheckConstraint("settled_images <= held_images AND settled_micros <= held_micros", name="settled_within_held"),
    # A user's page, newest first: UUIDv7 sorts by time.
    Index("ix_generations_user_id_id", "user_id", "id"),
    # What recovery looks through is what is running, not what ever was.
    Index("ix_generations_lease_until", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
    # Holds those few that have one.
    Index(
        "uq_generations_user_id_idempotency_key",
        "user_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    # An order looks here for what it may repeat: by the SDK's count, and by a client without an answer. The second is
    # asked for each order, and so holds those few only: all that the statement asks for, or no plan can have it.
    Index(
        "ix_generations_api_key_id_order_digest_created_at",
        "api_key_id",
        "order_digest",
        "created_at",
        postgresql_where=text("idempotency_key IS NULL"),
    ),
    Index(
        "ix_generations_unanswered",
        "api_key_id",
        "order_digest",
        "created_at",
        postgresql_where=text("left_at IS NOT NULL OR state IN ('unknown', 'lost')"),
    ),
    # What a person has to look at.
    Index("ix_generations_unknown", "id", postgresql_where=text("state = 'unknown'")),
)

images = Table(
    "images",
    metadata,
    # 128 random bits of its own, the permanent URL's secret: whoever has the URL may see the picture.
    Column("id", Text, primary_key=True),
    Column("generation_id", Uuid, ForeignKey("generations.id"), nullable=False),
    Column("position", SmallInteger, nullable=False),
    # Where it lives: a storage's name, `folder`, `s3:<bucket>` or `spool`, and the key there.
    Column("storage", Text, nullable=False),
    Column("storage_key", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("extension", Text, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
    # When its owner deleted it: from then on its URL answers 410.
    Column("deleted_at", _TIME),
    # When the bytes were gone from storage too; recovery goes on until they are.
    Column("erased_at", _TIME),
    UniqueConstraint("generation_id", "position"),
    # By the bytes of the keys, as storages list them, so that `verify` lays both sides beside each other page by page.
    Index("ix_images_storage_storage_key", "storage", text('storage_key COLLATE "C"')),
    Index("ix_images_to_erase", "id", postgresql_where=text("deleted_at IS NOT NULL AND erased_at IS NULL")),
    # What is to be carried home; empty but for an outage of storage.
    Index("ix_images_spooled", "storage_key", postgresql_where=text("storage = 'spool'")),
)

# Pictures that storage did not take. They are served from here, and recovery carries them home.
spool = Table(
    "spool",
    metadata,
    # The key under which the picture will be at home.
    Column("storage_key", Text, primary_key=True),
    # Kept outside of the row and not compressed (SET STORAGE EXTERNAL), so that a slice of it is read without the rest.
    Column("body", LargeBinary, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
)
