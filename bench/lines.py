"""Which lines must the figures hold, and do they?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.figures import Figures
from bench.record import Measured

Medians = Mapping[str, Mapping[str, Figures]]
Value = Callable[[Medians], float | None]


@dataclass(frozen=True)
class Line:
    """One line: what is looked at, what it must be at least or at most, and what is aimed at."""

    says: str
    value: Value
    limit: float
    aim: float | None = None
    at_least: bool = False
    unit: str = "x"

    def holds(self, value: float, than: float) -> bool:
        """Whether a value is on the right side."""
        return value >= than if self.at_least else value <= than


def medians_of(record: Mapping[str, Measured]) -> Medians:
    """Return the median figures of every part and entry."""
    return {name: measured.medians for name, measured in record.items()}


def _of(part: str, entry: str, figure: str) -> Value:
    def value(medians: Medians) -> float | None:
        figures = medians.get(part, {}).get(entry)
        found: float | None = None if figures is None else getattr(figures, figure)
        return found

    return value


def _ratio(upper: Value, lower: Value) -> Value:
    def value(medians: Medians) -> float | None:
        above, below = upper(medians), lower(medians)
        return above / below if above is not None and below else None

    return value


def _minus(value: Value, known: float) -> Value:
    def less(medians: Medians) -> float | None:
        whole = value(medians)
        return None if whole is None else whole - known

    return less


_CPU, _POSTGRES, _RATE = "cpu_ms_per_order", "postgres_ms_per_order", "orders_per_second"
_ORDER_CPU = _of("orders", "imagekeep", _CPU)
_ORDER_RATE = _of("orders", "imagekeep", _RATE)
_REHOST_CPU = _of("rehost", "rehost, imagekeep", _CPU)

LINES = (
    Line("CPU per order, of bare FastAPI + aiohttp", _ratio(_ORDER_CPU, _of("orders", "aiohttp", _CPU)), 8, 4),
    Line("CPU per order, of LiteLLM's", _ratio(_ORDER_CPU, _of("orders", "litellm", _CPU)), 0.25),
    Line("Orders per second, of LiteLLM's", _ratio(_ORDER_RATE, _of("orders", "litellm", _RATE)), 4, 10, at_least=True),
    Line(
        "Orders per second, of bare FastAPI + httpx",
        _ratio(_ORDER_RATE, _of("orders", "httpx", _RATE)),
        2,
        4,
        at_least=True,
    ),
    Line(
        "Orders per second through one `all` budget",
        _of("users", "1 user, and a limit on `all`", _RATE),
        120,
        at_least=True,
        unit="/s",
    ),
    Line(
        "Orders per second with a 200 ms upstream, of its own",
        _ratio(_of("slow", "imagekeep", _RATE), _of("slow", "upstream itself", _RATE)),
        0.5,
        0.85,
        at_least=True,
    ),
    Line("1,000 orders of 20 s: completed", _of("held", "imagekeep", "completed"), 1_000, at_least=True, unit=""),
    Line("1,000 orders of 20 s: added p99", _minus(_of("held", "imagekeep", "p99_ms"), 20_000), 2_000, unit=" ms"),
    Line("1,000 orders of 20 s: memory above idle", _of("held", "imagekeep", "added_mib"), 150, unit=" MiB"),
    Line(
        "CPU per rehost of 1.5 MB, of raw sockets",
        _ratio(_REHOST_CPU, _of("rehost", "rehost, raw sockets", _CPU)),
        4,
        2.5,
    ),
    Line(
        "CPU per rehost of 1.5 MB, of boto3 as it comes",
        _ratio(_REHOST_CPU, _of("rehost", "rehost, boto3 as it comes", _CPU)),
        0.5,
    ),
    Line(
        "64 pictures of 3 MB in flight: memory above idle",
        _of("pictures", "imagekeep", "added_mib"),
        128,
        64,
        unit=" MiB",
    ),
    Line(
        "64 of 3 MB that come in the answer: memory above idle",
        _of("pictures", "imagekeep, picture in the answer", "added_mib"),
        128,
        64,
        unit=" MiB",
    ),
    Line(
        "CPU per order with rehost, of LiteLLM's without",
        _ratio(_of("rehost", "imagekeep", _CPU), _of("rehost", "litellm, picture of 1 KB, not kept", _CPU)),
        0.5,
        0.25,
    ),
    Line(
        "Start to first answer, of bare FastAPI's",
        _ratio(_of("start", "imagekeep", "start_seconds"), _of("start", "aiohttp", "start_seconds")),
        2,
    ),
    Line(
        "Start to first answer, of LiteLLM's",
        _ratio(_of("start", "imagekeep", "start_seconds"), _of("start", "litellm", "start_seconds")),
        0.15,
    ),
    Line(
        "CPU per order at 100 users, of that at 1",
        _ratio(_of("users", "100 users", _CPU), _of("users", "1 user", _CPU)),
        1.2,
    ),
    Line(
        "CPU per order after 10^6 generations, of that after 10^3",
        _ratio(_of("history", "1,000,000 generations", _CPU), _of("history", "1,000 generations", _CPU)),
        1.2,
    ),
    Line(
        "Postgres per order after 10^6 generations, of that after 10^3",
        _ratio(_of("history", "1,000,000 generations", _POSTGRES), _of("history", "1,000 generations", _POSTGRES)),
        1.2,
    ),
    Line(
        "CPU per order at 256 in flight, of that at 64",
        _ratio(
            _of("in-flight", "imagekeep, 256 in flight", _CPU),
            _of("in-flight", "imagekeep, 64 in flight", _CPU),
        ),
        1.2,
    ),
)
