"""What do the log and the metrics tell of a generation on its way?"""

from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app import telemetry
from app.generations.records import Generation
from app.upstream.outcome import Generated, Outcome, RefusalCode, Refused, Unknown

log = structlog.get_logger(__name__)

# Refusals that only the operator can end: they come again with the next order.
_OPERATORS: tuple[RefusalCode, ...] = ("upstream_auth_failed", "upstream_balance_exhausted", "upstream_model_gone")


def tell_answer(generation: Generation, outcome: Outcome, seconds: float) -> None:
    """Tell what upstream answered, and after how many seconds."""
    name = type(outcome).__name__.lower()
    telemetry.child(telemetry.upstream_seconds, generation.model, name).observe(seconds)
    told: dict[str, Any] = {} if isinstance(outcome, Generated) else {"detail": outcome.detail}
    is_operators = isinstance(outcome, Refused) and outcome.code in _OPERATORS
    getattr(log, "warning" if is_operators or isinstance(outcome, Unknown) else "info")(
        "upstream_answered",
        outcome=name,
        model=generation.model,
        upstream_status=outcome.upstream_status,
        seconds=round(seconds, 3),
        **told,
    )


def tell_vanished(generation: Generation) -> Generation:
    """Tell of a row that was committed and is gone: a failover of the database lost commits. Returns it as it was."""
    telemetry.rows_vanished_total.inc()
    log.error(
        "row_vanished",
        generation_id=str(generation.id),
        state=generation.state,
        storage_stem=generation.storage_stem,
    )
    return generation


def tell_move(generation: Generation) -> None:
    """Tell of a generation that has just moved, as it stands now."""
    telemetry.child(
        telemetry.generations_total, generation.model, generation.state, generation.failure_code or ""
    ).inc()
    told: dict[str, Any] = {"state": generation.state, "failure_code": generation.failure_code}
    if generation.state in ("unknown", "lost"):
        # Money that may be, or is, gone without an image: a person should know of each.
        log.warning(
            "generation_moved",
            **told,
            generation_id=str(generation.id),
            held_micros=generation.held_micros,
            failure_detail=generation.failure_detail,
        )
    else:
        log.info("generation_moved", **told)
    if generation.state == "completed":
        telemetry.child(telemetry.settled_micros_total, generation.model).inc(generation.settled_micros or 0)


def tell_unforeseen(event: str, error: SQLAlchemyError, **told: Any) -> None:
    """Tell of a statement that failed by what nobody foresaw. Not the whole error: it may quote the row, prompt and
    all.
    """
    cause = getattr(error, "orig", None) or error
    diagnosis = getattr(cause, "diag", None)
    log.error(
        event,
        **told,
        error=type(cause).__name__,
        sqlstate=getattr(cause, "sqlstate", None),
        detail=getattr(diagnosis, "message_primary", None),
    )
