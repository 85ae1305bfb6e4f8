"""Which orders does the catalog allow, and at what price?"""

from dataclasses import replace

import pytest

from app.errors import InvalidValue, ModelNotFound, UnsupportedParameter
from app.generations.order import Order, check
from app.upstream.catalog import Catalog, Translation, load_catalog

CATALOG = load_catalog(None)


def test_what_is_left_out_is_as_usual_for_the_model() -> None:
    order = check(Order("a cat"), CATALOG)

    assert (order.model.name, order.size, order.quality, order.n) == ("dall-e-3", "1024x1024", "standard", 1)


@pytest.mark.parametrize(
    ("size", "quality", "cost_micros"),
    [
        ("1024x1024", "standard", 10_000),
        ("1792x1024", "standard", 20_000),
        ("1024x1792", "standard", 20_000),
        ("1024x1024", "hd", 20_000),
        ("1792x1024", "hd", 30_000),
        ("1024x1792", "hd", 30_000),
    ],
)
def test_an_order_is_priced_by_size_and_quality(size: str, quality: str, cost_micros: int) -> None:
    assert check(Order("a cat", size=size, quality=quality), CATALOG).cost_micros == cost_micros


def test_a_size_without_a_price_is_refused_and_never_free() -> None:
    model = replace(CATALOG.models[0], prices={("1792x1024", "standard"): 20_000})

    with pytest.raises(InvalidValue, match="no price"):
        check(Order("a cat"), Catalog((model,), model.name))


@pytest.mark.parametrize(
    ("order", "error", "parameter"),
    [
        (Order("a cat", model="dall-e-9"), ModelNotFound, "model"),
        (Order("a cat", size="512x512"), InvalidValue, "size"),
        (Order("a cat", quality="ultra"), InvalidValue, "quality"),
        (Order("a cat", n=2), UnsupportedParameter, "n"),
        (Order("a cat", n=0), InvalidValue, "n"),
        (Order(""), InvalidValue, "prompt"),
        (Order(" \n"), InvalidValue, "prompt"),
        (Order("a\x00cat"), InvalidValue, "prompt"),
        (Order("a\x1bcat"), InvalidValue, "prompt"),
        (Order("a" * 4001), InvalidValue, "prompt"),
    ],
)
def test_what_the_catalog_does_not_allow_is_refused_by_parameter(
    order: Order, error: type[InvalidValue], parameter: str
) -> None:
    with pytest.raises(error) as refused:
        check(order, CATALOG)

    assert refused.value.parameter == parameter


def test_what_a_model_does_not_take_is_answered_with_what_there_is() -> None:
    with pytest.raises(InvalidValue) as refused:
        check(Order("a cat", model="gpt-image-2", size="512x512"), CATALOG)

    assert refused.value.message == "`size` must be one of 1024x1024, 1536x1024, 1024x1536, auto for gpt-image-2."


def test_words_that_a_model_takes_for_its_own_are_made_as_its_own_and_said() -> None:
    order = check(Order("a cat", size="auto", quality="auto"), CATALOG)

    assert (order.size, order.quality, order.cost_micros) == ("1024x1024", "standard", 10_000)
    assert order.asked == {"model": None, "size": "auto", "quality": "auto"}
    # A repeat is compared by what was sent, also when the model has an auto of its own since.
    assert order.digest == Order("a cat", size="auto", quality="auto").digest != Order("a cat").digest


def test_auto_is_held_at_its_ceiling_with_the_prompt_beside_it() -> None:
    order = check(Order("a cat", model="gpt-image-2", size="auto", quality="auto", n=3), CATALOG)

    assert (order.size, order.quality, order.asked) == ("auto", "auto", None)
    assert order.cost_micros == 3 * (210_720 + (5 + 16) * 5)


LIVING = replace(
    CATALOG.models[1],
    aliases=("newest",),
    also_takes=Translation(sizes={"512x512": "1024x1024"}, qualities={"standard": "low"}),
    stands_in_for={
        "dall-e-3": Translation(
            sizes={"1792x1024": "1536x1024", "1024x1792": "1024x1536"}, qualities={"standard": "medium", "hd": "high"}
        ),
        "gpt-image-2.5-flare": Translation(qualities={"max": "high", "high": "medium"}),
    },
)
MAPPED = Catalog((LIVING,), LIVING.name)


@pytest.mark.parametrize(
    ("model", "size", "quality", "made", "is_translated"),
    [
        (None, None, None, ("1024x1024", "medium"), False),
        ("gpt-image-2", "auto", "high", ("auto", "high"), False),
        ("newest", None, None, ("1024x1024", "medium"), True),
        ("dall-e-3", None, None, ("1024x1024", "medium"), True),
        ("dall-e-3", "1792x1024", "hd", ("1536x1024", "high"), True),
        ("dall-e-3", "1024x1792", "standard", ("1024x1536", "medium"), True),
        # A word of the old name goes before the model's own, and that before what it takes besides.
        ("gpt-image-2.5-flare", None, "high", ("1024x1024", "medium"), True),
        ("gpt-image-2.5-flare", "512x512", "max", ("1024x1024", "high"), True),
        ("gpt-image-2", None, "standard", ("1024x1024", "low"), True),
        ("gpt-image-2", "512x512", None, ("1024x1024", "medium"), True),
    ],
)
def test_a_living_model_is_made_for_an_old_name_and_that_is_said(
    model: str | None, size: str | None, quality: str | None, made: tuple[str, str], is_translated: bool
) -> None:
    order = Order("a cat", model=model, size=size, quality=quality)

    priced = check(order, MAPPED)

    assert (priced.model.name, priced.size, priced.quality) == ("gpt-image-2", *made)
    assert priced.asked == ({"model": model, "size": size, "quality": quality} if is_translated else None)
    # So that a repeat finds its generation whatever the catalog says by then.
    assert priced.digest == order.digest


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (Order("a cat", model="gpt-image-2", size="1792x1024"), "1536x1024, 1024x1536, auto, 512x512 for"),
        (Order("a cat", model="dall-e-3", size="256x256"), "auto, 512x512, 1792x1024, 1024x1792 for gpt-image-2"),
        (Order("a cat", model="dall-e-3", quality="max"), "low, medium, high, auto, standard, hd for gpt-image-2"),
    ],
)
def test_a_word_of_another_name_is_none_of_this_ones(order: Order, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        check(order, MAPPED)


def test_a_prompt_is_measured_in_characters_not_in_bytes() -> None:
    assert len(check(Order("🦊" * 4000), CATALOG).prompt) == 4000


def test_a_digest_is_of_what_was_asked_and_not_of_what_the_catalog_makes_of_it() -> None:
    usual = Order("a cat").digest

    assert usual == Order("a cat", n=1).digest == check(Order("a cat"), CATALOG).digest
    assert len({usual, Order("a cat", size="1024x1024").digest, Order("a cat", model="dall-e-3").digest}) == 3
    assert usual != Order("a cat ").digest
    # What rows of earlier releases hold.
    assert usual.hex() == "09437d5cb8028d7c2ee720df0d1ae4eb539b1ebaf1729a504f0a57750b373176"
