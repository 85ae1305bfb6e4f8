"""Would the harness find the bugs that it is there to find? Each is planted into a copy of the code, and looked for."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.frame import Figures, Piece, figures_from_json

CHECKOUT = Path(__file__).parents[2]
SECONDS_MAX = 60


@dataclass(frozen=True)
class Bug:
    """A mistake somebody could make: in `file`, `wrong` stands where `right` belongs.

    `part` is the part of the harness that has to see it when it does its fault `times` times.
    """

    name: str
    file: str
    right: str
    wrong: str
    part: str
    times: int


BUGS: tuple[Bug, ...] = (
    Bug(
        "budget read before it is locked",
        "app/accounts/budgets.py",
        "ORDER BY b.scope FOR UPDATE OF b\n),\nframe",
        "ORDER BY b.scope\n),\nframe",
        "race",
        1,
    ),
    Bug(
        "MOVE without its state guard",
        "app/generations/records.py",
        "WHERE g.id = :id AND g.state = ANY(CAST(:leaving AS text[]))",
        "WHERE g.id = :id AND (g.state = ANY(CAST(:leaving AS text[])) OR true)",
        "walk",
        2_500,
    ),
    Bug(
        "locks out of order",
        "app/accounts/budgets.py",
        "    ORDER BY b.scope FOR UPDATE OF b\n),\nchange",
        "    ORDER BY b.scope DESC FOR UPDATE OF b\n),\nchange",
        "race",
        1,
    ),
    Bug(
        "a window rolled back at midnight",
        "app/accounts/budgets.py",
        "SELECT GREATEST(max(l.day), max((m.ts AT TIME ZONE 'UTC')::date)) AS day",
        "SELECT max((m.ts AT TIME ZONE 'UTC')::date) AS day",
        "walk",
        2_500,
    ),
    Bug(
        "given back into the wrong window",
        "app/accounts/budgets.py",
        "images_day = b.images_day + CASE WHEN b.day = c.day THEN c.images ELSE 0 END",
        "images_day = GREATEST(0, b.images_day + c.images)",
        "walk",
        2_500,
    ),
)


def plant(piece: Piece) -> Figures:
    """Plant the bug of this piece's number into a copy, and have its part look for it."""
    bug = BUGS[piece.number]
    copy = piece.folder / "copy"
    copy_with(bug, copy)
    answer = piece.folder / "answer.json"
    started = time.monotonic()
    looking = ["--part", bug.part, "--piece", "0", "--times", str(bug.times), "--seed", str(piece.seed)]
    subprocess.run(
        [sys.executable, "-m", "tests.faults", *looking, "--record", str(answer)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        check=True,
    )
    seconds = time.monotonic() - started
    broken = figures_from_json(json.loads(answer.read_text())).broken
    if not broken:
        missed = f"{bug.name}: not caught by {bug.part} (seed {piece.seed})"
        return Figures({"planted": 1, "caught": 0}, broken=(missed,))
    late = (f"{bug.name}: caught only after {seconds:.0f} s",) if seconds > SECONDS_MAX else ()
    note = f"{bug.name}: caught by `{bug.part}` in {seconds:.0f} s: {_shortened(broken[0])}"
    return Figures({"planted": 1, "caught": 1}, {"seconds to catch one": seconds}, late, (note,))


def copy_with(bug: Bug, copy: Path) -> None:
    """Copy the code and its tests, with the bug in it."""
    for folder in ("app", "migrations", "tests"):
        shutil.copytree(CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", copy)
    file = copy / bug.file
    code = file.read_text()
    assert code.count(bug.right) == 1, f"{bug.name}: {bug.file} does not hold what the bug replaces, once"
    file.write_text(code.replace(bug.right, bug.wrong))


def _shortened(sentence: str) -> str:
    words = " ".join(sentence.split())
    return words if len(words) <= 160 else words[:157] + "..."
