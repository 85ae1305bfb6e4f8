"""Is upstream well enough to be sent an order, as far as this process has heard?

Closed, every order goes. When upstream is not well, it opens: orders are refused, before anything is held, for a while.
Then it is half open: one order goes as a probe, and what comes of it closes or opens it again. It saves callers their
held budgets, and an account that is in trouble a thousand more refusals.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import structlog

from app import telemetry
from app.upstream.outcome import Outcome, RefusalCode, Refused, Unknown

log = structlog.get_logger(__name__)

# An order in five may fail on a busy day; five in a row without one that was answered is another thing.
_FAILURES_MAX = 5
# How long the probe takes is upstream's affair; asking a little later costs nothing.
_PROBING_RETRY_SECONDS = 5
# One says it all: they are about the operator's account, and no order is better than another there.
_ACCOUNT: tuple[RefusalCode, ...] = ("upstream_auth_failed", "upstream_balance_exhausted")

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class Barred:
    """Why no order is sent just now, and how long to wait before another is worth asking."""

    code: RefusalCode
    retry_after_seconds: int


class Breaker:
    """What one process has heard from upstream lately. It belongs to one event loop, and waits for nothing."""

    def __init__(self, *, open_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`open_seconds` pass before a probe; 0 never opens. `clock` gives seconds, as everything here counts them."""
        self._open_seconds = open_seconds
        self._clock = clock
        self._failures = 0
        self._code: RefusalCode | None = None
        self._opened_at = -math.inf
        # Each probe is another object, so that one which gave up long ago can't give back its successor's turn.
        self._probe: object | None = None

    @property
    def state(self) -> State:
        """Whether orders go, none does, or one may, or has gone, as a probe."""
        if self._code is None:
            return "closed"
        return "open" if self._remaining_seconds() > 0 else "half-open"

    def barred(self) -> Barred | None:
        """Return why an order would not be sent now; None when it would."""
        if self._code is None or (self._probe is None and self._remaining_seconds() <= 0):
            return None
        return Barred(self._code, math.ceil(self._remaining_seconds()) or _PROBING_RETRY_SECONDS)

    def admit(self) -> object | None:
        """Let an order go that is not `barred`. What comes back is for `give_back`."""
        if self._code is None:
            return None
        self._probe = object()
        return self._probe

    def give_back(self, admitted: object | None) -> None:
        """Forget an order that was admitted and is over. A probe that was never sent leaves its turn to the next."""
        if admitted is not None and admitted is self._probe:
            self._probe = None

    def hear(self, outcome: Outcome, *, sent_at: float) -> None:
        """Learn from what came of an order that was sent at `sent_at` by this breaker's clock."""
        if sent_at < self._opened_at:
            # It was on its way before the trouble began, and says nothing about whether that is over.
            return
        code = _trouble_of(outcome)
        if code is None:
            self._failures = 0
            self._close()
            return
        self._failures += 1
        if self._code is not None or code in _ACCOUNT or self._failures >= _FAILURES_MAX:
            self._open(code)

    def _remaining_seconds(self) -> float:
        return max(0.0, self._opened_at + self._open_seconds - self._clock())

    def _open(self, code: RefusalCode) -> None:
        if not self._open_seconds:
            return
        if self._code is None:
            telemetry.breaker_open.inc()
        log.error("breaker_opened", code=code, failures_in_a_row=self._failures, seconds=self._open_seconds)
        self._code, self._opened_at, self._probe = code, self._clock(), None

    def _close(self) -> None:
        if self._code is None:
            return
        telemetry.breaker_open.dec()
        log.warning("breaker_closed", code=self._code, seconds=round(self._clock() - self._opened_at, 1))
        self._code, self._probe = None, None


def _trouble_of(outcome: Outcome) -> RefusalCode | None:
    """Return what is wrong with upstream, going by one outcome; None for an upstream that is well.

    It is well when it draws, when it rejects a prompt, and when it is busy: that passes by itself, at no cost.
    """
    if isinstance(outcome, Unknown):
        # For whoever asks next it is the same as if there were nobody: nothing comes back.
        return "upstream_unreachable"
    if isinstance(outcome, Refused) and outcome.code in (*_ACCOUNT, "upstream_unreachable"):
        return outcome.code
    return None
