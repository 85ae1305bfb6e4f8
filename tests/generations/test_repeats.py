"""Which orders does RESERVE take for repeats, and which for new ones?"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import budgets, keys
from app.accounts.keys import Caller
from app.database.pool import Database
from app.generations import images, records, repeats
from app.generations.records import Held, KeyNotLive, Move, OverLimit, State
from app.generations.repeats import Attempt, Joined, Known
from app.storage.folder import FolderStorage
from tests.makers import PRICE_MICROS, direct, make_caller, make_image, make_order, make_stores, move, reserve

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
WITHIN_SECONDS = 300.0
Answer = Held | Known | Joined | OverLimit | KeyNotLive


@dataclass(frozen=True)
class Desk:
    """Where orders for the same are handed in, by one caller unless said otherwise."""

    database: Database
    caller: Caller

    async def order(
        self,
        retry_count: int = 0,
        *,
        caller: Caller | None = None,
        prompt: str = "a cat",
        key: str | None = None,
        after_seconds: float = 0,
        join_within_seconds: float = WITHIN_SECONDS,
    ) -> Answer:
        async with self.database.statement() as connection:
            return await reserve(
                connection,
                caller or self.caller,
                make_order(prompt),
                idempotency_key=key,
                retry_count=retry_count,
                join_within_seconds=join_within_seconds,
                now=NOON + timedelta(seconds=after_seconds),
            )

    async def begin(self, retry_count: int = 0, *, key: str | None = None, state: State = "pending") -> UUID:
        """A new generation that stands there."""
        answer = await self.order(retry_count, key=key, join_within_seconds=0)
        assert isinstance(answer, Held)
        generation_id = answer.generation.id
        if state != "pending":
            await self.move(generation_id, state)
        return generation_id

    async def move(self, generation_id: UUID, state: State) -> None:
        settled = {"completed": (1, PRICE_MICROS), "failed": (0, 0), "lost": (1, PRICE_MICROS)}.get(state)
        to = Move(
            state,
            leaving=("pending", "generated", "unknown"),
            settled=settled,
            source_urls=["https://example.com/a.png"],
            lease_seconds=90,
            pictures=[make_image(generation_id)] if state == "completed" else [],
        )
        async with self.database.statement() as connection:
            assert await move(connection, generation_id, to, now=NOON)

    async def leave(self, generation_id: UUID, *, repeats_then: int = 0) -> None:
        async with self.database.statement() as connection:
            await repeats.leave(await direct(connection), generation_id, repeats=repeats_then, now=NOON)

    async def used(self) -> tuple[int, int]:
        """Generations in flight and images held or settled by the caller, and the books are in order."""
        async with self.database.statement() as connection:
            assert await budgets.differences(connection) == []
            query = text("SELECT in_flight, images_total FROM budgets WHERE scope = :scope")
            row = (await connection.execute(query, {"scope": f"user:{self.caller.user_id}"})).one()
        return row.in_flight, row.images_total


@pytest.fixture
async def desk(emptied_database_url: str) -> AsyncIterator[Desk]:
    database = Database(emptied_database_url, connections_max=20, timeout_seconds=10)
    async with database.transaction() as tx:
        caller = await make_caller(tx)
        await budgets.set_limits(tx, f"user:{caller.user_id}", {"images_total_max": 100})
    yield Desk(database, caller)
    await database.close()


@pytest.mark.parametrize("state", ["pending", "generated", "completed"])
async def test_two_plain_orders_for_the_same_are_two_generations(desk: Desk, state: State) -> None:
    await desk.begin(state=state)

    assert isinstance(await desk.order(), Held)


@pytest.mark.parametrize("state", ["pending", "generated", "completed", "unknown", "lost"])
async def test_an_sdks_retry_joins_what_it_retries_and_holds_nothing(desk: Desk, state: State) -> None:
    earlier = await desk.begin(state=state)
    before = await desk.used()

    answer = await desk.order(1)

    assert answer == Joined(earlier, repeats=1)
    assert await desk.used() == before


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_what_surely_cost_nothing_is_ordered_again(desk: Desk, retry_count: int) -> None:
    failed = await desk.begin()
    await desk.leave(failed)
    await desk.move(failed, "failed")

    assert isinstance(await desk.order(retry_count), Held)


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_what_was_deleted_is_ordered_again(desk: Desk, retry_count: int, tmp_path: Path) -> None:
    deleted = await desk.begin(state="completed")
    await desk.leave(deleted)
    async with desk.database.statement() as connection:
        generation = await records.find(connection, deleted)
    assert generation is not None
    home = FolderStorage(tmp_path)
    await images.delete(desk.database, make_stores(desk.database, home), generation)
    await home.close()

    assert isinstance(await desk.order(retry_count), Held)


async def test_a_generation_takes_one_chain_of_retries(desk: Desk) -> None:
    earlier = await desk.begin()

    chain = [await desk.order(1), await desk.order(2), await desk.order(3)]
    others = [await desk.order(1), await desk.order(3)]

    assert chain == [Joined(earlier, repeats=number) for number in (1, 2, 3)]
    assert isinstance(others[0], Held), "its retry count came already"
    # The order that came as the first retry of a chain is what that chain's later retries join.
    assert others[1] == Joined(others[0].generation.id, repeats=1)


async def test_a_retry_that_is_a_generation_itself_is_not_joined_by_another_chains_first_retry(desk: Desk) -> None:
    await desk.begin(retry_count=1)

    assert isinstance(await desk.order(1), Held)


async def test_the_newest_is_joined_first(desk: Desk) -> None:
    older = await desk.begin()
    async with desk.database.statement() as connection:
        await connection.execute(text("UPDATE generations SET created_at = created_at - interval '1 min'"))
    newer = await desk.begin()

    assert [await desk.order(1), await desk.order(1)] == [Joined(newer, repeats=1), Joined(older, repeats=1)]


async def test_what_has_no_answer_yet_is_joined_before_what_was_answered(desk: Desk) -> None:
    unanswered = await desk.begin(state="completed")
    await desk.leave(unanswered)
    await desk.begin(state="completed")

    assert await desk.order(1) == Joined(unanswered, repeats=1)


@pytest.mark.parametrize("state", ["pending", "generated", "completed"])
async def test_a_plain_repeat_joins_what_its_client_left_once_for_each_time_it_left(desk: Desk, state: State) -> None:
    left = await desk.begin(state=state)
    await desk.leave(left)
    before = await desk.used()

    first = await desk.order()
    await desk.leave(left, repeats_then=1)
    second = await desk.order()

    assert [first, second] == [Joined(left, repeats=1), Joined(left, repeats=2)]
    assert await desk.used() == before
    assert isinstance(await desk.order(), Held)


async def test_the_first_client_that_leaves_late_leaves_the_answer_to_its_repeat(desk: Desk) -> None:
    earlier = await desk.begin()
    await desk.order(1)
    await desk.leave(earlier, repeats_then=0)

    assert isinstance(await desk.order(), Held)


async def test_a_chain_that_begins_anew_counts_from_the_start(desk: Desk) -> None:
    left = await desk.begin()
    await desk.order(2)
    await desk.leave(left, repeats_then=1)

    again = [await desk.order(), await desk.order(1)]

    assert again == [Joined(left, repeats=2), Joined(left, repeats=3)]


@pytest.mark.parametrize("state", ["unknown", "lost"])
async def test_what_was_paid_in_vain_answers_two_plain_repeats_and_the_third_is_a_new_order(
    desk: Desk, state: State
) -> None:
    unknown = await desk.begin(state=state)

    answers = [await desk.order() for _ in range(3)]

    assert answers[:2] == [Joined(unknown, repeats=1), Joined(unknown, repeats=2)]
    assert isinstance(answers[2], Held)


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_what_ended_longer_ago_is_not_joined(desk: Desk, retry_count: int) -> None:
    ended = await desk.begin(state="completed")
    await desk.leave(ended)

    assert isinstance(await desk.order(retry_count, after_seconds=WITHIN_SECONDS), Held)
    assert await desk.order(retry_count or 0, after_seconds=WITHIN_SECONDS - 1) == Joined(ended, repeats=1)


async def test_what_still_runs_is_joined_however_long_ago_it_was_ordered(desk: Desk) -> None:
    running = await desk.begin(state="generated")

    assert await desk.order(1, after_seconds=3 * 3600) == Joined(running, repeats=1)


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_joining_can_be_switched_off(desk: Desk, retry_count: int) -> None:
    await desk.leave(await desk.begin())

    assert isinstance(await desk.order(retry_count, join_within_seconds=0), Held)


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_another_order_is_not_joined(desk: Desk, retry_count: int) -> None:
    await desk.leave(await desk.begin())

    assert isinstance(await desk.order(retry_count, prompt="a dog"), Held)


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_another_users_generation_is_not_joined(desk: Desk, retry_count: int) -> None:
    await desk.leave(await desk.begin())
    async with desk.database.transaction() as tx:
        other = await make_caller(tx, "bob")

    assert isinstance(await desk.order(retry_count, caller=other), Held)


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_another_key_of_the_same_user_does_not_join_but_shares_idempotency_keys(
    desk: Desk, retry_count: int
) -> None:
    await desk.leave(await desk.begin())
    keyed = await desk.begin(key="k")
    async with desk.database.transaction() as tx:
        second, _ = await keys.create_key(tx, await keys.find_user(tx, "ada"))
    other = Caller(user_id=desk.caller.user_id, user_name="ada", api_key_id=second.id)

    assert isinstance(await desk.order(retry_count, caller=other), Held)
    assert await desk.order(retry_count, caller=other, key="k") == Known(keyed, same_order=True)


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_an_order_with_a_key_joins_nothing_but_its_keys_generation(desk: Desk, retry_count: int) -> None:
    await desk.leave(await desk.begin())

    answer = await desk.order(retry_count, key="k")

    assert isinstance(answer, Held)
    assert await desk.order(retry_count, key="k") == Known(answer.generation.id, same_order=True)


@pytest.mark.parametrize("state", ["pending", "unknown"])
@pytest.mark.parametrize("retry_count", [0, 1])
async def test_a_generation_with_a_key_is_joined_by_its_key_alone(desk: Desk, state: State, retry_count: int) -> None:
    keyed = await desk.begin(key="k", state=state)
    await desk.leave(keyed)

    assert isinstance(await desk.order(retry_count), Held)


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_a_repeat_on_a_spent_budget_is_an_answer(desk: Desk, retry_count: int) -> None:
    left = await desk.begin()
    await desk.leave(left)
    async with desk.database.transaction() as tx:
        await budgets.set_limits(tx, "all", {"images_total_max": 0, "requests_per_minute_max": 0, "in_flight_max": 0})

    assert isinstance(await desk.order(prompt="a dog"), OverLimit)
    assert await desk.order(retry_count) == Joined(left, repeats=1)


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_a_key_that_is_not_live_joins_nothing(desk: Desk, retry_count: int) -> None:
    left = await desk.begin()
    await desk.leave(left)
    async with desk.database.transaction() as tx:
        await keys.set_disabled(tx, await keys.find_user(tx, "ada"), disabled=True)
    disabled = await desk.order(retry_count)
    async with desk.database.transaction() as tx:
        await keys.set_disabled(tx, await keys.find_user(tx, "ada"), disabled=False)
        await keys.revoke_key(tx, desk.caller.api_key_id)

    assert [disabled, await desk.order(retry_count)] == [KeyNotLive(), KeyNotLive()]
    async with desk.database.statement() as connection:
        alone = await repeats.join(
            await direct(connection),
            desk.caller,
            make_order().digest,
            Attempt(retry_count=retry_count),
            join_within_seconds=WITHIN_SECONDS,
        )
    assert alone is None


@pytest.mark.parametrize("retry_count", [0, 1])
async def test_repeats_at_the_same_instant_each_join_another_generation_until_none_is_left(
    desk: Desk, retry_count: int
) -> None:
    left = [await desk.begin() for _ in range(8)]
    for generation_id in left:
        await desk.leave(generation_id)

    answers = await asyncio.gather(*(desk.order(retry_count) for _ in range(20)))

    joined = [answer.generation_id for answer in answers if isinstance(answer, Joined)]
    assert sorted(joined) == sorted(left)
    assert Counter(type(answer) for answer in answers) == {Joined: 8, Held: 12}
    assert await desk.used() == (20, 20)


async def test_orders_with_one_new_key_at_the_same_instant_are_one_even_when_it_spends_the_budget(desk: Desk) -> None:
    async with desk.database.transaction() as tx:
        await budgets.set_limits(tx, f"user:{desk.caller.user_id}", {"images_total_max": 1})

    async with desk.database.transaction() as tx:
        # All of them have begun, and so can't see each other, before the first gets on.
        await tx.execute(text("SELECT scope FROM budgets FOR UPDATE"))
        orders = [asyncio.ensure_future(desk.order(key="k")) for _ in range(10)]
        while await waiting_for_a_lock(tx) < 10:
            await asyncio.sleep(0.01)
    answers = await asyncio.gather(*orders)

    assert Counter(type(answer) for answer in answers) == {Held: 1, Known: 9}
    assert await desk.used() == (1, 1)


async def waiting_for_a_lock(connection: AsyncConnection) -> int:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()"
    waiting: int = (await connection.execute(text(query))).scalar_one()
    return waiting
