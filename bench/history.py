"""How does an installation come to have made a million generations, without making them?"""

from collections.abc import Sequence

from sqlalchemy import text

from app.accounts.keys import Caller
from app.database.pool import Database

_AT_A_TIME = 100_000

# As completed ones of the last thirty days but this, by the users in turn. The ids are UUIDv7, as they are made, so
# that they stand in the index as theirs do. What is said of each is as long as it is in earnest.
_GENERATIONS = text("""
INSERT INTO generations (
  id, user_id, api_key_id, scopes, state, order_digest, model, size, quality, prompt, revised_prompt, sandbox,
  held_images, held_micros, settled_images, settled_micros, day, storage_stem, request_id, created_at, finished_at
)
SELECT
  CAST(lpad(to_hex(CAST(extract(epoch FROM at) * 1000 AS bigint)), 12, '0') || '7' || substr(mixed, 1, 3)
    || '8' || substr(mixed, 4, 15) AS uuid),
  CAST((CAST(:users AS text[]))[1 + number % :callers] AS uuid),
  CAST((CAST(:api_keys AS text[]))[1 + number % :callers] AS uuid),
  ARRAY['all', 'key:' || (CAST(:api_keys AS text[]))[1 + number % :callers],
    'user:' || (CAST(:users AS text[]))[1 + number % :callers]],
  'completed', sha256(CAST(mixed AS bytea)), 'dall-e-3', '1024x1024', 'standard',
  'a red fox in the snow, number ' || number, 'A red fox stands in deep snow.', false,
  1, 10000, 1, 10000, CAST(at AT TIME ZONE 'UTC' AS date), to_char(at, 'YYYY/MM/DD/') || mixed, mixed, at, at
FROM (
  SELECT number, md5(CAST(number AS text)) AS mixed,
    now() - interval '30 days' + interval '29 days' * number / :all AS at
  FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS number
) AS made
""")

_IMAGES = text("""
INSERT INTO images (
  id, generation_id, position, storage, storage_key, content_type, extension, width, height, size_bytes, sha256,
  created_at
)
SELECT md5(storage_stem), id, 0, 's3:bench', storage_stem || '-0.png', 'image/png', 'png', 1024, 1024, 1500000,
  order_digest, created_at
FROM generations
""")


async def plant(database: Database, callers: Sequence[Caller], generations: int) -> None:
    """Write so many completed generations, each with a picture, as if these callers had ordered them."""
    users, api_keys = [str(caller.user_id) for caller in callers], [str(caller.api_key_id) for caller in callers]
    for first in range(0, generations, _AT_A_TIME):
        async with database.transaction() as tx:
            last = min(first + _AT_A_TIME, generations) - 1
            asked = {"users": users, "api_keys": api_keys, "callers": len(callers), "all": generations}
            await tx.execute(_GENERATIONS, {**asked, "first": first, "last": last})
    if generations:
        async with database.transaction() as tx:
            await tx.execute(_IMAGES)
        async with database.statement() as connection:
            # What autovacuum does in its own time, and then in the middle of a round.
            await connection.execute(text("VACUUM ANALYZE generations"))
            await connection.execute(text("VACUUM ANALYZE images"))
