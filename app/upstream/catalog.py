"""Which models can be ordered, in which sizes and qualities, and what does one picture cost the operator?"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

from app.upstream.toml_table import TomlTable, is_count

# The word by which upstream is asked to choose a size or a quality itself.
AUTO: Final = "auto"
# All that an order can be told in. Every route takes the first two.
FIELDS: Final = ("prompt", "model", "n", "size", "quality")

_MILLION = 1_000_000
# What stands around a prompt is counted too: a handful of tokens in the usage that OpenAI shows.
_TOKENS_AROUND_PROMPT_MAX = 16


def _empty() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Translation:
    """What words for size and quality that a model doesn't have are to mean: asked, and made in its place."""

    sizes: Mapping[str, str] = field(default_factory=_empty, hash=False)
    qualities: Mapping[str, str] = field(default_factory=_empty, hash=False)


@dataclass(frozen=True)
class TokenPrices:
    """What a million tokens cost in micros: of the prompt, and of the pictures."""

    input: int
    output: int

    def cost_micros(self, *, input_tokens: int, output_tokens: int) -> int:
        """The price of so many tokens in micros, rounded up."""
        return -(-(input_tokens * self.input + output_tokens * self.output) // _MILLION)


@dataclass(frozen=True)
class Model:
    """One entry of the catalog. `prices` maps (size, quality) to whole micros for one picture.

    `fields` are those of an order that its route takes. With `token_prices`, what upstream says it used is settled,
    and the prompt is held beside the pictures. `also_takes` are words that it doesn't have and takes all the same;
    `stands_in_for` are names of other models that it is made for, with what their words mean here.
    """

    name: str
    path: str
    sizes: tuple[str, ...]
    qualities: tuple[str, ...]
    default_size: str
    default_quality: str
    prompt_characters_max: int
    images_max: int
    prices: Mapping[tuple[str, str], int] = field(hash=False)
    aliases: tuple[str, ...]
    retires_on: date | None
    price_source: str
    price_date: date
    fields: tuple[str, ...] = FIELDS
    token_prices: TokenPrices | None = None
    also_takes: Translation = Translation()
    stands_in_for: Mapping[str, Translation] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it can be ordered by, its own first."""
        return (self.name, *self.aliases, *self.stands_in_for)

    def price_micros(self, size: str, quality: str) -> int | None:
        """The price of one picture in micros; None where there is none, which makes such an order impossible.

        Where upstream is to choose, it is the dearest that may come of it, unless the catalog says more; none, where
        what may come of it has no price.
        """
        if (micros := self.prices.get((size, quality))) is not None:
            return micros
        by_quality = [self.price_micros(size, one) for one in self.qualities if quality == AUTO != one]
        by_size = [self.price_micros(one, quality) for one in self.sizes if size == AUTO != one]
        return _dearest(by_quality) or _dearest(by_size)

    def all_prices(self) -> Iterator[tuple[str, str, int]]:
        """Every size and quality that can be ordered, with its price in micros."""
        for quality in self.qualities:
            for size in self.sizes:
                if (micros := self.price_micros(size, quality)) is not None:
                    yield size, quality, micros

    def prompt_micros_max(self, prompt: str) -> int:
        """What a prompt can cost at most beside the pictures, in micros; 0 where only pictures have a price.

        A token is a byte at least, in every tokenizer that works on bytes, as OpenAI's do. Left out, a long prompt for
        a cheap picture would cost many times what was held for it.
        """
        if self.token_prices is None:
            return 0
        tokens_max = len(prompt.encode("utf-8", "replace")) + _TOKENS_AROUND_PROMPT_MAX
        return self.token_prices.cost_micros(input_tokens=tokens_max, output_tokens=0)

    def size_for(self, asked: str | None, *, name: str | None) -> str | None:
        """The size that is made when `asked` is asked of `name`: the usual one for None; None when it isn't taken."""
        return self.default_size if asked is None else _meant(asked, self.sizes, self._takes(name, "sizes"))

    def quality_for(self, asked: str | None, *, name: str | None) -> str | None:
        """As `size_for`, for the quality."""
        return self.default_quality if asked is None else _meant(asked, self.qualities, self._takes(name, "qualities"))

    def sizes_taken(self, *, name: str | None) -> tuple[str, ...]:
        """Every word for a size that can be asked of `name`."""
        return tuple(dict.fromkeys((*self.sizes, *self._takes(name, "sizes"))))

    def qualities_taken(self, *, name: str | None) -> tuple[str, ...]:
        """Every word for a quality that can be asked of `name`."""
        return tuple(dict.fromkeys((*self.qualities, *self._takes(name, "qualities"))))

    def _takes(self, name: str | None, kind: str) -> Mapping[str, str]:
        stood_in_for = self.stands_in_for.get(name or self.name, Translation())
        # What a word means under the other model's name goes before what it means here: both may know "high".
        return {**getattr(self.also_takes, kind), **getattr(stood_in_for, kind)}


def _meant(asked: str, own: tuple[str, ...], taken: Mapping[str, str]) -> str | None:
    return taken.get(asked, asked if asked in own else None)


def _dearest(choices: Sequence[int | None]) -> int | None:
    known = [micros for micros in choices if micros is not None]
    return max(known) if known and len(known) == len(choices) else None


def _ceiling(prices: Mapping[tuple[str, str], int], size: str, quality: str) -> int | None:
    covered = (
        micros
        for (one_size, one_quality), micros in prices.items()
        if size in (AUTO, one_size) and quality in (AUTO, one_quality)
    )
    return max(covered, default=None) if AUTO in (size, quality) else None


@dataclass(frozen=True)
class Catalog:
    """All models. No two share a name, and `default_model` is a name of one: its own, or one it is made for."""

    models: tuple[Model, ...]
    default_model: str

    def find(self, name: str) -> Model | None:
        """The model that is ordered by this name, spelled exactly so; None where there is none."""
        return next((model for model in self.models if name in model.names), None)


class CatalogError(Exception):
    """The catalog file cannot be used. `faults` are all of them, each beginning with its place in the file."""

    def __init__(self, file: str, faults: tuple[str, ...]) -> None:
        self.faults = faults
        super().__init__("\n  ".join((f"The model catalog {file} cannot be used:", *faults)))


def load_catalog(path: Path | None) -> Catalog:
    """Reads the operator's file, or the shipped one for None. Nothing is guessed or rounded.

    Raises: `CatalogError` with every fault of the file at once.
    """
    file = str(path or "catalog.toml")
    try:
        raw = path.read_bytes() if path else resources.files(__package__).joinpath("catalog.toml").read_bytes()
        table = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise CatalogError(file, (f"it cannot be read: {error.strerror}",)) from error
    except ValueError as error:
        # tomllib's own text ends in the line and column.
        raise CatalogError(file, (f"it is not TOML: {error}",)) from error
    faults: list[str] = []
    catalog = _read_catalog(TomlTable(table, "", faults))
    if faults:
        raise CatalogError(file, tuple(faults))
    return catalog


# A leading slash and nothing of an authority: the key goes to the origin of TT_API_BASE_URL whatever stands here.
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")
_WORD = re.compile(r"[a-z0-9_-]{1,40}")
_LINE = re.compile(r"[^\x00-\x1f\x7f]+")


def _read_catalog(table: TomlTable) -> Catalog:
    default_model = table.text("default_model", "the name of a model", _NAME)
    entries = tuple(table.tables("models"))
    table.refuse_unread()
    models = tuple(_read_model(entry) for entry in entries)
    seen: set[str] = set()
    for entry, model in zip(entries, models, strict=True):
        for name in filter(None, model.names):
            if name in seen:
                table.fault(entry.place.rstrip("."), f"{name!r} is the name of a model already")
            seen.add(name)
    if default_model and models and default_model not in seen:
        table.fault("default_model", f"{default_model!r} is the name of no model")
    return Catalog(models, default_model)


def _read_model(table: TomlTable) -> Model:
    sizes = table.texts("sizes", 'a list of different sizes, like "1024x1024"', _WORD)
    qualities = table.texts("qualities", 'a list of different qualities, like "hd"', _WORD)
    also_takes = _read_translation(table.table("also_takes"), sizes, qualities)
    model = Model(
        name=table.text("name", "a name of letters, digits and . _ : / -", _NAME),
        path=table.text("path", "a path that begins with one slash", _PATH),
        sizes=sizes,
        qualities=qualities,
        default_size=table.text("default_size", "one of the sizes", _WORD),
        default_quality=table.text("default_quality", "one of the qualities", _WORD),
        prompt_characters_max=table.count("prompt_characters_max"),
        images_max=table.count("images_max"),
        prices=_read_prices(table, sizes, qualities),
        aliases=table.texts("aliases", "a list of different names", _NAME, otherwise=()),
        retires_on=table.day("retires_on") if "retires_on" in table.entries else None,
        price_source=table.text("price_source", "one line of text", _LINE),
        price_date=table.day("price_date") or date.min,
        fields=table.texts("fields", f"a list of some of {', '.join(FIELDS)}", _FIELD, otherwise=FIELDS),
        token_prices=_read_token_prices(table.table("token_prices")),
        also_takes=also_takes,
        stands_in_for=_read_stand_ins(table, sizes, qualities),
    )
    _check_choices(table, model)
    _check_fields(table, model)
    table.refuse_unread()
    return model


_FIELD = re.compile("|".join(FIELDS))


def _check_choices(table: TomlTable, model: Model) -> None:
    for key, value, allowed in (
        ("default_size", model.default_size, model.sizes),
        ("default_quality", model.default_quality, model.qualities),
    ):
        if value and allowed and value not in allowed:
            table.fault(key, f"{value!r} is not in the list above it")
    for key, words, own in (
        ("sizes", model.also_takes.sizes, model.sizes),
        ("qualities", model.also_takes.qualities, model.qualities),
    ):
        for word in words:
            if word in own:
                table.fault(f"also_takes.{key}.{word}", f"is one of the {key} already")
    usual = (model.default_size, model.default_quality)
    if model.prices and all(usual) and model.price_micros(*usual) is None:
        table.fault("prices", f"have none for the usual {model.default_size} in {model.default_quality}")


def _check_fields(table: TomlTable, model: Model) -> None:
    for name in ("prompt", "model"):
        if name not in model.fields:
            table.fault("fields", f"must hold {name!r}")
    for name, key, choices in (
        ("size", "sizes", len(model.sizes)),
        ("quality", "qualities", len(model.qualities)),
        ("n", "images_max", model.images_max),
    ):
        # Upstream would make, and bill, what it likes: of what isn't sent there must be one kind only.
        if name not in model.fields and choices > 1:
            table.fault("fields", f"leave out {name!r}, so {key} must be one only")


def _read_prices(table: TomlTable, sizes: tuple[str, ...], qualities: tuple[str, ...]) -> Mapping[tuple[str, str], int]:
    prices: dict[tuple[str, str], int] = {}
    by_quality = table.read("prices", "tables of prices by quality and size", _is_table_of_tables) or {}
    for quality, by_size in by_quality.items():
        if qualities and quality not in qualities:
            table.fault(f"prices.{quality}", "is not one of the qualities")
        for size, price in by_size.items():
            if sizes and size not in sizes:
                table.fault(f"prices.{quality}.{size}", "is not one of the sizes")
            if is_count(price):
                prices[(size, quality)] = price
            else:
                table.fault(f"prices.{quality}.{size}", "must be a whole number of micros above zero")
    for (size, quality), price in prices.items():
        if price < (_ceiling(prices, size, quality) or 0):
            table.fault(f"prices.{quality}.{size}", "is less than what upstream may choose to make")
    return MappingProxyType(prices)


def _is_table_of_tables(value: object) -> bool:
    return (
        isinstance(value, dict) and bool(value) and all(isinstance(entry, dict) and entry for entry in value.values())
    )


def _read_token_prices(table: TomlTable | None) -> TokenPrices | None:
    if table is None:
        return None
    prices = TokenPrices(input=table.count("input"), output=table.count("output"))
    table.refuse_unread()
    return prices


def _read_stand_ins(table: TomlTable, sizes: tuple[str, ...], qualities: tuple[str, ...]) -> Mapping[str, Translation]:
    stand_ins: dict[str, Translation] = {}
    for entry in table.tables("stands_in_for", otherwise=()):
        name = entry.text("name", "a name of letters, digits and . _ : / -", _NAME)
        if name in stand_ins:
            entry.fault("name", f"{name!r} stands here twice")
        stand_ins[name] = _read_translation(entry, sizes, qualities)
    return MappingProxyType(stand_ins)


def _read_translation(table: TomlTable | None, sizes: tuple[str, ...], qualities: tuple[str, ...]) -> Translation:
    if table is None:
        return Translation()
    translation = Translation(table.words("sizes", _WORD, sizes), table.words("qualities", _WORD, qualities))
    table.refuse_unread()
    return translation
