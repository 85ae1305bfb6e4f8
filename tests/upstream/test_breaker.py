"""Does the breaker open when upstream is not well, and only then, and let an order now and then try again?"""

from dataclasses import dataclass

import pytest

from app.upstream.breaker import Barred, Breaker
from app.upstream.outcome import Generated, Outcome, RefusalCode, Refused, Unknown

OPEN_SECONDS = 15
ILL = Unknown("HTTP 500 from upstream", 500)
DRAWN = Generated((), 200)


def refused(code: RefusalCode) -> Refused:
    return Refused(code, "as the test wants it", None)


@dataclass
class Clock:
    """A clock that stands until the test turns it."""

    seconds: float = 1000

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(open_seconds=OPEN_SECONDS, clock=clock)


def hear(breaker: Breaker, clock: Clock, *outcomes: Outcome) -> None:
    for outcome in outcomes:
        breaker.hear(outcome, sent_at=clock())


def opened(breaker: Breaker, clock: Clock, code: RefusalCode = "upstream_auth_failed") -> None:
    hear(breaker, clock, refused(code))
    assert breaker.state == "open"


@pytest.mark.parametrize("failure", [ILL, Unknown("timeout", None), refused("upstream_unreachable")])
def test_five_failures_in_a_row_open_it_and_four_do_not(breaker: Breaker, clock: Clock, failure: Outcome) -> None:
    hear(breaker, clock, *[failure] * 4)
    assert breaker.barred() is None

    hear(breaker, clock, failure)

    assert breaker.barred() == Barred("upstream_unreachable", OPEN_SECONDS)


@pytest.mark.parametrize("code", ["upstream_auth_failed", "upstream_balance_exhausted"])
def test_one_refusal_of_the_account_opens_it(breaker: Breaker, clock: Clock, code: RefusalCode) -> None:
    hear(breaker, clock, refused(code))

    assert breaker.barred() == Barred(code, OPEN_SECONDS)


@pytest.mark.parametrize(
    "answer",
    [
        DRAWN,
        refused("content_rejected"),
        refused("invalid_value"),
        refused("upstream_busy"),
        refused("upstream_failed"),
        refused("upstream_model_gone"),
    ],
)
def test_an_upstream_that_answers_begins_the_count_anew(breaker: Breaker, clock: Clock, answer: Outcome) -> None:
    hear(breaker, clock, *[ILL] * 4, answer, *[ILL] * 4)

    assert breaker.barred() is None


def test_the_wait_that_it_tells_gets_shorter(breaker: Breaker, clock: Clock) -> None:
    opened(breaker, clock)

    clock.seconds += 5.5

    assert breaker.barred() == Barred("upstream_auth_failed", 10)


def test_after_its_time_one_order_goes_as_a_probe_and_no_other(breaker: Breaker, clock: Clock) -> None:
    opened(breaker, clock)
    clock.seconds += OPEN_SECONDS
    assert (breaker.state, breaker.barred()) == ("half-open", None)

    breaker.admit()

    barred = breaker.barred()
    assert barred is not None
    assert 1 <= barred.retry_after_seconds <= OPEN_SECONDS
    clock.seconds += OPEN_SECONDS - 1
    assert breaker.barred() == Barred("upstream_auth_failed", 1)


def test_beside_probes_without_an_answer_another_goes_after_twice_as_long_each_time(
    breaker: Breaker, clock: Clock
) -> None:
    opened(breaker, clock)
    for share in (1, 1, 2, 4, 8):
        clock.seconds += share * OPEN_SECONDS - 1
        assert breaker.barred() is not None
        clock.seconds += 1
        assert breaker.barred() is None

        breaker.admit()


def test_a_probe_that_is_over_gives_back_its_own_turn_and_not_that_of_the_one_after_it(
    breaker: Breaker, clock: Clock
) -> None:
    opened(breaker, clock)
    clock.seconds += OPEN_SECONDS
    slow = breaker.admit()
    clock.seconds += OPEN_SECONDS
    breaker.admit()

    breaker.give_back(slow)

    assert breaker.barred() is not None


def test_of_two_probes_one_answer_closes_it_although_the_other_failed(breaker: Breaker, clock: Clock) -> None:
    opened(breaker, clock)
    clock.seconds += OPEN_SECONDS
    breaker.admit()
    first_sent_at = clock()
    clock.seconds += OPEN_SECONDS
    breaker.admit()
    second_sent_at = clock()
    clock.seconds += 1
    breaker.hear(ILL, sent_at=first_sent_at)
    assert breaker.state == "open"

    breaker.hear(DRAWN, sent_at=second_sent_at)

    assert (breaker.state, breaker.barred()) == ("closed", None)


def test_probes_that_fail_one_after_the_other_do_not_keep_the_next_one_waiting(breaker: Breaker, clock: Clock) -> None:
    opened(breaker, clock)
    sent_at = []
    for share in (1, 1, 2):
        clock.seconds += share * OPEN_SECONDS
        breaker.admit()
        sent_at.append(clock())
    clock.seconds += 1
    breaker.hear(ILL, sent_at=sent_at[0])
    clock.seconds += OPEN_SECONDS

    for later in sent_at[1:]:
        breaker.hear(ILL, sent_at=later)

    assert (breaker.state, breaker.barred()) == ("half-open", None)


def test_a_probe_that_is_answered_closes_it(breaker: Breaker, clock: Clock) -> None:
    opened(breaker, clock)
    clock.seconds += OPEN_SECONDS
    probe = breaker.admit()

    hear(breaker, clock, DRAWN)

    assert (breaker.state, breaker.barred()) == ("closed", None)
    breaker.give_back(probe)
    hear(breaker, clock, *[ILL] * 4)
    assert breaker.state == "closed", "it counts from nothing again"


def test_a_probe_that_fails_opens_it_again_at_once(breaker: Breaker, clock: Clock) -> None:
    opened(breaker, clock)
    clock.seconds += OPEN_SECONDS
    breaker.admit()

    hear(breaker, clock, ILL)

    assert breaker.barred() == Barred("upstream_unreachable", OPEN_SECONDS)


def test_a_probe_that_was_never_sent_leaves_its_turn_to_the_next_order(breaker: Breaker, clock: Clock) -> None:
    opened(breaker, clock)
    clock.seconds += OPEN_SECONDS

    breaker.give_back(breaker.admit())

    assert breaker.barred() is None


def test_a_probe_that_was_never_sent_does_not_set_back_the_pace_of_those_that_were(
    breaker: Breaker, clock: Clock
) -> None:
    opened(breaker, clock)
    began = clock()
    sent_after = []
    for _ in range(17 * OPEN_SECONDS):
        clock.seconds += 1
        # First an order that a limit refuses, then one that is sent, and never answered.
        if breaker.barred() is None:
            breaker.give_back(breaker.admit())
        if breaker.barred() is None:
            breaker.admit()
            sent_after.append(clock() - began)

    assert sent_after == [OPEN_SECONDS * share for share in (1, 2, 4, 8, 16)]


def test_a_probe_of_an_earlier_turn_does_not_give_back_the_present_one(breaker: Breaker, clock: Clock) -> None:
    opened(breaker, clock)
    clock.seconds += OPEN_SECONDS
    earlier = breaker.admit()
    hear(breaker, clock, ILL)
    clock.seconds += OPEN_SECONDS
    breaker.admit()

    breaker.give_back(earlier)

    assert breaker.barred() is not None


def test_what_was_on_its_way_before_it_opened_neither_closes_nor_prolongs_it(breaker: Breaker, clock: Clock) -> None:
    before = clock()
    clock.seconds += 1
    opened(breaker, clock)
    clock.seconds += 1

    for outcome in (DRAWN, ILL, refused("upstream_balance_exhausted")):
        breaker.hear(outcome, sent_at=before)

    assert breaker.barred() == Barred("upstream_auth_failed", OPEN_SECONDS - 1)


def test_with_zero_seconds_it_never_opens(clock: Clock) -> None:
    breaker = Breaker(open_seconds=0, clock=clock)

    hear(breaker, clock, *[ILL] * 20, refused("upstream_auth_failed"))

    assert (breaker.state, breaker.barred()) == ("closed", None)
