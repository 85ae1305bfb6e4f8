"""How is a file of settings read so that all its faults are told at once, each by its place?"""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from types import MappingProxyType
from typing import Any


class TomlTable:
    """One TOML table that notes each fault with its place and goes on. What it reads in vain is empty, 0 or None."""

    def __init__(self, entries: dict[str, Any], place: str, faults: list[str]) -> None:
        """`place` is where the table stands in the file, ready for a key to follow; `faults` is the whole file's."""
        self.entries, self.place, self.faults = entries, place, faults
        self._unread = set(entries)

    def fault(self, key: str, text: str) -> None:
        """Note what is wrong with a key."""
        self.faults.append(f"{self.place}{key}: {text}")

    def read(self, key: str, wanted: str, is_wanted: Callable[[Any], bool], *, otherwise: Any = None) -> Any:
        """Return a value that `is_wanted`; `otherwise` for one that isn't, or isn't there, which None makes a fault."""
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
        """Return a text that fits the whole pattern."""
        return str(self.read(key, wanted, lambda value: _matches(value, pattern)) or "")

    def texts(self, key: str, wanted: str, pattern: re.Pattern[str], *, otherwise: Any = None) -> tuple[str, ...]:
        """Return a list of different texts that fit; it may be empty only where it may be left out."""
        return tuple(
            self.read(key, wanted, lambda value: _is_list(value, pattern, otherwise), otherwise=otherwise) or ()
        )

    def count(self, key: str) -> int:
        """Return a whole number above zero."""
        return int(self.read(key, "a whole number above zero", is_count) or 0)

    def day(self, key: str) -> date | None:
        """Return a date without a time."""
        found = self.read(key, "a date", _is_date)
        return found if isinstance(found, date) else None

    def table(self, key: str) -> "TomlTable | None":
        """Return the table under a key; None where there is none."""
        if key not in self.entries:
            return None
        found = self.read(key, "a table", lambda value: isinstance(value, dict))
        return None if found is None else TomlTable(found, f"{self.place}{key}.", self.faults)

    def tables(self, key: str, *, otherwise: Any = None) -> Iterator["TomlTable"]:
        """Yield the tables of a list, whose places bear their number and name."""
        found = self.read(
            key,
            f"one [[{self.place}{key}]] table or more",
            lambda value: isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value),
            otherwise=otherwise,
        )
        for position, entry in enumerate(found or []):
            yield TomlTable(entry, f"{self.place}{key}[{position}]{_named(entry)}.", self.faults)

    def words(self, key: str, pattern: re.Pattern[str], targets: tuple[str, ...]) -> Mapping[str, str]:
        """Return a table of words, by the words they stand for; empty where there is none. Each must be a target."""
        found: dict[str, str] = {}
        if (table := self.table(key)) is not None:
            for word in table.entries:
                if not _matches(word, pattern):
                    table.fault(word, "is no word for this")
                meant = table.read(word, "a text", lambda value: isinstance(value, str)) or ""
                if meant and targets and meant not in targets:
                    table.fault(word, f"{meant!r} is not one of {', '.join(targets)}")
                found[word] = meant
        return MappingProxyType(found)

    def refuse_unread(self) -> None:
        """Note every key that nobody asked for."""
        for key in sorted(self._unread):
            self.fault(key, "is not known here")


def is_count(value: Any) -> bool:
    """Whether this is a whole number above zero that a database holds. A float is no money, and True is no number."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def _matches(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_list(value: Any, pattern: re.Pattern[str], otherwise: Any) -> bool:
    if not isinstance(value, list) or not all(_matches(entry, pattern) for entry in value):
        return False
    return len(set(value)) == len(value) and (bool(value) or otherwise is not None)


def _is_date(value: Any) -> bool:
    return isinstance(value, date) and not isinstance(value, datetime)


def _named(entry: dict[str, Any]) -> str:
    name = entry.get("name")
    return f" ({name})" if isinstance(name, str) else ""
