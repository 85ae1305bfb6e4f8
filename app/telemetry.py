"""What do we write down about ourselves, and how do secrets stay out of it?"""

import logging
import re
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram

# Their INFO prints whole URLs (an Azure signature opens the picture) and their DEBUG prints headers (TT-API-KEY).
_LOUD_LOGGERS = (
    "httpx",
    "httpcore",
    "aiohttp",
    "asyncio",
    "boto3",
    "botocore",
    "urllib3",
    "sqlalchemy",
    "PIL",
    "s3transfer",
)

_API_KEY = re.compile(r"\bik_[a-z]+_[0-9A-Za-z]{8,}")
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
    return _SIGNATURE.sub(r"\1=[signature]", _API_KEY.sub("[api key]", text))


def configure_logging(*, level: str, log_format: str, secrets: Iterable[str]) -> None:
    """Send every log line of this process to standard error, structured and redacted.

    `log_format` is `json`, `console` or `auto`: console on a terminal and JSON elsewhere. Standard output stays free
    for what a person or a script asked for.
    """
    hidden = tuple(secret for secret in secrets if secret)
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redactor(hidden),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
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


def _redactor(secrets: tuple[str, ...]) -> structlog.typing.Processor:
    def redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.pop("color_message", None)  # uvicorn's, the same again with escape codes
        for key, value in event.items():
            if isinstance(value, str):
                event[key] = redact(value, secrets)
            elif isinstance(value, BaseException):
                event[key] = redact(repr(value), secrets)
        return event

    return redact_event
