"""How is a part measured: who runs when, how often, and what is read before and after?"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from bench.contenders import REHOST_PATH, Asks, Contender, Start
from bench.figures import Figures
from bench.installation import Installation, prepare, serve
from bench.load import load
from bench.neighbourhood import Neighbourhood
from bench.processes import cpu_seconds, memory_bytes, watched_memory

_WARM_UP_SECONDS_MAX = 2.0
_WARM_UP_IN_FLIGHT_MAX = 16


@dataclass(frozen=True)
class Entry:
    """One line of a part: who takes which orders, how many at a time."""

    name: str
    runs: str
    asks: Asks = field(default_factory=Asks)
    in_flight: int = 64
    # How many orders make the run, if not the part's time; that is then the most it may take.
    orders_max: int | None = None
    # Over which time the first orders come, evenly, instead of all at once.
    arrive_over_seconds: float = 0


@dataclass(frozen=True)
class Part:
    """One question, and the entries that are measured side by side to answer it."""

    name: str
    asks: str
    entries: Sequence[Entry]
    # What the figures of the others are given as multiples of.
    against: str = ""
    installations: Sequence[Installation] = ()
    seconds: float = 5
    # Whether each run has a process of its own, because memory that was taken once is kept, or its start is measured.
    fresh: bool = False


def measure(
    part: Part,
    starts: Mapping[str, Start],
    near: Neighbourhood,
    *,
    rounds: int,
    seconds: float | None,
    tell: Callable[[str, Figures], None],
) -> dict[str, list[Figures]]:
    """Run every entry once in each round, each round beginning with another, and return what was measured by entry.

    So what the machine does beside it falls on all of them alike. `seconds` replaces the part's own.
    """
    measured: dict[str, list[Figures]] = {entry.name: [] for entry in part.entries}
    run_seconds = seconds or part.seconds
    known = {**starts, **{one.name: serve(prepare(near, one)) for one in part.installations}}
    with ExitStack() as closing:
        lasting = _open_lasting(part, known, near, closing, run_seconds)
        for number in range(rounds):
            shift = number % len(part.entries)
            for entry in [*part.entries[shift:], *part.entries[:shift]]:
                with _lent(entry, lasting, known, near, run_seconds) as contender:
                    figures = _run(entry, contender, near, run_seconds)
                measured[entry.name].append(figures)
                tell(entry.name, figures)
    return measured


def _open_lasting(
    part: Part, starts: Mapping[str, Start], near: Neighbourhood, closing: ExitStack, seconds: float
) -> Mapping[str, Contender]:
    """Start and warm up what runs through the whole part; nothing where each run has a process of its own."""
    running: dict[str, Contender] = {}
    for entry in () if part.fresh else part.entries:
        if entry.runs not in running:
            running[entry.runs] = closing.enter_context(starts[entry.runs](near))
        _warm_up(entry, running[entry.runs], seconds)
    return running


@contextmanager
def _lent(
    entry: Entry, lasting: Mapping[str, Contender], starts: Mapping[str, Start], near: Neighbourhood, seconds: float
) -> Iterator[Contender]:
    """Give what takes an entry's orders, for one run."""
    if entry.runs in lasting:
        yield lasting[entry.runs]
    else:
        with starts[entry.runs](near) as contender:
            _warm_up(entry, contender, seconds)
            yield contender


def _warm_up(entry: Entry, contender: Contender, seconds: float) -> None:
    """Let it open its connections and read its code, with orders that take no time."""
    quick = Asks(entry.asks.form, "1kb", 0, entry.asks.users)
    in_flight = min(entry.in_flight, _WARM_UP_IN_FLIGHT_MAX)
    load(
        contender.process.port,
        contender.orders(quick),
        in_flight=in_flight,
        seconds=min(seconds, _WARM_UP_SECONDS_MAX),
    )


def _run(entry: Entry, contender: Contender, near: Neighbourhood, seconds: float) -> Figures:
    pid = contender.process.pid
    beside = {near.upstream.pid, near.sink.pid, near.postgres_pid} - {pid}
    orders_before = near.orders_upstream()
    began, idle = time.perf_counter(), memory_bytes(pid)
    cpu_before, postgres_before = cpu_seconds(pid), cpu_seconds(near.postgres_pid)
    beside_before = sum(cpu_seconds(one) for one in beside)
    with watched_memory(pid) as highest:
        done = load(
            contender.process.port,
            contender.orders(entry.asks),
            in_flight=entry.in_flight,
            seconds=seconds,
            orders_max=math.inf if entry.orders_max is None else entry.orders_max,
            patience_seconds=20 + entry.asks.delay_seconds,
            arrive_over_seconds=entry.arrive_over_seconds,
        )
    cpu, postgres = cpu_seconds(pid) - cpu_before, cpu_seconds(near.postgres_pid) - postgres_before
    beside_cpu = sum(cpu_seconds(one) for one in beside) - beside_before + done.cpu_seconds
    took = time.perf_counter() - began
    completed = done.completed + done.late
    # Whoever answers without having asked upstream is not measured but believed.
    assert contender.path == REHOST_PATH or near.orders_upstream() - orders_before >= completed, entry
    return Figures(
        completed=completed,
        failures=done.failed,
        cpu_ms_per_order=_ms_per(cpu, completed),
        postgres_ms_per_order=_ms_per(postgres, completed),
        orders_per_second=done.orders_per_second,
        p50_ms=done.latency_ms(50),
        p99_ms=done.latency_ms(99),
        other_cpu=beside_cpu / took / len(near.cores.others),
        idle_mib=idle / 2**20,
        highest_mib=highest[0] / 2**20,
        start_seconds=contender.process.start_seconds,
    )


def _ms_per(seconds: float, orders: int) -> float | None:
    return seconds * 1000 / orders if orders else None
