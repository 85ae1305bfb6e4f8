"""What came beside the order: how long to wait, in which form to answer, and of which order it may be a repeat?"""

from dataclasses import dataclass, field

from fastapi import Request

from app.errors import InvalidValue

_WAIT_SECONDS_MAX = 600
_IDEMPOTENCY_KEY_CHARACTERS_MAX = 255
# No SDK tries that often.
_RETRY_COUNT_MAX = 1_000


@dataclass(frozen=True)
class Preference:
    """How to answer. `wait_seconds` None waits to the end; `applied` is the header that says what was done."""

    wait_seconds: float | None = None
    picture: bool = False
    applied: dict[str, str] = field(default_factory=dict)


def read_preference(request: Request) -> Preference:
    """Return what the `Prefer` (RFC 7240) and `Accept` headers ask for.

    Unknown preferences are ignored, as the RFC wants it; a malformed `wait` is too.
    """
    seconds: float | None = None
    applied = []
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        name, _, value = preference.partition(";")[0].strip().partition("=")
        if name.lower() == "respond-async":
            applied.append("respond-async")
            seconds = 0 if seconds is None else seconds
        elif name.lower() == "wait" and value.strip('" ').isdecimal() and len(value) <= 6:
            seconds = min(int(value.strip('" ')), _WAIT_SECONDS_MAX)
            applied.append(f"wait={seconds}")
    headers = {"preference-applied": ", ".join(applied)} if applied else {}
    return Preference(seconds, _wants_picture(request.headers.get("accept", "")), headers)


def read_retry_count(request: Request) -> int:
    """Return which retry of an order this is by its SDK's count, 0 for a first try and without one.

    Source: openai-python 3.54.0 and openai-node 7.57.0 send `x-stainless-retry-count: 0`, then 1, 2, ...
    """
    given = request.headers.get("x-stainless-retry-count", "")
    return min(int(given), _RETRY_COUNT_MAX) if given.isascii() and given.isdecimal() and len(given) <= 6 else 0


def _wants_picture(accept: str) -> bool:
    kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    # A browser's page load takes pictures too, but after HTML and JSON; only who names nothing else gets the bytes.
    return any(kind.startswith("image/") for kind in kinds) and not any(
        "json" in kind or "html" in kind for kind in kinds
    )


def read_idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key, None without one. Raises InvalidValue unless it is visible ASCII, 255 at most.

    Source: draft-ietf-httpapi-idempotency-key-header-07, read 2026-11-22.
    """
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    # Of two keys nobody could say which one the next try is found by.
    key = given[0] if len(given) == 1 else ""
    if not 1 <= len(key) <= _IDEMPOTENCY_KEY_CHARACTERS_MAX or not all("!" <= character <= "~" for character in key):
        raise InvalidValue(
            f"`Idempotency-Key` must be one of 1 to {_IDEMPOTENCY_KEY_CHARACTERS_MAX} visible ASCII characters.",
            parameter="Idempotency-Key",
        )
    return key
