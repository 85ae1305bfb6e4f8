"""What is measured side by side, in one command, and written into docs/performance.md?

python -m bench                        every part that the record lacks for the code that is committed
python -m bench --part orders          only this one (more than one may be named), whatever the record holds
python -m bench --rounds 1 --seconds 2 a short try; give it a --record of its own
python -m bench --table                measure nothing; write the record's figures into the page and its picture

LiteLLM and Portkey are installed into environments of their own, the first time that a part needs them; that takes the
network, pip and npm. Leave the machine alone while it runs: it has to itself one core for what is measured and the
others for all the rest.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.contenders import Start, litellm, passthrough, portkey, rehoster, upstream_itself
from bench.environments import LITELLM, PORTKEY, RIVALS
from bench.figures import Figures
from bench.neighbourhood import CHECKOUT, open_neighbourhood
from bench.parts import PARTS
from bench.picture import draw
from bench.processes import Cores, allow_open_files, divide_cores
from bench.record import RECORD, code_tree, keep, measured_now, read_record
from bench.rounds import Part, measure
from bench.table import PICTURE, number_of, page_with, tables

PAGE = CHECKOUT / "docs" / "performance.md"
ENVIRONMENTS = CHECKOUT / ".venv-bench"


def main() -> int:
    """Do what was asked for."""
    # Asked to end, it ends what it has started too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS], help="only this part")
    parser.add_argument("--rounds", type=int, default=5, help="how often each entry runs; figures are medians")
    parser.add_argument("--seconds", type=float, help="how long each entry runs, instead of the part's own time")
    parser.add_argument("--record", type=Path, default=RECORD, help="where figures are kept")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="where the others are installed")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    asked = parser.parse_args()
    if asked.table:
        write_page(asked.record)
        return 0
    allow_open_files()
    cores = divide_cores()
    for part in _to_measure(asked.part, asked.record, asked.rounds):
        for rival in RIVALS:
            if rival.name in {entry.runs for entry in part.entries}:
                rival.ensure(asked.environments)
        rounds = _measure(part, cores, asked.environments, rounds=asked.rounds, seconds=asked.seconds)
        keep(asked.record, part.name, measured_now(rounds))
    return 0


def write_page(record: Path) -> None:
    """Write the record's figures into docs/performance.md, and their picture beside it."""
    figures = read_record(record)
    page = page_with(PAGE.read_text(encoding="utf-8"), tables(PARTS, figures))
    PAGE.write_text(page, encoding="utf-8")
    (PAGE.parent / PICTURE).write_text(draw(figures), encoding="utf-8")


def _to_measure(named: Sequence[str] | None, record: Path, rounds: int) -> list[Part]:
    """Return the parts that were named; else those without so many rounds of this code, to go on where a run ended."""
    if named:
        return [part for part in PARTS if part.name in named]
    done = {
        name
        for name, measured in read_record(record).items()
        if measured.code == code_tree() and measured.rounds_whole >= rounds
    }
    return [part for part in PARTS if part.name not in done]


def _measure(
    part: Part, cores: Cores, environments: Path, *, rounds: int, seconds: float | None
) -> Mapping[str, Sequence[Figures]]:
    def tell(name: str, figures: Figures) -> None:
        cpu, postgres = number_of(figures.cpu_ms_per_order), number_of(figures.postgres_ms_per_order)
        print(
            f"{part.name}: {name}: {cpu} ms CPU, {postgres} ms Postgres, {figures.orders_per_second:.0f}/s, "
            f"p50 {figures.p50_ms:.0f} ms, p99 {figures.p99_ms:.0f} ms, "
            f"{figures.added_mib:.0f} MiB added, {figures.failed} failed {dict(figures.failures) or ''}",
            flush=True,
        )

    with (
        tempfile.TemporaryDirectory(prefix="imagekeep-bench-") as folder,
        open_neighbourhood(Path(folder), cores) as near,
    ):
        return measure(part, _starts(environments), near, rounds=rounds, seconds=seconds, tell=tell)


def _starts(environments: Path) -> Mapping[str, Start]:
    """Return what starts each of those that are no installation of Imagekeep, by the name that entries call it."""
    return {
        "upstream": upstream_itself,
        "aiohttp": passthrough("aiohttp"),
        "httpx": passthrough("httpx"),
        "sockets": rehoster("sockets"),
        "boto3": rehoster("boto3"),
        "rehost": rehoster("imagekeep"),
        LITELLM.name: litellm(environments),
        PORTKEY.name: portkey(environments),
    }


if __name__ == "__main__":
    sys.exit(main())
