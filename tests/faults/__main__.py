"""How is the fault harness run for long: in pieces, each recorded as it ends, and going on where it stopped?

python -m tests.faults                 every part, the pieces that the record lacks
python -m tests.faults --part race     only this one (more than one may be named)
python -m tests.faults --table         print the record's figures as docs/reliability.md shows them
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.faults.frame import Figures, Line, Part, Piece, figures_from_json, line_from_json, together
from tests.faults.parts import PARTS

CHECKOUT = Path(__file__).parents[2]
# Committed with the code that it is of: docs/reliability.md shows what stands in it, and a test compares the two.
RECORD = CHECKOUT / "tests" / "faults" / "record.jsonl"


def main() -> int:
    """Run what was asked for; 1 when anything broke."""
    # Asked to end, it ends the piece that runs too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS], help="only this part")
    parser.add_argument("--record", type=Path, default=RECORD, help="where figures are kept")
    parser.add_argument("--seed", type=int, default=20_261_122, help="what all chance comes from")
    parser.add_argument("--table", action="store_true", help="run nothing, print the newest code's figures")
    parser.add_argument("--piece", type=int, help="run this piece alone, and write its figures to --record")
    parser.add_argument("--times", type=int, help="with --piece: how often it does its fault")
    asked = parser.parse_args()
    chosen = [part for part in PARTS if not asked.part or part.name in asked.part]
    if asked.piece is not None:
        part = chosen[0] if asked.times is None else replace(chosen[0], times=asked.times)
        return _run_here(part, asked.piece, asked.seed, asked.record)
    if not asked.table:
        code = code_tree()
        for part in chosen:
            _run_missing(part, asked.seed, code, asked.record)
    lines = newest(read_record(asked.record))
    print(table(chosen, lines))
    return 1 if any(line.figures.broken for line in lines) else 0


def code_tree() -> str:
    """Return git's name of the product's code as it is committed. What isn't committed is not what a figure is of."""
    names = [
        subprocess.run(
            ["git", "rev-parse", "--short=12", f"HEAD:{folder}"],
            cwd=CHECKOUT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for folder in ("app", "migrations")
    ]
    return "+".join(names)


def read_record(record: Path) -> list[Line]:
    """Return the lines of a record, oldest first; none when there is no such file."""
    if not record.exists():
        return []
    return [line_from_json(json.loads(line)) for line in record.read_text().splitlines()]


def newest(lines: list[Line]) -> list[Line]:
    """Return those of the code that was run last."""
    return [line for line in lines if line.code == lines[-1].code]


def _run_missing(part: Part, seed: int, code: str, record: Path) -> None:
    done = {line.number for line in read_record(record) if (line.part, line.code) == (part.name, code)}
    for number in range(part.pieces):
        if number in done:
            continue
        started = time.monotonic()
        command = [sys.executable, "-m", "tests.faults", "--part", part.name, "--piece", str(number)]
        with tempfile.NamedTemporaryFile() as answer:
            command += ["--seed", str(seed), "--record", answer.name]
            ended = _run_within(part.piece_seconds_max, command)
            said = Path(answer.name).read_text()
        figures = figures_from_json(json.loads(said)) if said else Figures({}, broken=(f"piece {number} {ended}",))
        line = Line(part.name, number, piece_seed(part, number, seed), code, time.monotonic() - started, figures)
        with record.open("a") as kept:
            kept.write(json.dumps(line.as_json()) + "\n")
        print(f"{part.name} {number + 1}/{part.pieces} seed {line.seed}: {line.seconds:.0f} s {figures}", flush=True)


def _run_within(seconds: float, command: list[str]) -> str:
    """Run a piece in a session of its own, so that nothing it started outlives it. Says how it ended."""
    child = subprocess.Popen(command, cwd=CHECKOUT, start_new_session=True)
    try:
        return f"ended with {child.wait(seconds)} and no figures"
    except subprocess.TimeoutExpired:
        return f"was not done within {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _run_here(part: Part, number: int, seed: int, answer: Path) -> int:
    with tempfile.TemporaryDirectory(prefix="imagekeep-faults-") as folder:
        figures = part.run(Piece(part.times, piece_seed(part, number, seed), Path(folder), number))
    answer.write_text(json.dumps(figures.as_json()))
    return 0


def piece_seed(part: Part, number: int, seed: int) -> int:
    """Return the seed of one piece, another for each, the same in each run."""
    return (seed * 1_000_003 + sum(part.name.encode()) * 1_009 + number) % 2**32


def table(parts: list[Part], lines: list[Line]) -> str:
    """Return the figures of these lines, all of one code, as Markdown: a row for each part, then what is to be said."""
    notes: list[str] = []
    of = f"Code: `app` and `migrations` as git knows them, `{lines[0].code}`." if lines else "Nothing is recorded."
    rows = [
        of,
        "",
        "| part | what it does | pieces | seconds | did | worst | broken |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in parts:
        mine = [line for line in lines if line.part == part.name]
        if not mine:
            rows.append(f"| {part.name} | {part.does} | 0 of {part.pieces} | | | | |")
            continue
        sum_of = together(mine)
        did = ", ".join(f"{count:,} {name}" for name, count in sum_of.did.items())
        worst = ", ".join(f"{name} {value:,.4g}" for name, value in sum_of.worst.items())
        seconds = sum(line.seconds for line in mine)
        rows.append(
            f"| {part.name} | {part.does} | {len(mine)} of {part.pieces} | {seconds:,.0f} | {did} | {worst} "
            f"| {len(sum_of.broken)} |"
        )
        notes += [f"- {note}" for note in sum_of.notes]
        notes += [f"- **broken**: {sentence}" for sentence in sum_of.broken]
    return "\n".join([*rows, "", *notes])


if __name__ == "__main__":
    sys.exit(main())
