"""What is written down of one run of one entry, and what does a part's record say in the middle?"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Figures:
    """One run. CPU and memory are those of all processes of what was measured, and of none beside it.

    `other_cpu` is how much of the other cores load, upstream, bucket and Postgres took together: near 1, rates are
    those of the bench and not of what is measured.
    """

    completed: int
    # What did not complete, by what came instead.
    failures: Mapping[str, int]
    cpu_ms_per_order: float | None
    postgres_ms_per_order: float | None
    orders_per_second: float
    p50_ms: float
    p99_ms: float
    other_cpu: float
    # Resident before the run, and at most during it.
    idle_mib: float
    highest_mib: float
    # From the start of the process to its first answer, where it was started for this run.
    start_seconds: float | None = None

    @property
    def failed(self) -> int:
        """How many orders did not complete."""
        return sum(self.failures.values())

    @property
    def added_mib(self) -> float:
        """What it took on top of what it had."""
        return self.highest_mib - self.idle_mib

    def as_json(self) -> dict[str, Any]:
        """Return it as the record holds it: no more digits than were measured."""
        return {name: _short(value) for name, value in asdict(self).items()}


def figures_from_json(told: Mapping[str, Any]) -> Figures:
    """Return the figures that `as_json` gave."""
    return Figures(**told)


def median_of(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure by itself; a figure that any round lacks is lacking.

    Of failures, which are no matter of medians, those of the worst round.
    """
    found: dict[str, Any] = {"failures": max(rounds, key=lambda figures: figures.failed).failures}
    for name in {field.name for field in fields(Figures)} - set(found):
        values = [getattr(figures, name) for figures in rounds]
        found[name] = None if None in values else statistics.median(values)
    return Figures(**found)


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
