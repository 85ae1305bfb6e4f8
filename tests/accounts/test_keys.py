"""Are keys told apart from junk without asking, and do they stop when they are revoked?"""

import re

import pytest

from app.accounts import keys
from app.accounts.keys import AccountsError
from app.database.pool import Database
from app.errors import ApiKeyInvalid, ApiKeyMistyped, UserDisabled

pytestmark = pytest.mark.anyio


def test_a_new_key_has_the_form_that_secret_scanners_look_for() -> None:
    made = {keys.make_key() for _ in range(100)}

    assert len(made) == 100
    assert all(re.fullmatch(keys.KEY_PATTERN, key) for key in made)


def test_a_key_with_one_wrong_character_is_known_as_mistyped_wherever_it_is() -> None:
    key = keys.make_key()

    for place in range(len(key)):
        wrong = key[:place] + ("a" if key[place] != "a" else "b") + key[place + 1 :]
        with pytest.raises(ApiKeyMistyped):
            keys.check_form(wrong)


async def test_a_key_speaks_for_its_user_until_it_is_revoked_or_they_are_disabled(emptied_database_url: str) -> None:
    database = Database(emptied_database_url, connections_max=2, timeout_seconds=10)
    async with database.statement() as connection:
        ada, bob = await keys.add_user(connection, "ada"), await keys.add_user(connection, "bob")
        first, first_key = await keys.create_key(connection, ada)
        _, bobs_key = await keys.create_key(connection, bob)

        assert (await keys.find_caller(connection, first_key)).user_name == "ada"
        second, second_key = await keys.rotate_key(connection, first.id)
        await keys.set_disabled(connection, bob, disabled=True)

        assert (await keys.find_caller(connection, second_key)).api_key_id == second.id
        with pytest.raises(ApiKeyInvalid):
            await keys.find_caller(connection, first_key)
        with pytest.raises(ApiKeyInvalid):
            await keys.find_caller(connection, keys.make_key())
        with pytest.raises(UserDisabled):
            await keys.find_caller(connection, bobs_key)
        with pytest.raises(AccountsError, match="revoked already"):
            await keys.rotate_key(connection, first.id)
    await database.close()
