"""How do the figures read: as the tables of docs/performance.md?"""

from collections.abc import Mapping, Sequence

from bench.figures import Figures
from bench.lines import LINES, Line, medians_of
from bench.record import Measured
from bench.rounds import Part

BEGIN = "<!-- figures: written by `python -m bench --table` -->\n"
END = "<!-- end of figures -->"
PICTURE = "performance.svg"

_HEAD = (
    "| | CPU ms | times | Postgres ms | added MiB | idle MiB | p50 ms | p99 ms | failed | others busy | orders/s |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def page_with(page: str, figures: str) -> str:
    """Return the page with these figures between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, "the page has lost the marks between which its figures stand"
    return f"{before}{begin}{figures}\n{end}{after}"


def tables(parts: Sequence[Part], record: Mapping[str, Measured]) -> str:
    """Return all figures as Markdown: what they are of, the lines that they are to hold, then part by part."""
    sections = [_of_what(record), _lines(record), f"![What an order costs]({PICTURE})"]
    sections += [_part(part, record[part.name]) for part in parts if part.name in record]
    missing = [part.name for part in parts if part.name not in record]
    if missing:
        sections.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(sections)


def _of_what(record: Mapping[str, Measured]) -> str:
    if not record:
        return "Nothing is recorded."
    said: dict[str, list[str]] = {}
    for name, measured in record.items():
        versions = ", ".join(f"{program} {version}" for program, version in sorted(measured.versions.items()))
        of = (
            f"Measured on {measured.measured_on}, on {measured.machine}, {versions}; `app` and `migrations` as git "
            f"knows them, `{measured.code}`"
        )
        said.setdefault(of, []).append(name)
    if len(said) == 1:
        return f"{next(iter(said))}."
    return "\n".join(f"- {of}: {', '.join(names)}." for of, names in said.items())


def _lines(record: Mapping[str, Measured]) -> str:
    medians = medians_of(record)
    rows = ["| what | is | must be | aim | |", "|---|--:|--:|--:|---|"]
    for line in LINES:
        value = line.value(medians)
        aim = "" if line.aim is None else _bound(line, line.aim)
        shown = "not measured" if value is None else f"**{number_of(value)}{line.unit}**"
        rows.append(f"| {line.says} | {shown} | {_bound(line, line.limit)} | {aim} | {_verdict(line, value)} |")
    return "\n".join(rows)


def _bound(line: Line, bound: float) -> str:
    return f"{'≥' if line.at_least else '≤'} {number_of(bound)}{line.unit}"


def _verdict(line: Line, value: float | None) -> str:
    if value is None:
        return ""
    if not line.holds(value, line.limit):
        return "**misses**"
    return "reaches the aim" if line.aim is not None and line.holds(value, line.aim) else "holds"


def _part(part: Part, measured: Measured) -> str:
    medians = measured.medians
    base = medians.get(part.against)
    rows = [_row(entry.name, medians[entry.name], base) for entry in part.entries if entry.name in medians]
    title = f"### {part.name.capitalize()}"
    times = f" `times` is CPU of that of {part.against}." if part.against else ""
    rounds = f"Medians of {measured.rounds_whole} rounds." if measured.rounds_whole > 1 else "A single round."
    asked = f"{part.asks}{times} {rounds}"
    failures = [
        f"- {name}, what failed in its worst round: {', '.join(f'{count:,} {kind}' for kind, count in failed.items())}"
        for name, figures in medians.items()
        if (failed := figures.failures)
    ]
    startups = [
        f"- {name}: {figures.start_seconds:.2f} s from start to first answer"
        for name, figures in medians.items()
        if figures.start_seconds is not None
    ]
    notes = "\n".join([*(startups if part.fresh else []), *failures])
    return "\n\n".join([title, asked, "\n".join([_HEAD, *rows]), *([notes] if notes else [])])


def _row(name: str, figures: Figures, base: Figures | None) -> str:
    cpu, base_cpu = figures.cpu_ms_per_order, base.cpu_ms_per_order if base else None
    cells = [
        name,
        number_of(cpu),
        number_of(cpu / base_cpu) if cpu is not None and base_cpu else "",
        number_of(figures.postgres_ms_per_order),
        f"{figures.added_mib:.0f}",
        f"{figures.idle_mib:.0f}",
        f"{figures.p50_ms:,.0f}",
        f"{figures.p99_ms:,.0f}",
        f"{figures.failed:,.0f}",
        f"{figures.other_cpu:.0%}",
        f"{figures.orders_per_second:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def number_of(value: float | None) -> str:
    """Return a figure with as many digits as mean something; a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
