"""Is what nobody knows visible, held for as long as it counts, and moved on by whoever knows at last?"""

import asyncio
import threading
from collections.abc import Mapping

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from structlog.testing import capture_logs

from app.accounts import budgets
from app.generations.records import Generation, Held, Move, OverLimit
from app.generations.recovery import recover_once
from app.generations.usage import Outstanding, outstanding_of
from app.generations.verify import Care, verify
from tests.generations.parts import Parts, png
from tests.makers import PRICE_MICROS, make_caller, make_order, reserve
from tests.sandbox_server import RunningSandbox

pytestmark = pytest.mark.anyio


async def become_unknown(parts: Parts, prompt: str, sandbox: RunningSandbox) -> "asyncio.Task[Generation]":
    """Have recovery take an order's runner for dead while upstream works on it. Returns the runner, who is not dead."""
    late = asyncio.create_task(parts.driver.drive(await parts.reserve(prompt)))
    while sandbox.witness()["asked"] == 0:
        await asyncio.sleep(0.02)
    assert (await parts.recovered()).state == "unknown"
    return late


async def midnight(parts: Parts) -> None:
    """Let all that was ordered so far be of yesterday."""
    async with parts.database.statement() as connection:
        await connection.execute(
            text("UPDATE generations SET day = day - 1, created_at = created_at - interval '1 day'")
        )
        await connection.execute(text("UPDATE budgets SET day = day - 1"))


async def order_today(parts: Parts) -> Held | OverLimit:
    async with parts.database.statement() as connection:
        answer = await reserve(connection, parts.caller, make_order())
    assert isinstance(answer, Held | OverLimit)
    return answer


async def used(parts: Parts, scope: str) -> Mapping[str, int | None]:
    """What a scope has used, by limit; and every counter is what the generations say."""
    async with parts.database.statement() as connection:
        assert await budgets.differences(connection) == []
        return {gauge.name: gauge.used for gauge in await budgets.gauges_of(connection, [scope])}


async def limit_days(parts: Parts, maximum: int) -> str:
    scope = f"user:{parts.caller.user_id}"
    async with parts.database.transaction() as tx:
        await budgets.set_limits(tx, scope, {"images_per_day_max": maximum})
    return scope


def metric(name: str, **labels: str) -> float:
    """A figure of this process, which a service in another thread would set as well."""
    assert "service" not in {thread.name for thread in threading.enumerate()}
    return REGISTRY.get_sample_value(f"imagekeep_{name}", labels) or 0


# What moves an unknown one on


@pytest.mark.parametrize("after_midnight", [False, True], ids=["same day", "after midnight"])
@pytest.mark.parametrize(
    ("prompt", "state", "settled_images"),
    [("a cat [[delay 1]]", "completed", 1), ("a cat [[delay 1]] [[refuse]]", "failed", 0)],
)
async def test_a_late_answer_moves_an_unknown_one_on_and_its_own_day_pays(
    parts: Parts,
    sandbox: RunningSandbox,
    prompt: str,
    state: str,
    settled_images: int,
    after_midnight: bool,
) -> None:
    scope = await limit_days(parts, 9)
    late = await become_unknown(parts, prompt, sandbox)
    labels = {"model": "dall-e-3", "state": "generated", "failure_code": ""}
    generated_before = metric("generations_total", **labels)
    if after_midnight:
        await midnight(parts)
    await order_today(parts)

    ended = await late

    assert (ended.state, ended.settled_images) == (state, settled_images)
    assert metric("generations_total", **labels) - generated_before == settled_images, "it went over `generated`"
    assert await used(parts, scope) == {
        "images_per_day": 1 if after_midnight else 1 + settled_images,
        "images_total": 1 + settled_images,
    }
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("after_midnight", [False, True], ids=["same day", "after midnight"])
@pytest.mark.parametrize(
    ("found", "billed", "state", "user_images", "all_images"),
    [(True, False, "completed", 1, 1), (False, True, "lost", 0, 1), (False, False, "failed", 0, 0)],
)
async def test_a_person_moves_an_unknown_one_on_and_its_own_day_pays(
    parts: Parts,
    found: bool,
    billed: bool,
    state: str,
    user_images: int,
    all_images: int,
    after_midnight: bool,
) -> None:
    scope = await limit_days(parts, 9)
    generation = await parts.reserve()
    unknown = await parts.recovered()
    if after_midnight:
        await midnight(parts)
    await order_today(parts)
    if found:
        await parts.home.put(f"{generation.storage_stem}-0.png", png(), content_type="image/png")

    resolved = await parts.driver.resolve(unknown, billed=billed, by="ada")

    assert resolved is not None
    assert resolved.state == state
    assert await used(parts, scope) == {
        "images_per_day": 1 if after_midnight else 1 + user_images,
        "images_total": 1 + user_images,
    }
    assert (await used(parts, "all"))["images_total"] == 1 + all_images


async def test_who_resolved_it_and_when_stays_before_what_was_known(parts: Parts) -> None:
    await parts.reserve()
    unknown = await parts.recovered()

    with capture_logs() as lines:
        resolved = await parts.driver.resolve(unknown, billed=False, by="ada")

    assert resolved is not None
    assert resolved.failure_detail is not None
    said, _, before = resolved.failure_detail.partition("; before that: ")
    assert said.startswith("resolved as not billed by ada at 20")
    assert said.endswith(" UTC")
    assert before == unknown.failure_detail
    (line,) = [line for line in lines if line["event"] == "generation_resolved"]
    assert (line["generation_id"], line["by"], line["billed"]) == (str(unknown.id), "ada", False)


async def test_an_unknown_one_of_yesterday_takes_nothing_from_today(parts: Parts) -> None:
    scope = await limit_days(parts, 1)
    await parts.reserve()
    await parts.recovered()
    refused = await order_today(parts)

    await midnight(parts)
    answer = await order_today(parts)

    assert isinstance(refused, OverLimit)
    assert isinstance(answer, Held)
    assert await used(parts, scope) == {"images_per_day": 1, "images_total": 2}


# Who sees it


async def test_becoming_unknown_is_a_warning_with_id_hold_and_reason(parts: Parts) -> None:
    generation = await parts.reserve("a cat [[drop]]")

    with capture_logs() as lines:
        ended = await parts.driver.drive(generation)

    assert ended.state == "unknown"
    (line,) = [line for line in lines if line["event"] == "generation_moved"]
    assert (line["log_level"], line["generation_id"], line["held_micros"]) == (
        "warning",
        str(generation.id),
        PRICE_MICROS,
    )
    assert line["failure_detail"] == ended.failure_detail
    assert line["failure_detail"]


async def test_what_runs_and_what_is_unknown_is_summed_up_for_its_user_alone(parts: Parts) -> None:
    async with parts.database.transaction() as tx:
        other = await make_caller(tx, "bob")
    await parts.reserve()
    await parts.recovered()
    await midnight(parts)
    async with parts.database.statement() as connection:
        for caller, n in ((parts.caller, 3), (other, 1)):
            await reserve(connection, caller, make_order(n=n))
        done = await reserve(connection, parts.caller)
    assert isinstance(done, Held)
    await parts.move(done.generation, Move("failed", leaving=("pending",), settled=(0, 0)))

    async with parts.database.statement() as connection:
        running, unknown = await outstanding_of(connection, parts.caller.user_id)

    assert running == Outstanding(1, 3, 3 * PRICE_MICROS)
    assert unknown == Outstanding(1, 1, PRICE_MICROS)


async def test_each_round_of_recovery_shows_what_is_unknown_now(parts: Parts) -> None:
    async def shown() -> tuple[float, float, float]:
        await recover_once(parts.database, parts.driver, parts.stores, lease_seconds=60)
        return metric("unknown_generations"), metric("unknown_held_micros"), metric("unknown_oldest_seconds")

    nothing = await shown()
    await parts.reserve()
    unknown = await parts.recovered()
    await midnight(parts)
    one = await shown()
    await parts.driver.resolve(unknown, billed=True, by="ada")

    assert nothing == (0, 0, 0)
    assert one[:2] == (1, PRICE_MICROS)
    assert 86_400 <= one[2] < 90_000
    assert await shown() == (0, 0, 0)


# What even the row does not tell


async def test_a_row_that_vanished_in_flight_is_told_and_counted_and_its_picture_kept(
    parts: Parts,
    sandbox: RunningSandbox,
) -> None:
    generation = await parts.reserve("a cat [[delay 1]]")
    before = metric("rows_vanished_total")
    with capture_logs() as lines:
        driving = asyncio.create_task(parts.driver.drive(generation))
        while sandbox.witness()["asked"] == 0:
            await asyncio.sleep(0.02)
        async with parts.database.statement() as connection:
            await connection.execute(text("DELETE FROM generations"))
        await driving
    async with parts.database.transaction() as tx:
        # What such a failover leaves: counters of the moment before, as the rows.
        await tx.execute(text("UPDATE budgets SET in_flight = 0, images_total = 0, images_month = 0, images_day = 0"))
        await tx.execute(text("UPDATE budgets SET micros_month = 0"))

    report = await verify(parts.database, {"folder": parts.home}, Care(0, {}, pause_seconds=0))

    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert (line["event"], line["generation_id"]) == ("row_vanished", str(generation.id))
    assert line["storage_stem"] == generation.storage_stem
    assert metric("rows_vanished_total") - before == 1
    assert [(found.kind, found.subject) for found in report.listed] == [("orphan", f"{generation.storage_stem}-0.png")]
    assert report.listed[0].detail.endswith("of no generation")
    assert sandbox.witness()["asked"] == 1


async def test_a_row_that_only_moved_on_meanwhile_has_not_vanished(parts: Parts, sandbox: RunningSandbox) -> None:
    late = await become_unknown(parts, "a cat [[delay 1]]", sandbox)
    async with parts.database.statement() as connection:
        await connection.execute(
            text("UPDATE generations SET state = 'failed', settled_images = 0, settled_micros = 0, held_images = 1")
        )
    before = metric("rows_vanished_total")

    ended = await late

    assert ended.state == "failed"
    assert metric("rows_vanished_total") == before
    assert [listed async for listed in parts.home.objects()] == []
