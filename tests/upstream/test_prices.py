"""What is held for an order whose price nobody knows before it is made, and what do tokens come to?"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.upstream.catalog import TokenPrices, load_catalog
from tests.makers import make_model

PRICES = {
    ("1024x1024", "low"): 5,
    ("1536x1024", "low"): 7,
    ("1024x1024", "high"): 20,
    ("1536x1024", "high"): 10,
}
MODEL = replace(
    make_model(), sizes=("1024x1024", "1536x1024", "auto"), qualities=("low", "high", "auto"), prices=PRICES
)


@pytest.mark.parametrize(
    ("size", "quality", "micros"),
    [
        ("auto", "low", 7),
        ("auto", "high", 20),
        ("1024x1024", "auto", 20),
        ("1536x1024", "auto", 10),
        ("auto", "auto", 20),
        ("1024x1024", "low", 5),
        ("512x512", "auto", None),
        ("auto", "max", None),
    ],
)
def test_auto_costs_the_dearest_that_may_come_of_it(size: str, quality: str, micros: int | None) -> None:
    assert MODEL.price_micros(size, quality) == micros


def test_a_price_that_is_written_for_auto_counts() -> None:
    model = replace(MODEL, prices={**PRICES, ("auto", "low"): 9})

    assert model.price_micros("auto", "low") == 9
    assert model.price_micros("auto", "auto") == 20


@pytest.mark.parametrize(("size", "quality"), [("1536x1024", "auto"), ("auto", "high"), ("auto", "auto")])
def test_auto_is_not_offered_where_what_may_come_of_it_has_no_price(size: str, quality: str) -> None:
    prices = {choice: micros for choice, micros in PRICES.items() if choice != ("1536x1024", "high")}

    assert replace(MODEL, prices=prices).price_micros(size, quality) is None
    assert replace(MODEL, prices={**prices, (size, quality): 20}).price_micros(size, quality) == 20


def test_what_upstream_does_not_choose_has_no_ceiling() -> None:
    assert replace(MODEL, prices={("1024x1024", "low"): 5}).price_micros("1024x1024", "high") is None


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "micros"),
    [(0, 1, 30), (9, 1_756, 52_725), (1, 0, 5), (0, 0, 0), (10**20, 10**20, 35 * 10**20)],
)
def test_tokens_cost_what_the_catalog_says(input_tokens: int, output_tokens: int, micros: int) -> None:
    prices = TokenPrices(input=5_000_000, output=30_000_000)

    assert prices.cost_micros(input_tokens=input_tokens, output_tokens=output_tokens) == micros


def test_a_part_of_a_micro_is_a_whole_one() -> None:
    assert TokenPrices(input=1, output=1).cost_micros(input_tokens=1, output_tokens=0) == 1
    assert TokenPrices(input=1, output=999_999).cost_micros(input_tokens=1, output_tokens=1) == 1
    assert TokenPrices(input=2, output=999_999).cost_micros(input_tokens=1, output_tokens=1) == 2


def test_a_prompt_costs_nothing_beside_pictures_that_have_a_price_of_their_own() -> None:
    assert make_model().prompt_micros_max("a cat" * 1_000) == 0


@given(st.text(max_size=200))
def test_more_is_held_for_a_prompt_than_a_token_for_each_of_its_bytes(prompt: str) -> None:
    model = load_catalog(None).find("gpt-image-2")
    assert model is not None

    assert model.prompt_micros_max(prompt) >= 5 * len(prompt.encode("utf-8", "replace"))
