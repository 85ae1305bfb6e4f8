"""Does the record keep what was measured, and do tables and picture show it?"""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.figures import Figures, median_of
from bench.lines import LINES, medians_of
from bench.parts import ORDERS, PARTS
from bench.picture import draw
from bench.record import Measured, keep, measured_now, read_record
from bench.table import BEGIN, END, page_with, tables

FIGURES = Figures(
    completed=1000,
    failures={},
    cpu_ms_per_order=2.5,
    postgres_ms_per_order=1.0,
    orders_per_second=200.0,
    p50_ms=300.0,
    p99_ms=900.0,
    other_cpu=0.5,
    idle_mib=80.0,
    highest_mib=95.0,
    start_seconds=1.5,
)


def measured(**entries: Figures) -> Measured:
    return measured_now({name: [figures] * 3 for name, figures in entries.items()})


def test_what_was_kept_comes_back_and_other_parts_stay(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    first, second = measured(imagekeep=FIGURES), measured(aiohttp=replace(FIGURES, cpu_ms_per_order=0.5))

    keep(record, "slow", first)
    keep(record, "orders", measured(imagekeep=FIGURES))
    keep(record, "orders", second)

    assert read_record(record) == {"slow": first, "orders": second}
    assert list(tmp_path.iterdir()) == [record]


def test_a_median_is_of_each_figure_by_itself_and_lacks_what_a_round_lacks() -> None:
    rounds = [
        replace(FIGURES, p50_ms=p50, cpu_ms_per_order=cpu, start_seconds=None if p50 == 3 else 1.0)
        for p50, cpu in ((1.0, 9.0), (2.0, 8.0), (3.0, 1.0))
    ]

    median = median_of(rounds)

    assert (median.p50_ms, median.cpu_ms_per_order, median.start_seconds) == (2.0, 8.0, None)


def test_failures_are_those_of_the_worst_round_and_stand_on_the_page() -> None:
    rounds = [
        replace(FIGURES, failures=failures) for failures in ({}, {"HTTP 503": 7, "no answer": 1}, {"HTTP 500": 2})
    ]

    assert median_of(rounds).failed == 8
    shown = tables(PARTS, {"orders": replace(measured(), rounds={"imagekeep": rounds})})
    assert "- imagekeep, what failed in its worst round: 7 HTTP 503, 1 no answer" in shown


def test_a_line_tells_whether_it_holds() -> None:
    record = {"orders": measured(imagekeep=FIGURES, aiohttp=replace(FIGURES, cpu_ms_per_order=0.5))}
    line = LINES[0]

    value = line.value(medians_of(record))

    assert value == 5
    assert line.holds(value, line.limit)
    assert "| **5x** | ≤ 8x | ≤ 4x | holds |" in tables(PARTS, record)


def test_every_line_is_of_entries_that_are_measured() -> None:
    everything = {part.name: measured(**{entry.name: FIGURES for entry in part.entries}) for part in PARTS}

    assert [line.says for line in LINES if line.value(medians_of(everything)) is None] == []


def test_every_entry_of_every_part_has_something_that_runs_and_something_to_be_compared_with() -> None:
    known = {"upstream", "aiohttp", "httpx", "sockets", "boto3", "rehost", "litellm", "portkey"}

    for part in PARTS:
        names = [entry.name for entry in part.entries]
        assert len(set(names)) == len(names)
        assert {entry.runs for entry in part.entries} <= known | {one.name for one in part.installations}
        assert part.against in ("", *names)


@pytest.mark.parametrize("entries", [{}, {entry.name: FIGURES for entry in ORDERS.entries}])
def test_the_picture_is_well_formed_and_shows_every_entry(entries: dict[str, Figures]) -> None:
    drawn = ElementTree.fromstring(draw({"orders": measured(**entries)}))

    labels = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert set(entries) <= set(labels)


def test_figures_are_written_between_the_marks_of_the_page_and_nowhere_else() -> None:
    page = f"above\n{BEGIN}old\n{END}\nbelow\n"

    assert page_with(page, "new") == f"above\n{BEGIN}new\n{END}\nbelow\n"
