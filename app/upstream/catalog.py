"""Which models can be ordered, in which sizes and qualities, and what does one picture cost the operator?"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Model:
    """One entry of the catalog. `prices` maps (size, quality) to whole micros for one picture."""

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

    def price_micros(self, size: str, quality: str) -> int | None:
        """The price of one picture in micros; None where there is none, which makes such an order impossible."""
        return self.prices.get((size, quality))


@dataclass(frozen=True)
class Catalog:
    """All models. No two share a name or an alias, and `default_model` is the name of one."""

    models: tuple[Model, ...]
    default_model: str

    def find(self, name: str) -> Model | None:
        """The model that has this name or alias, spelled exactly so; None where there is none."""
        return next((model for model in self.models if name == model.name or name in model.aliases), None)


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
    catalog = _read_catalog(_Table(table, "", faults))
    if faults or catalog is None:
        raise CatalogError(file, tuple(faults))
    return catalog


# A leading slash and nothing of an authority: the key goes to the origin of TT_API_BASE_URL whatever stands here.
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")
_WORD = re.compile(r"[a-z0-9_-]{1,40}")
_LINE = re.compile(r"[^\x00-\x1f\x7f]+")


class _Table:
    """One TOML table that notes each fault with its place and goes on, so that all are told at once."""

    def __init__(self, entries: dict[str, Any], place: str, faults: list[str]) -> None:
        self.entries, self.place, self.faults = entries, place, faults
        self._unread = set(entries)

    def fault(self, key: str, text: str) -> None:
        self.faults.append(f"{self.place}{key}: {text}")

    def read(self, key: str, wanted: str, is_wanted: Callable[[Any], bool], *, otherwise: Any = None) -> Any:
        self._unread.discard(key)
        if key not in self.entries:
            if otherwise is None:
                self.fault(key, "is missing")
            return otherwise
        if not is_wanted(self.entries[key]):
            self.fault(key, f"must be {wanted}")
            return otherwise
        return self.entries[key]

    def text(self, key: str, wanted: str, pattern: re.Pattern[str]) -> str:
        return str(self.read(key, wanted, lambda value: _matches(value, pattern)) or "")

    def texts(self, key: str, wanted: str, pattern: re.Pattern[str], *, otherwise: Any = None) -> tuple[str, ...]:
        return tuple(
            self.read(key, wanted, lambda value: _is_list(value, pattern, otherwise), otherwise=otherwise) or ()
        )

    def count(self, key: str) -> int:
        return int(self.read(key, "a whole number above zero", _is_count) or 0)

    def refuse_unread(self) -> None:
        for key in sorted(self._unread):
            self.fault(key, "is not known here")


def _matches(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_list(value: Any, pattern: re.Pattern[str], otherwise: Any) -> bool:
    if not isinstance(value, list) or not all(_matches(entry, pattern) for entry in value):
        return False
    return len(set(value)) == len(value) and (bool(value) or otherwise is not None)


def _is_count(value: Any) -> bool:
    # A float is no money, and True is no number.
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def _is_date(value: Any) -> bool:
    return isinstance(value, date) and not isinstance(value, datetime)


def _read_catalog(table: _Table) -> Catalog | None:
    default_model = table.text("default_model", "the name of a model", _NAME)
    entries = table.read("models", "one [[models]] table or more", _is_list_of_tables) or []
    table.refuse_unread()
    models = tuple(
        _read_model(_Table(entry, f"models[{position}]{_named(entry)}.", table.faults))
        for position, entry in enumerate(entries)
    )
    seen: set[str] = set()
    for position, model in enumerate(models):
        for name in filter(None, (model.name, *model.aliases)):
            if name in seen:
                table.fault(f"models[{position}]{_named(entries[position])}", f"{name!r} is a name or alias already")
            seen.add(name)
    if default_model and models and default_model not in {model.name for model in models}:
        table.fault("default_model", f"{default_model!r} is the name of no model")
    return None if table.faults else Catalog(models, default_model)


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _named(entry: dict[str, Any]) -> str:
    name = entry.get("name")
    return f" ({name})" if isinstance(name, str) else ""


def _read_model(table: _Table) -> Model:
    sizes = table.texts("sizes", 'a list of different sizes, like "1024x1024"', _WORD)
    qualities = table.texts("qualities", 'a list of different qualities, like "hd"', _WORD)
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
        retires_on=table.read("retires_on", "a date", _is_date) if "retires_on" in table.entries else None,
        price_source=table.text("price_source", "one line of text", _LINE),
        price_date=table.read("price_date", "a date", _is_date) or date.min,
    )
    for key, value, allowed in (
        ("default_size", model.default_size, sizes),
        ("default_quality", model.default_quality, qualities),
    ):
        if value and allowed and value not in allowed:
            table.fault(key, f"{value!r} is not in the list above it")
    table.refuse_unread()
    return model


def _read_prices(table: _Table, sizes: tuple[str, ...], qualities: tuple[str, ...]) -> Mapping[tuple[str, str], int]:
    prices: dict[tuple[str, str], int] = {}
    by_quality = table.read("prices", "tables of prices by quality and size", _is_table_of_tables) or {}
    for quality, by_size in by_quality.items():
        if qualities and quality not in qualities:
            table.fault(f"prices.{quality}", "is not one of the qualities")
        for size, price in by_size.items():
            if sizes and size not in sizes:
                table.fault(f"prices.{quality}.{size}", "is not one of the sizes")
            if _is_count(price):
                prices[(size, quality)] = price
            else:
                table.fault(f"prices.{quality}.{size}", "must be a whole number of micros above zero")
    return MappingProxyType(prices)


def _is_table_of_tables(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(entry, dict) for entry in value.values())
