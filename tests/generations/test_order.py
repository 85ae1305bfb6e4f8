"""Which orders does the catalog allow, and at what price?"""

from dataclasses import replace

import pytest

from app.errors import InvalidValue, ModelNotFound, UnsupportedParameter
from app.generations.order import Order, check
from app.upstream.catalog import Catalog, load_catalog

CATALOG = load_catalog(None)


def test_what_is_left_out_is_as_usual_for_the_model() -> None:
    order = check(Order("a cat"), CATALOG)

    assert (order.model.name, order.size, order.quality, order.n) == ("dall-e-3", "1024x1024", "standard", 1)


def test_auto_is_the_models_default_where_the_model_has_no_auto() -> None:
    order = check(Order("a cat", size="auto", quality="auto"), CATALOG)
    model = replace(CATALOG.models[0], sizes=("1024x1024", "auto"), prices={("auto", "standard"): 30_000})

    with_auto = check(Order("a cat", size="auto"), Catalog((model,), model.name))

    assert (order.size, order.quality, order.cost_micros) == ("1024x1024", "standard", 10_000)
    assert (with_auto.size, with_auto.cost_micros) == ("auto", 30_000)
    # A repeat is compared by what was sent, also when the model has an auto of its own since.
    assert with_auto.digest == Order("a cat", size="auto").digest != Order("a cat").digest


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


def test_a_prompt_is_measured_in_characters_not_in_bytes() -> None:
    assert len(check(Order("🦊" * 4000), CATALOG).prompt) == 4000


def test_a_digest_is_of_what_was_asked_and_not_of_what_the_catalog_makes_of_it() -> None:
    usual = Order("a cat").digest

    assert usual == Order("a cat", n=1).digest == check(Order("a cat"), CATALOG).digest
    assert len({usual, Order("a cat", size="1024x1024").digest, Order("a cat", model="dall-e-3").digest}) == 3
    assert usual != Order("a cat ").digest
    # What rows of earlier releases hold.
    assert usual.hex() == "09437d5cb8028d7c2ee720df0d1ae4eb539b1ebaf1729a504f0a57750b373176"
