"""Which models are dropped soon by those who make them, or should be gone by now?

Such a model is sent all the same: a relay may outlive what it relays. But it is said, before callers find out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

import structlog

from app.upstream.catalog import Catalog, Model

log = structlog.get_logger(__name__)

_NOTICE_DAYS = 30


@dataclass(frozen=True)
class Retirement:
    """A model and the day it goes. `days_left` is 0 on that day, and less ever after."""

    model: str
    retires_on: date
    days_left: int

    @property
    def is_over(self) -> bool:
        """Whether the day has come."""
        return self.days_left <= 0


def today() -> date:
    """The day, in UTC, by this machine's clock."""
    return datetime.now(UTC).date()


def retirement_of(model: Model, day: date) -> Retirement | None:
    """Return the retirement of a model that goes within 30 days of `day`, or has gone; None for any other."""
    if model.retires_on is None or (days_left := (model.retires_on - day).days) > _NOTICE_DAYS:
        return None
    return Retirement(model.name, model.retires_on, days_left)


def retirements_of(catalog: Catalog, day: date) -> Sequence[Retirement]:
    """Return every retirement that is near or over, by its day."""
    near = (retirement_of(model, day) for model in catalog.models)
    return sorted((found for found in near if found), key=lambda found: (found.retires_on, found.model))


class RetirementNotices:
    """What one process says of retiring models that are ordered: once a day for each, however many orders come."""

    def __init__(self) -> None:
        self._told_on: dict[str, date] = {}

    def ordered(self, model: Model, day: date) -> bool:
        """Warn if this model retires, and nobody was warned of it on that day. Tells whether it did."""
        retirement = retirement_of(model, day)
        if retirement is None or self._told_on.get(model.name) == day:
            return False
        self._told_on[model.name] = day
        warn_of(retirement, ordered=True)
        return True


def warn_of(retirement: Retirement, *, ordered: bool = False) -> None:
    """Write one warning to the log."""
    log.warning(
        "model_retired" if retirement.is_over else "model_retires",
        model=retirement.model,
        retires_on=retirement.retires_on.isoformat(),
        days_left=retirement.days_left,
        ordered=ordered,
    )
