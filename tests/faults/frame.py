"""What is a part of the fault harness, and what does one piece of it report?"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Piece:
    """One piece of a part: how often it is to do its fault, the seed of its chance, a folder of its own, its number."""

    times: int
    seed: int
    folder: Path
    number: int = 0


@dataclass(frozen=True)
class Figures:
    """What a piece did, what it measured, and what broke.

    `did` is counted (kills, orders, ...) and summed over the pieces of a part; of `worst` the largest stands; `broken`
    has one sentence for each promise that did not hold, with what is needed to look into it. Empty means all held.
    `notes` are sentences for the report.
    """

    did: Mapping[str, int]
    worst: Mapping[str, float] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as the record holds it."""
        return asdict(self)


def figures_from_json(figures: Mapping[str, Any]) -> Figures:
    """Return the figures that `as_json` gave."""
    return Figures(figures["did"], figures["worst"], tuple(figures["broken"]), tuple(figures["notes"]))


@dataclass(frozen=True)
class Part:
    """One kind of fault. The long run does it `pieces` times `times`; the tests of every day do it `times_short`."""

    name: str
    # What the fault is and what must hold, for the table in docs/reliability.md.
    does: str
    run: Callable[[Piece], Figures]
    pieces: int
    times: int
    times_short: int
    # One piece that takes longer is broken off and counts as broken.
    piece_seconds_max: float = 900


@dataclass(frozen=True)
class Line:
    """What the record keeps of one piece, written the moment it ended."""

    part: str
    number: int
    seed: int
    # The tree of the product's code that it ran on: figures of other code are not added to it.
    code: str
    seconds: float
    figures: Figures

    def as_json(self) -> dict[str, Any]:
        """Return it as the record holds it, one JSON object a line."""
        return asdict(self)


def line_from_json(line: Mapping[str, Any]) -> Line:
    """Return the line that `as_json` gave."""
    return Line(**{**line, "figures": figures_from_json(line["figures"])})


def together(lines: list[Line]) -> Figures:
    """Return the figures of several pieces of one part as one."""
    did: dict[str, int] = {}
    worst: dict[str, float] = {}
    for line in lines:
        for name, count in line.figures.did.items():
            did[name] = did.get(name, 0) + count
        for name, value in line.figures.worst.items():
            worst[name] = max(worst.get(name, value), value)
    return Figures(
        did,
        worst,
        tuple(sentence for line in lines for sentence in line.figures.broken),
        tuple(sentence for line in lines for sentence in line.figures.notes),
    )
