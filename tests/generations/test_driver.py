"""Does the driver take a generation from wherever it stands to its end, and send an order once at most?

Each test puts a row where a crash could have left it and lets a driver of its own run out its lease.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from app.accounts import budgets
from app.generations import images, records
from app.generations.driver import Unsent
from app.generations.records import Generation, Move
from app.storage.base import ObjectMissing
from app.storage.s3 import S3Storage
from app.upstream.catalog import load_catalog
from tests.generations.parts import Parts, png
from tests.makers import PRICE_MICROS, make_stores
from tests.s3_server import running_s3
from tests.sandbox_server import RunningSandbox

pytestmark = pytest.mark.anyio


async def test_a_fresh_order_is_sent_once_and_completes(parts: Parts, sandbox: RunningSandbox) -> None:
    ended = await parts.driver.drive(await parts.reserve())

    assert ended.state == "completed"
    assert (ended.settled_images, ended.settled_micros) == (1, PRICE_MICROS)
    assert sandbox.witness()["asked"] == 1


async def test_an_order_whose_model_the_catalog_lost_is_not_sent_and_costs_nothing(
    parts: Parts, sandbox: RunningSandbox
) -> None:
    generation = replace(await parts.reserve(), model="gone")

    ended = await parts.driver.drive(generation)

    assert (ended.state, ended.failure_code, ended.settled_micros) == ("failed", "upstream_model_gone", 0)
    assert sandbox.witness()["asked"] == 0


async def test_a_pending_row_of_a_dead_runner_is_never_sent_and_ends_unknown_with_its_hold(
    parts: Parts, sandbox: RunningSandbox
) -> None:
    await parts.reserve()

    ended = await parts.recovered()

    assert ended.state == "unknown"
    assert ended.settled_micros is None
    assert sandbox.witness()["asked"] == 0


async def test_a_pending_row_whose_picture_is_stored_completes(parts: Parts, sandbox: RunningSandbox) -> None:
    generation = await parts.reserve()
    await parts.home.put(f"{generation.storage_stem}-0.png", png(), content_type="image/png")

    ended = await parts.recovered()

    assert ended.state == "completed"
    assert ended.images[0].storage_key == f"{generation.storage_stem}-0.png"
    assert (ended.images[0].width, ended.images[0].size_bytes) == (64, len(png()))
    assert sandbox.witness()["asked"] == 0


async def test_a_generated_row_gets_its_image_without_being_sent_again(parts: Parts, sandbox: RunningSandbox) -> None:
    generation = await parts.reserve("a cat [[picture flaky 1]]")
    sources = await _source_urls(parts, generation)
    asked_before = sandbox.witness()["asked"]
    await parts.move(generation, Move("generated", leaving=("pending",), source_urls=sources, lease_seconds=60))

    ended = await parts.recovered()

    assert ended.state == "completed"
    assert ended.source_urls is None
    assert sandbox.witness()["asked"] == asked_before


async def test_a_generated_row_whose_source_has_expired_is_lost_and_its_user_is_given_back(parts: Parts) -> None:
    generation = await parts.reserve("a cat [[picture missing]]")
    sources = await _source_urls(parts, generation)
    await parts.move(
        generation,
        Move("generated", leaving=("pending",), source_urls=sources, source_lifetime_seconds=-1, lease_seconds=60),
    )

    ended = await parts.recovered()

    assert (ended.state, ended.failure_code) == ("lost", "image_unavailable")
    async with parts.database.statement() as connection:
        used = {gauge.scope.partition(":")[0]: gauge.used for gauge in await _all_gauges(connection)}
    assert used == {"user": 0, "all": 1}


async def test_a_generated_row_whose_picture_is_stored_completes_although_its_source_is_dead(
    parts: Parts, sandbox: RunningSandbox
) -> None:
    generation = await parts.reserve("a cat [[picture missing]]")
    sources = await _source_urls(parts, generation)
    await parts.move(
        generation,
        Move("generated", leaving=("pending",), source_urls=sources, source_lifetime_seconds=-1, lease_seconds=60),
    )
    await parts.home.put(f"{generation.storage_stem}-0.png", png(), content_type="image/png")

    ended = await parts.recovered()

    assert (ended.state, ended.images[0].size_bytes) == ("completed", len(png()))
    assert sandbox.witness()["pictures"]["asked"] == 0


async def test_of_two_pictures_one_of_which_can_not_be_had_any_more_the_other_is_kept_and_settled(parts: Parts) -> None:
    generation = await parts.reserve(n=2)
    sources = [
        *await _source_urls(parts, replace(generation, prompt="a cat [[picture missing]]")),
        *await _source_urls(parts, generation),
    ]
    await parts.move(
        generation,
        Move("generated", leaving=("pending",), source_urls=sources, source_lifetime_seconds=-1, lease_seconds=60),
    )

    ended = await parts.recovered()

    assert (ended.state, ended.settled_images, ended.settled_micros) == ("completed", 1, PRICE_MICROS)
    assert [image.position for image in ended.images] == [0]
    assert ended.images[0].storage_key == f"{generation.storage_stem}-1.png"
    async with parts.database.statement() as connection:
        assert {gauge.used for gauge in await _all_gauges(connection)} == {1}


async def test_a_generated_row_whose_source_lives_but_does_not_answer_stays_for_the_next_round(parts: Parts) -> None:
    generation = await parts.reserve("a cat [[picture status 503]]")
    sources = await _source_urls(parts, generation)
    await parts.move(generation, Move("generated", leaving=("pending",), source_urls=sources, lease_seconds=60))

    left = await parts.recovered()

    assert left.state == "generated"
    assert left.attempts == 1
    assert left.lease_until is not None


async def test_an_answer_that_comes_after_recovery_gave_up_still_counts(parts: Parts, sandbox: RunningSandbox) -> None:
    generation = await parts.reserve("a cat [[delay 1]]")
    late = asyncio.create_task(parts.driver.drive(generation))
    while sandbox.witness()["asked"] == 0:
        await asyncio.sleep(0.02)
    assert (await parts.recovered()).state == "unknown"

    ended = await late

    assert ended.state == "completed"
    assert sandbox.witness()["asked"] == 1
    async with parts.database.statement() as connection:
        assert await budgets.differences(connection) == []


@pytest.mark.parametrize(("billed", "state", "settled_micros"), [(True, "lost", PRICE_MICROS), (False, "failed", 0)])
async def test_an_unknown_row_is_resolved_by_a_persons_word(
    parts: Parts, billed: bool, state: str, settled_micros: int
) -> None:
    await parts.reserve()
    unknown = await parts.recovered()

    resolved = await parts.driver.resolve(unknown, billed=billed, by="ada")

    assert resolved is not None
    assert (resolved.state, resolved.settled_micros) == (state, settled_micros)


async def test_a_picture_in_storage_outranks_the_word_that_nothing_was_billed(parts: Parts) -> None:
    generation = await parts.reserve()
    unknown = await parts.recovered()
    await parts.home.put(f"{generation.storage_stem}-0.png", png(), content_type="image/png")

    resolved = await parts.driver.resolve(unknown, billed=False, by="ada")

    assert resolved is not None
    assert resolved.state == "completed"


async def test_a_pending_row_with_a_broken_object_under_its_key_does_not_stay_for_ever(parts: Parts) -> None:
    generation = await parts.reserve()
    await parts.home.put(f"{generation.storage_stem}-0.png", png()[:40], content_type="image/png")

    ended = await parts.recovered()

    assert ended.state == "unknown"


async def test_a_pending_row_with_some_of_its_pictures_stored_is_unknown_and_gives_nothing_back(parts: Parts) -> None:
    generation = await parts.reserve(n=2)
    await parts.home.put(f"{generation.storage_stem}-0.png", png(), content_type="image/png")

    ended = await parts.recovered()

    assert (ended.state, ended.settled_micros, ended.held_micros) == ("unknown", None, 2 * PRICE_MICROS)


async def test_an_order_whose_runner_stood_still_after_the_reserve_is_not_sent(
    parts: Parts, sandbox: RunningSandbox
) -> None:
    generation = await parts.reserve()

    ended = await parts.driver.drive(generation, held_seconds=lambda: 31)

    assert (ended.state, ended.settled_micros) == ("failed", 0)
    assert sandbox.witness()["asked"] == 0


async def test_what_a_lost_reserve_may_have_held_is_given_back(parts: Parts) -> None:
    generation = await parts.reserve()

    given_back = await parts.driver.give_back_unsent(Unsent(generation.id, generation.user_id, generation.api_key_id))

    assert given_back is not None
    assert given_back.state == "failed"
    async with parts.database.statement() as connection:
        assert {gauge.used for gauge in await _all_gauges(connection)} == {0}


async def test_a_late_answer_brings_no_words_back_to_a_deleted_generation(parts: Parts) -> None:
    generation = await parts.reserve()
    unknown = await parts.recovered()
    await images.delete(parts.database, parts.stores, unknown)

    late = await parts.driver.drive(replace(generation, prompt="a cat"))
    await images.erase_left_over(parts.database, parts.stores, batch_max=8)

    assert (late.state, late.prompt, late.revised_prompt) == ("completed", None, None)
    with pytest.raises(ObjectMissing):
        await parts.home.head(late.images[0].storage_key)


async def test_images_that_can_not_be_erased_keep_no_others_waiting(parts: Parts) -> None:
    for _ in range(4):
        await parts.driver.drive(await parts.reserve())
    async with parts.database.statement() as connection:
        await connection.execute(text("UPDATE images SET deleted_at = now()"))
        await connection.execute(
            text("UPDATE images SET storage = 's3:gone' WHERE id IN (SELECT id FROM images ORDER BY id LIMIT 3)")
        )

    erased = await images.erase_left_over(parts.database, parts.stores, batch_max=2)

    assert erased == 1


async def test_a_move_leaves_an_image_whose_bytes_are_not_what_they_were_where_it_is(
    parts: Parts, tmp_path: Path
) -> None:
    whole, spoiled = [await parts.driver.drive(await parts.reserve()) for _ in range(2)]
    await parts.home.put(spoiled.images[0].storage_key, png(), content_type="image/png")
    with running_s3(tmp_path / "s3") as server:
        bucket = S3Storage(
            server.bucket,
            endpoint_url=server.url,
            region="us-east-1",
            path_style=True,
            access_key_id=server.access_key_id,
            secret_access_key=server.secret_access_key,
        )
        stores = make_stores(parts.database, bucket, parts.home)

        moved = await images.move_all(parts.database, stores, prefix="")

        assert (moved.images, moved.bytes) == (1, whole.images[0].size_bytes)
        assert [image_id for image_id, _ in moved.failures] == [spoiled.images[0].id]
        assert list(server.objects()) == [whole.images[0].storage_key]
        assert (await parts.home.head(spoiled.images[0].storage_key)).bytes == len(png())
        await bucket.close()


async def test_two_recoveries_at_once_claim_a_row_once(parts: Parts) -> None:
    for _ in range(6):
        await parts.reserve(lease_seconds=-1)

    async def claim() -> int:
        async with parts.database.statement() as connection:
            return len(await records.claim(connection, lease_seconds=60, batch_max=8))

    counts = await asyncio.gather(claim(), claim(), claim())

    assert sum(counts) == 6


async def _source_urls(parts: Parts, generation: Generation) -> list[str]:
    """Let upstream make the picture, as the runner that died had done, and return where it waits."""
    model = load_catalog(None).find(generation.model)
    assert model is not None
    outcome = await parts.upstream.generate(
        model=model, prompt=generation.prompt or "", size=generation.size, quality=generation.quality, n=1
    )
    return [source.url for source in outcome.sources]  # type: ignore[union-attr]


async def _all_gauges(connection: object) -> list[budgets.Gauge]:
    scopes = [row["scope"] for row in (await connection.execute(text("SELECT scope FROM budgets"))).mappings()]  # type: ignore[attr-defined]
    return list(await budgets.gauges_of(connection, scopes))  # type: ignore[arg-type]
