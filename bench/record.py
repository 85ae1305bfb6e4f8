"""What was measured, on which code and which machine, and where is it kept?"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.environments import RIVALS
from bench.figures import Figures, figures_from_json, median_of
from bench.neighbourhood import CHECKOUT

# Committed with the code that it is of: docs/performance.md shows what stands in it, and a test compares the two.
RECORD = CHECKOUT / "bench" / "record.json"


@dataclass(frozen=True)
class Measured:
    """One part as it was measured: the rounds of each entry, in order."""

    # The tree of the product's code that it ran on.
    code: str
    measured_on: str
    machine: str
    versions: Mapping[str, str]
    rounds: Mapping[str, Sequence[Figures]]

    @property
    def medians(self) -> dict[str, Figures]:
        """Return the median of each entry that has any round."""
        return {name: median_of(figures) for name, figures in self.rounds.items() if figures}

    @property
    def rounds_whole(self) -> int:
        """Return how many rounds every entry has."""
        return min((len(figures) for figures in self.rounds.values()), default=0)


def measured_now(rounds: Mapping[str, Sequence[Figures]]) -> Measured:
    """Return what was measured just now, by the code that is committed."""
    versions = {rival.name: rival.version for rival in RIVALS} | {"python": platform.python_version()}
    return Measured(code_tree(), f"{datetime.now(UTC):%Y-%m-%d}", _machine(), versions, rounds)


def read_record(record: Path) -> dict[str, Measured]:
    """Return the parts of a record by name; none when there is no such file."""
    if not record.exists():
        return {}
    told: dict[str, Any] = json.loads(record.read_text())
    return {name: _measured_from_json(part) for name, part in told.items()}


def keep(record: Path, name: str, measured: Measured) -> None:
    """Write a part into the record, in place of what it held of that part; never half of it."""
    parts = read_record(record) | {name: measured}
    told = {name: _as_json(part) for name, part in parts.items()}
    written = record.with_suffix(".writing")
    # A round in a line: a figure that changed is then seen in what git shows.
    written.write_text(_in_lines(told) + "\n")
    written.replace(record)


def code_tree() -> str:
    """Return git's name of the product's code as it is committed. What isn't committed is not what a figure is of."""
    return "+".join(_git_name(folder) for folder in ("app", "migrations"))


def _git_name(folder: str) -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short=12", f"HEAD:{folder}"], cwd=CHECKOUT, check=True, capture_output=True, text=True
    )
    return told.stdout.strip()


def _machine() -> str:
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return f"{os.cpu_count()} cores of {model or platform.machine()}, {platform.system()} {platform.release()}"


def _as_json(measured: Measured) -> dict[str, Any]:
    rounds = {name: [figures.as_json() for figures in entry] for name, entry in measured.rounds.items()}
    return {
        "code": measured.code,
        "measured_on": measured.measured_on,
        "machine": measured.machine,
        "versions": dict(measured.versions),
        "rounds": rounds,
    }


def _measured_from_json(told: Mapping[str, Any]) -> Measured:
    rounds = {name: [figures_from_json(one) for one in entry] for name, entry in told["rounds"].items()}
    return Measured(told["code"], told["measured_on"], told["machine"], told["versions"], rounds)


def _in_lines(parts: Mapping[str, Any]) -> str:
    return json.dumps(parts, indent=1).replace('\n     "', ' "').replace("\n    }", " }")
