"""What do we write down about ourselves, and how do secrets stay out of it?"""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import structlog
from prometheus_client import Counter, Gauge, Histogram
from pydantic_core import to_json
from structlog.typing import EventDict

# Their INFO prints whole URLs (an Azure signature opens the picture) and their DEBUG prints headers (TT-API-KEY).
_LOUD_LOGGERS = (
    "httpx",
    "httpcore",
    "asyncio",
    "boto3",
    "botocore",
    "urllib3",
    "sqlalchemy",
    "PIL",
    "s3transfer",
)

_M = TypeVar("_M", Counter, Histogram)

_PLAIN = frozenset({str, int, float, bool, type(None)})

_API_KEY = re.compile(r"ik_[a-z]+_[0-9A-Za-z]{8,}")
_SIGNATURE = re.compile(r"(?i)\b(sig|signature|x-amz-signature|x-amz-credential)=[^&\s\"']+")

requests_total = Counter(
    "imagekeep_http_requests_total", "Answers given, by route template.", ["method", "route", "status"]
)
request_seconds = Histogram(
    "imagekeep_http_request_seconds",
    "Seconds from the request to the end of its answer, waiting for the image included.",
    ["method", "route"],
    buckets=(0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 300),
)
generations_total = Counter(
    "imagekeep_generations_total",
    "Generations that reached a state, by state and failure code. `unknown` and `lost` want a person's eye.",
    ["model", "state", "failure_code"],
)
generations_in_flight = Gauge(
    "imagekeep_generations_in_flight", "Generations this process is running.", multiprocess_mode="livesum"
)
refusals_total = Counter(
    "imagekeep_refusals_total", "Orders refused before anything was held, by error code and limit.", ["code", "limit"]
)
repeats_total = Counter(
    "imagekeep_repeats_total", "Orders answered with an earlier generation, by how they were recognised.", ["by"]
)
waiters = Gauge("imagekeep_waiters", "Clients that wait for generations ordered before.", multiprocess_mode="livesum")
breaker_open = Gauge(
    "imagekeep_breaker_open",
    "Processes that send no order because upstream is not well, a probe now and then aside.",
    multiprocess_mode="livesum",
)
upstream_seconds = Histogram(
    "imagekeep_upstream_seconds",
    "Seconds upstream took to answer a paid order, by outcome.",
    ["model", "outcome"],
    buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 300),
)
rehost_seconds = Histogram(
    "imagekeep_rehost_seconds",
    "Seconds from upstream's answer to the picture being stored.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 90),
)
rehost_failures_total = Counter(
    "imagekeep_rehost_failures_total", "Tries to fetch or store a picture that failed, by what failed.", ["what"]
)
settled_micros_total = Counter(
    "imagekeep_settled_micros_total", "Micros (1 USD = 1,000,000) settled for delivered images.", ["model"]
)
recovered_total = Counter(
    "imagekeep_recovered_total", "Generations that recovery took over, by the state it left them in.", ["state"]
)
rows_vanished_total = Counter(
    "imagekeep_rows_vanished_total", "Generations whose committed row was gone: the database lost commits."
)
# Of the whole installation, asked from the database by every process: the latest answer counts, not a sum of them.
unknown_generations = Gauge(
    "imagekeep_unknown_generations", "Generations whose outcome is unknown.", multiprocess_mode="mostrecent"
)
unknown_held_micros = Gauge(
    "imagekeep_unknown_held_micros", "Micros held by generations that are unknown.", multiprocess_mode="mostrecent"
)
unknown_oldest_seconds = Gauge(
    "imagekeep_unknown_oldest_seconds",
    "Seconds since the oldest unknown generation was ordered; 0 without any.",
    multiprocess_mode="mostrecent",
)

# Every process reads the same table, so the newest word of a living one counts, and nothing is added up.
spool_images = Gauge(
    "imagekeep_spool_images",
    "Pictures in the spool: storage took none when they came.",
    multiprocess_mode="livemostrecent",
)
spool_bytes = Gauge("imagekeep_spool_bytes", "Bytes of pictures in the spool.", multiprocess_mode="livemostrecent")
spooled_total = Counter("imagekeep_spooled_total", "Pictures that went into the spool instead of storage.")
unspooled_total = Counter("imagekeep_unspooled_total", "Pictures that were carried from the spool to storage.")
spool_refusals_total = Counter(
    "imagekeep_spool_refusals_total", "Orders refused because their pictures might not have fitted into the spool."
)
at_risk_generations = Gauge(
    "imagekeep_at_risk_generations",
    "Generations that upstream has made and whose pictures are neither in storage nor in the spool.",
    multiprocess_mode="livemostrecent",
)
at_risk_seconds = Gauge(
    "imagekeep_at_risk_seconds",
    "Seconds until the first source of those expires; +Inf while there is none.",
    multiprocess_mode="livemostrecent",
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without API keys, URL signatures and the given secrets.

    The last net, not the first: nothing is meant to be handed to a log with a secret in it.
    """
    for secret in secrets:
        text = text.replace(secret, "[secret]")
    # Hardly any text has either, and looking for these is cheaper than the expressions.
    if "ik_" in text:
        text = _API_KEY.sub("[api key]", text)
    return _SIGNATURE.sub(r"\1=[signature]", text) if "=" in text else text


class _Lines:
    """Writes whole lines to what is standard error then, in the name of one module."""

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, line: str) -> None:
        # A line that can't be written must not cost a picture: whoever reads the log may be gone, the disk full.
        with suppress(OSError, ValueError):
            # One call, so that the lines of two threads don't mix.
            sys.stderr.write(f"{line}\n")

    debug = info = warning = error = critical = write


def configure_logging(*, level: str, log_format: str, secrets: Iterable[str]) -> None:
    """Send every log line of this process to standard error, structured and redacted.

    `log_format` is `json`, `console` or `auto`: console on a terminal and JSON elsewhere. Standard output stays free
    for what a person or a script asked for.
    """
    hidden = tuple({form for secret in secrets if secret for form in _written_forms(secret)})
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    render: Callable[[Any, str, EventDict], str | bytes] = (
        structlog.processors.JSONRenderer(serializer=_as_json)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )

    def render_redacted(logger: Any, method: str, event: EventDict) -> str:
        # The whole line at once: names, nested values and tracebacks too.
        return redact(str(render(logger, method, event)), hidden)

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    # Our own lines do not pass through `logging`, which looks at the stack and makes a record for each: a
    # line cost 126 us of CPU that way, and costs 24 us this way.
    structlog.configure(
        processors=[*shared, render_redacted],
        logger_factory=_Lines,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        cache_logger_on_first_use=True,
    )
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared, _without_escape_codes],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render_redacted],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(level)
    for name in _LOUD_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in ("uvicorn", "uvicorn.error", "alembic"):
        # uvicorn puts handlers of its own on these; one way out is enough.
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    # Alembic tells at INFO which engine it found, on every start; its warnings matter.
    logging.getLogger("alembic").setLevel(max(logging.WARNING, root.level))
    # uvicorn's lines about its own start would bury the banner.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, root.level))


def _as_json(event: EventDict, **_: Any) -> str:
    # pydantic's writer takes a fifth of the time, and an order has four lines. It refuses half a surrogate pair, and
    # opens what a dataclass keeps out of its repr.
    if all(type(value) in _PLAIN for value in event.values()):
        with suppress(ValueError):
            return to_json(event, ensure_ascii=True).decode()
    return json.dumps(event, default=repr, separators=(",", ":"))


@cache
def child(metric: _M, *labels: str | int) -> _M:
    """Return the metric with these labels, as `metric.labels` does, which looks at each of them every time."""
    return metric.labels(*labels)


def _written_forms(secret: str) -> tuple[str, ...]:
    """How a secret may stand in a line: as it is, and as JSON and Python escape what is in it."""
    return secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]


def _without_escape_codes(_: Any, __: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn's, the same again with escape codes
    return event
