"""Is a key looked up once for many orders, and for everything else each time?"""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from app.accounts import callers, keys
from app.accounts.callers import Callers
from app.database.pool import Database
from app.errors import ApiKeyInvalid, ApiKeyMistyped, DatabaseUnavailable
from tests.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio


@pytest.fixture
async def through_proxy(emptied_database_url: str) -> AsyncIterator[tuple[Database, TcpProxy]]:
    url = make_url(emptied_database_url)
    with TcpProxy(url.host or "", url.port or 0) as proxy:
        proxied = url.set(port=proxy.port).render_as_string(hide_password=False)
        database = Database(proxied, connections_max=2, timeout_seconds=2)
        yield database, proxy
        await database.close()


async def make_key(database: Database) -> str:
    async with database.transaction() as tx:
        return (await keys.create_key(tx, await keys.add_user(tx, "ada")))[1]


async def test_who_was_found_a_moment_ago_is_known_for_an_order_and_asked_for_else(
    through_proxy: tuple[Database, TcpProxy],
) -> None:
    database, proxy = through_proxy
    key = await make_key(database)
    known = Callers(database)
    found = await known.find_for_order(key)
    proxy.refuse()

    again = await known.find_for_order(key)
    with pytest.raises(DatabaseUnavailable):
        await known.find(key)

    assert (again, found.user_name) == (found, "ada")


async def test_a_key_that_was_found_to_be_revoked_is_no_longer_known_for_an_order(database: Database) -> None:
    key = await make_key(database)
    known = Callers(database)
    await known.find_for_order(key)
    async with database.statement() as connection:
        await connection.execute(text("UPDATE api_keys SET revoked_at = now()"))
    with pytest.raises(ApiKeyInvalid):
        await known.find(key)

    with pytest.raises(ApiKeyInvalid):
        await known.find_for_order(key)


async def test_no_more_callers_are_known_than_may_be_and_the_latest_are(
    through_proxy: tuple[Database, TcpProxy],
) -> None:
    database, proxy = through_proxy
    first, last = await make_key(database), ""
    known = Callers(database)
    await known.find_for_order(first)
    async with database.transaction() as tx:
        user = await keys.find_user(tx, "ada")
        others = [(await keys.create_key(tx, user))[1] for _ in range(callers.CALLERS_MAX)]
    for last in others:
        await known.find_for_order(last)
    proxy.refuse()

    assert (await known.find_for_order(last)).user_name == "ada"
    with pytest.raises(DatabaseUnavailable):
        await known.find_for_order(first)


async def test_junk_asks_nobody(database: Database) -> None:
    await database.close()

    with pytest.raises(ApiKeyMistyped):
        await Callers(database).find_for_order("ik_user_junk")
