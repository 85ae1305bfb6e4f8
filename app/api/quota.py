"""How is a budget told in headers?

Source: draft-ietf-httpapi-ratelimit-headers-11, read 2026-11-22: `RateLimit-Policy: "name";q=100;w=86400` states a
policy, `RateLimit: "name";r=40;t=3600` how it stands.
"""

from collections.abc import Sequence

from app.accounts.budgets import Gauge
from app.errors import AppError

_DAY_SECONDS = 86_400
# The months differ; a client that paces itself by the policy is on the safe side with the longest.
_WINDOW_SECONDS = {"requests_per_minute": 60, "images_per_day": _DAY_SECONDS, "images_per_month": 31 * _DAY_SECONDS}


def quota_headers(gauges: Sequence[Gauge]) -> dict[str, str]:
    """Return the headers for an answer that these limits allowed.

    The installation's own limits are left out: what is left of them is no caller's business until they refuse.
    """
    told = [
        gauge for gauge in gauges if gauge.name in _WINDOW_SECONDS and gauge.scope != "all" and gauge.used is not None
    ]
    if not told:
        return {}
    policies = [_policy(gauge.scope.partition(":")[0], gauge.name, gauge.maximum) for gauge in told]
    standings = [
        f"{_name(gauge.scope.partition(':')[0], gauge.name)};r={gauge.remaining};t={gauge.resets_in_seconds}"
        for gauge in told
    ]
    return {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(standings)}


def refusal_headers(error: AppError) -> dict[str, str]:
    """Return the headers for an answer that a limit refused: that limit, with nothing left."""
    limit, scope = error.details.get("limit"), error.details.get("scope")
    if not isinstance(limit, str) or not isinstance(scope, str):
        return {}
    reset = f";t={error.retry_after_seconds}" if error.retry_after_seconds is not None else ""
    return {
        "ratelimit-policy": _policy(scope, limit, error.details["maximum"]),
        "ratelimit": f"{_name(scope, limit)};r=0{reset}",
    }


def request_headers(gauges: Sequence[Gauge]) -> dict[str, str]:
    """Return OpenAI's headers for an answer that these limits allowed: the orders a minute of the tightest limit.

    Source: OpenAI's names, as openai-python 3.54.0 leaves them to its callers; on images they are shown in no stored
    answer of OpenAI's.
    """
    told = [
        (gauge.remaining, gauge)
        for gauge in gauges
        if gauge.name == "requests_per_minute" and gauge.scope != "all" and gauge.remaining is not None
    ]
    if not told:
        return {}
    remaining, gauge = min(told, key=lambda each: each[0])
    return _requests(gauge.maximum, remaining, gauge.resets_in_seconds)


def request_refusal_headers(error: AppError) -> dict[str, str]:
    """Return OpenAI's headers for an answer that a limit of orders a minute refused."""
    if error.details.get("limit") != "requests_per_minute":
        return {}
    return _requests(error.details["maximum"], 0, error.retry_after_seconds)


def _requests(maximum: int, remaining: int, resets_in_seconds: int | None) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(maximum),
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": f"{resets_in_seconds or 0}s",
    }


def _policy(scope: str, limit: str, maximum: int) -> str:
    window = f";w={_WINDOW_SECONDS[limit]}" if limit in _WINDOW_SECONDS else ""
    return f"{_name(scope, limit)};q={maximum}{window}"


def _name(scope: str, limit: str) -> str:
    whose = {"user": "", "key": "key-", "all": "installation-"}[scope]
    return f'"{whose}{limit.replace("_", "-")}"'
