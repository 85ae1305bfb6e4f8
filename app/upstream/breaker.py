"""Is upstream well enough to be sent an order, as far as this process has heard?

Closed, every order goes. When upstream is not well, it opens: orders are refused, before anything is held, for a while.
Then it is half open: one order goes as a probe, and what comes of it closes or opens it again; while nothing comes of
it, another goes now and then. It saves callers their held budgets, and an account that is in trouble a thousand more
refusals.
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


@dataclass(frozen=True, eq=False)
class _Probe:
    """Each is another object, so that one which gave up long ago can't give back another's turn."""

    sent_at: float


class Breaker:
    """What one process has heard from upstream lately. It belongs to one event loop, and waits for nothing."""

    def __init__(self, *, open_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`open_seconds` pass before a probe, and before a second while that has no answer, and twice as many before
        each further one; 0 never opens.

        `clock` gives seconds, as everything here counts them.
        """
        self._open_seconds = open_seconds
        self._clock = clock
        self._failures = 0
        self._code: RefusalCode | None = None
        # When the trouble began, and when it was last heard of.
        self._began_at = self._opened_at = -math.inf
        # Those that went since then and had no answer yet, oldest first.
        self._probes: list[_Probe] = []

    @property
    def state(self) -> State:
        """Whether orders go, none does, or one may, or has gone, as a probe."""
        if self._code is None:
            return "closed"
        return "open" if self._clock() < self._opened_at + self._open_seconds else "half-open"

    def barred(self) -> Barred | None:
        """Return why an order would not be sent now; None when it would."""
        if self._code is None:
            return None
        if (remaining_seconds := self._opened_at + self._open_seconds - self._clock()) > 0:
            return Barred(self._code, math.ceil(remaining_seconds))
        if (remaining_seconds := self._next_probe_at() - self._clock()) > 0:
            return Barred(self._code, min(math.ceil(remaining_seconds), _PROBING_RETRY_SECONDS))
        return None

    def _next_probe_at(self) -> float:
        """A picture may take upstream minutes. Were its first probe the only one, all would wait for that one answer,
        or for its timeout, long after upstream is well. And at one pace, an upstream that is silent for its whole
        timeout would get twenty paid orders, and leave each of them unknown: so each waits twice as long.
        """
        if not self._probes:
            return -math.inf
        return self._probes[-1].sent_at + self._open_seconds * float(2 ** (len(self._probes) - 1))

    def admit(self) -> object | None:
        """Let an order go that is not `barred`. What comes back is for `give_back`."""
        if self._code is None:
            return None
        self._probes.append(_Probe(self._clock()))
        return self._probes[-1]

    def give_back(self, admitted: object | None) -> None:
        """Forget an order that was admitted and is over. A probe that was never sent leaves its turn to the next."""
        self._probes = [probe for probe in self._probes if probe is not admitted]

    def hear(self, outcome: Outcome, *, sent_at: float) -> None:
        """Learn from what came of an order that was sent at `sent_at` by this breaker's clock."""
        code = _trouble_of(outcome)
        if sent_at < (self._began_at if code is None else self._opened_at):
            # It was on its way before the trouble began, and says nothing about whether that is over. Of probes that
            # are on their way together, one answer proves it over; their failures count once, or each of them would
            # keep the next probe waiting.
            return
        if code is None:
            self._failures = 0
            self._close()
            return
        self._failures += 1
        if self._code is not None or code in _ACCOUNT or self._failures >= _FAILURES_MAX:
            self._open(code)

    def _open(self, code: RefusalCode) -> None:
        if not self._open_seconds:
            return
        if self._code is None:
            telemetry.breaker_open.inc()
            self._began_at = self._clock()
        log.error("breaker_opened", code=code, failures_in_a_row=self._failures, seconds=self._open_seconds)
        self._code, self._opened_at, self._probes = code, self._clock(), []

    def _close(self) -> None:
        if self._code is None:
            return
        telemetry.breaker_open.dec()
        log.warning("breaker_closed", code=self._code, seconds=round(self._clock() - self._opened_at, 1))
        self._code, self._probes = None, []


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
