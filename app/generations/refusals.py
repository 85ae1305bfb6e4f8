"""What is the caller of a refused order told, and when to come back?"""

import random

from app.accounts.budgets import in_usd
from app.errors import AppError, BudgetSpent, Overloaded, RateLimitExceeded, TooManyInFlight, error_of_code
from app.generations.records import OverLimit
from app.upstream.breaker import Barred

_CHANCE = random.SystemRandom()

# Drawn anew for each: those who were refused together would come back together.
_OVERLOADED_RETRY_SECONDS = (2, 6)


def overloaded(message: str | None = None) -> Overloaded:
    """Return the refusal of a process that takes no order just now, with a moment to come back at."""
    return Overloaded(message, retry_after_seconds=_CHANCE.randint(*_OVERLOADED_RETRY_SECONDS))


def not_sent(barred: Barred) -> AppError:
    """Return the refusal of an order that the breaker holds back."""
    # What was drawn up for an order that failed reads as if this one had been sent.
    messages = {
        "upstream_unreachable": "The image provider has failed several times in a row, so orders wait until it is "
        "well again. Nothing was ordered and nothing was charged. Try again.",
    }
    return error_of_code(barred.code)(messages.get(barred.code), retry_after_seconds=barred.retry_after_seconds)


def over_limit(over: OverLimit) -> AppError:
    """Return the refusal of a limit, with its name, whose it is, and when it begins anew."""
    gauge = over.gauge
    scope = gauge.scope.partition(":")[0]
    details = {"limit": gauge.name, "scope": scope, "maximum": gauge.maximum}
    whose = {"all": "This installation's", "key": "This API key's", "user": "Your"}[scope]
    if gauge.name == "in_flight":
        message = f"{whose} limit of {gauge.maximum} generations in flight is reached. Try again when one has ended."
        return TooManyInFlight(message, retry_after_seconds=gauge.resets_in_seconds, details=details)
    if gauge.name == "requests_per_minute":
        message = f"{whose} limit of {gauge.maximum} orders a minute is reached."
        return RateLimitExceeded(message, retry_after_seconds=min(60, gauge.resets_in_seconds or 60), details=details)
    what = {
        "images_per_day": f"images a day: {gauge.maximum}",
        "images_per_month": f"images a month: {gauge.maximum}",
        "images_total": f"images in total: {gauge.maximum}",
        "micros_per_month": f"USD a month: {in_usd(gauge.maximum)}",
    }[gauge.name]
    when = "" if gauge.resets_in_seconds is None else " It begins anew at the next UTC midnight."
    if gauge.name.endswith("_month"):
        when = " It begins anew on the first of next month, UTC."
    return BudgetSpent(
        f"{whose} budget is used up ({what}).{when}", retry_after_seconds=gauge.resets_in_seconds, details=details
    )
