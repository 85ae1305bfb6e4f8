"""What is asked for: an order, checked against the catalog and priced, before anything is stored?"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from app.errors import InvalidValue, ModelNotFound, UnsupportedParameter
from app.upstream.catalog import Catalog, Model

# Postgres can't store NUL, and no picture wants a control character; a line break or a tab may well be meant.
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Order:
    """What a caller asks for, as it was asked: names are not looked up, None is "whatever is usual"."""

    prompt: str
    model: str | None = None
    size: str | None = None
    quality: str | None = None
    n: int = 1

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over what was asked: equal for equal orders, however their JSON was written.

        What was left out stays out, so that a repeat finds its generation also when the catalog has another default
        since, or when a later release knows more fields.
        """
        asked = {name: value for name, value in vars(self).items() if value is not None}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=True).encode()).digest()


class Asked(TypedDict):
    """The words that an order was asked in, where the catalog made others of them; None is "left out"."""

    model: str | None
    size: str | None
    quality: str | None


@dataclass(frozen=True)
class PricedOrder:
    """An order that the catalog allows, with every choice made.

    `cost_micros` is the most that all its `n` pictures, and its prompt, can cost; `digest` that of what was asked;
    `asked` what that was, if the catalog has other words for it.
    """

    prompt: str
    model: Model
    size: str
    quality: str
    n: int
    cost_micros: int
    digest: bytes
    asked: Asked | None = None


def check(order: Order, catalog: Catalog) -> PricedOrder:
    """Return the order with the catalog's defaults and price.

    Raises ModelNotFound, InvalidValue or UnsupportedParameter, each naming its parameter. What has no price is
    refused, never free.
    """
    name = catalog.default_model if order.model is None else order.model
    model = _model(name, catalog)
    prompt = _prompt(order.prompt, model)
    size = model.size_for(order.size, name=name)
    if size is None:
        offered = ", ".join(model.sizes_taken(name=name))
        raise InvalidValue(f"`size` must be one of {offered} for {model.name}.", parameter="size")
    quality = model.quality_for(order.quality, name=name)
    if quality is None:
        offered = ", ".join(model.qualities_taken(name=name))
        raise InvalidValue(f"`quality` must be one of {offered} for {model.name}.", parameter="quality")
    if order.n < 1:
        raise InvalidValue("`n` must be 1 or more.", parameter="n")
    if order.n > model.images_max:
        raise UnsupportedParameter(
            f"`n` must be {model.images_max} or less for {model.name}. Send one order for each image.", parameter="n"
        )
    price_micros = model.price_micros(size, quality)
    if price_micros is None:
        raise InvalidValue(
            f"{model.name} has no price for {size} in {quality}, so it is not offered.", parameter="size"
        )
    # The prompt may be counted for each picture; nobody says.
    cost_micros = (price_micros + model.prompt_micros_max(prompt)) * order.n
    asked = _asked(order, model.name, size, quality)
    return PricedOrder(prompt, model, size, quality, order.n, cost_micros, order.digest, asked)


def _asked(order: Order, *made: str) -> Asked | None:
    asked = (order.model, order.size, order.quality)
    if all(word in (None, word_made) for word, word_made in zip(asked, made, strict=True)):
        return None
    return Asked(model=order.model, size=order.size, quality=order.quality)


def _model(name: str, catalog: Catalog) -> Model:
    model = catalog.find(name)
    if model is None:
        offered = ", ".join(model.name for model in catalog.models)
        raise ModelNotFound(f"There is no such model here. There is: {offered}.", parameter="model")
    return model


def _prompt(prompt: str, model: Model) -> str:
    if _CONTROL_CHARACTER.search(prompt):
        raise InvalidValue("`prompt` must not hold control characters.", parameter="prompt")
    if not prompt.strip():
        raise InvalidValue("`prompt` must not be empty.", parameter="prompt")
    if len(prompt) > model.prompt_characters_max:
        raise InvalidValue(
            f"`prompt` has {len(prompt)} characters; {model.name} takes {model.prompt_characters_max} at most.",
            parameter="prompt",
        )
    return prompt
