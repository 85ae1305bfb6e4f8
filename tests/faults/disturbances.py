"""What else goes on while faults are played: what does an operator change, and what does the calendar?

Each is done over and over until it is cancelled. A database that is down just then is somebody else's test.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psycopg

from app.accounts import budgets, keys
from app.errors import DatabaseUnavailable
from tests.faults.fleet import Fleet, chosen
from tests.faults.load import Load
from tests.faults.stage import Stage
from tests.faults.told import Asked, Told

# Long enough for the replica to have looked the key up, and to be waiting for the rest of the body.
_HALF_SENT_SECONDS = 0.15
_ANSWER_SECONDS = 5
_PAUSE_SECONDS = 0.3, 0.8
_AWAY_SECONDS = 1.0, 4.0


async def disturb(stage: Stage, fleet: Fleet, load: Load, *, seed: int) -> None:
    """Switch a user off and on, revoke keys in the middle of their orders, let years pass, recount, until cancelled."""
    chance = random.Random(seed)
    turns = [revoke_amid_an_order, let_years_pass, disable_amid_an_order, recount]
    if stage.s3 is not None:
        turns.insert(0, take_storage_away)
    while True:
        for turn in turns:
            await asyncio.sleep(chance.uniform(*_PAUSE_SECONDS))
            try:
                await turn(stage, fleet, load, chance)
            except (DatabaseUnavailable, psycopg.OperationalError):
                load.did["disturbances that found no database"] += 1


async def revoke_amid_an_order(stage: Stage, fleet: Fleet, load: Load, chance: random.Random) -> None:
    """Send half an order, revoke its key, send the rest: it must start nothing."""
    async with stage.database.transaction() as tx:
        api_key, secret = await keys.create_key(tx, await keys.find_user(tx, "revoked"))

    async def revoke() -> None:
        async with stage.database.statement() as connection:
            await keys.revoke_key(connection, api_key.id)

    await _order_in_halves(fleet, load, chance, "revoked", secret, revoke)
    load.did["keys revoked"] += 1


async def disable_amid_an_order(stage: Stage, fleet: Fleet, load: Load, chance: random.Random) -> None:
    """Send half an order, disable its user, send the rest: it must start nothing. The user is enabled again."""
    try:
        await _order_in_halves(
            fleet, load, chance, "disabled", stage.keys["switched"][0], lambda: _switch(stage, disabled=True)
        )
    finally:
        await _switch(stage, disabled=False)
    load.did["users disabled"] += 1


async def let_years_pass(stage: Stage, fleet: Fleet, load: Load, chance: random.Random) -> None:
    """Turn the calendar on by setting back what the books say: what is running was held in a window that is over.

    Four years, so that every date keeps its month and its place in it, the 29th of February too.
    """
    connection = await psycopg.AsyncConnection.connect(stage.database_url.replace("+psycopg", ""))
    async with connection:
        await connection.execute("SET lock_timeout = '5s'")
        # As a first limit does it: no RESERVE and no MOVE is half-way then.
        await connection.execute("LOCK TABLE generations IN EXCLUSIVE MODE")
        for table in ("generations", "budgets"):
            await connection.execute(f"UPDATE {table} SET day = day - interval '4 years'")
    load.did["midnights"] += 1


async def take_storage_away(stage: Stage, fleet: Fleet, load: Load, chance: random.Random) -> None:
    """Let the bucket hang for some seconds: what comes meanwhile goes into the spool."""
    assert stage.s3 is not None
    stage.s3.freeze()
    try:
        await asyncio.sleep(chance.uniform(*_AWAY_SECONDS))
    finally:
        stage.s3.thaw()
    load.did["storage taken away"] += 1


async def recount(stage: Stage, fleet: Fleet, load: Load, chance: random.Random) -> None:
    """Look whether the books are right in the middle of everything."""
    load.broken.extend(await wrong_books(stage))
    load.did["recounts"] += 1


async def wrong_books(stage: Stage) -> list[str]:
    """Return every counter that differs from the generations, and every limit that is exceeded, in this moment."""
    async with stage.database.statement() as connection:
        found = await budgets.differences(connection)
    drift = [f"{each.scope}: {each.counter} counts {each.counted}, the generations {each.recounted}" for each in found]
    over = await asyncio.to_thread(stage.rows, _OVER)
    return drift + [f"{row['scope']}: {row['name']} {row['used']} of {row['maximum']}" for row in over]


_OVER = """
SELECT b.scope, x.* FROM budgets b CROSS JOIN LATERAL (VALUES
    ('in_flight', b.in_flight, b.in_flight_max),
    ('images_day', b.images_day, b.images_per_day_max),
    ('images_month', b.images_month, b.images_per_month_max),
    ('images_total', b.images_total, b.images_total_max),
    ('micros_month', b.micros_month, b.micros_per_month_max)
) AS x(name, used, maximum) WHERE x.used > x.maximum"""


async def _switch(stage: Stage, *, disabled: bool) -> None:
    for pause_seconds in (0.1, 0.5, 1, 2, 4, 0):
        try:
            async with stage.database.transaction() as tx:
                await keys.set_disabled(tx, await keys.find_user(tx, "switched"), disabled=disabled)
                return
        except DatabaseUnavailable:
            await asyncio.sleep(pause_seconds)
    raise DatabaseUnavailable


async def _order_in_halves(
    fleet: Fleet,
    load: Load,
    chance: random.Random,
    fault: str,
    secret: str,
    in_between: Callable[[], Awaitable[None]],
) -> None:
    replica = chosen(chance, fleet.serving)
    if replica is None:
        return
    tag = f"{fault}-{len(load.asked)}"
    asked = Asked(tag, fault, fault, secret, None, f"{tag} [[id {tag}]]")
    load.asked.append(asked)
    body = json.dumps({"prompt": asked.prompt}).encode()
    head = f"POST /images HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {secret}\r\ncontent-length: {len(body)}"
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    except (OSError, TimeoutError):
        return
    try:
        writer.write(head.encode() + b"\r\nconnection: close\r\n\r\n" + body[:20])
        await asyncio.sleep(_HALF_SENT_SECONDS)
        await in_between()
        async with asyncio.timeout(_ANSWER_SECONDS):
            writer.write(body[20:])
            status_line = await reader.readline()
        if status_line:
            asked.told.append(Told(int(status_line.split()[1])))
    except (OSError, TimeoutError) as error:
        asked.unanswered.append(repr(error))
    finally:
        # Also when this is cancelled half-way: what the loop still has open at its end is a warning, and those fail.
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
