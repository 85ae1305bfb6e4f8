"""Is what is charged never more than what was held, never below nothing, and what upstream counted in between?"""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.generations.records import Generation
from app.generations.settling import settlement, used_micros
from app.upstream.catalog import TokenPrices
from app.upstream.outcome import Usage
from tests.makers import make_model

MODEL = replace(make_model(), token_prices=TokenPrices(input=5_000_000, output=30_000_000))


def held(micros: int, *, images: int = 1, used: int | None = None) -> Generation:
    """A generation that holds so much, and nothing else that matters here."""
    return Generation(
        id=UUID(int=1),
        user_id=UUID(int=2),
        api_key_id=UUID(int=3),
        state="pending",
        failure_code=None,
        failure_detail=None,
        idempotency_key=None,
        order_digest=b"",
        asked=None,
        model=MODEL.name,
        size="1024x1024",
        quality="standard",
        prompt="a cat",
        revised_prompt=None,
        sandbox=False,
        held_images=images,
        held_micros=micros,
        used_micros=used,
        settled_images=None,
        settled_micros=None,
        storage_stem="a",
        lease_until=None,
        attempts=0,
        source_urls=None,
        source_expires_at=None,
        request_id=None,
        created_at=datetime(2026, 11, 22, tzinfo=UTC),
        finished_at=None,
        deleted_at=None,
    )


def test_what_upstream_counted_is_what_it_costs() -> None:
    assert used_micros(held(210_825), MODEL, Usage(9, 1_756)) == 52_725


def test_what_upstream_counted_beyond_what_was_held_is_cut() -> None:
    assert used_micros(held(10_000), MODEL, Usage(9, 1_756)) == 10_000
    assert used_micros(held(10_000), MODEL, Usage(10**30, 10**30)) == 10_000


def test_without_a_count_or_a_price_for_it_nothing_is_known() -> None:
    assert used_micros(held(10_000), MODEL, None) is None
    assert used_micros(held(10_000), make_model(), Usage(9, 1_756)) is None


@pytest.mark.parametrize(
    ("generation", "came", "micros"),
    [
        (held(10_000), 1, 10_000),
        (held(10_000, used=700), 1, 700),
        (held(30_000, images=3), 2, 20_000),
        (held(30_000, images=3, used=25_000), 2, 20_000),
        (held(30_000, images=3, used=15_000), 2, 15_000),
        # Rounded up: what the prompt holds does not divide.
        (held(100, images=3), 1, 34),
        (held(100, images=3), 2, 67),
        (held(100, images=3), 3, 100),
    ],
)
def test_the_share_that_came_is_charged_or_what_was_used_if_less(
    generation: Generation, came: int, micros: int
) -> None:
    assert settlement(generation, came) == (came, micros)


def test_of_what_upstream_counted_for_all_it_made_only_those_that_came_are_charged() -> None:
    assert settlement(held(30_000, images=3, used=15_000), 2, made=3) == (2, 10_000)
    assert settlement(held(30_000, images=3, used=100), 1, made=3) == (1, 34)
    assert settlement(held(30_000, images=3, used=15_000), 2, made=2) == (2, 15_000)


@given(
    micros=st.integers(1, 2**62),
    images=st.integers(1, 10),
    came=st.integers(1, 10),
    usage=st.builds(Usage, st.integers(0, 10**31), st.integers(1, 10**31)) | st.none(),
)
def test_nothing_that_upstream_says_charges_more_than_was_held_or_less_than_nothing(
    micros: int, images: int, came: int, usage: Usage | None
) -> None:
    generation = held(micros, images=images)
    generation = replace(generation, used_micros=used_micros(generation, MODEL, usage))

    settled_images, settled_micros = settlement(generation, min(came, images))

    assert 0 <= settled_micros <= micros
    assert settled_images <= images
