"""What does upstream's answer to a paid order mean: pictures, a refusal that cost nothing, or nobody knows?"""

import binascii
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from pybase64 import b64decode
from pydantic_core import from_json

from app.upstream.outcome import BytesSource, Generated, Outcome, RefusalCode, Refused, Unknown, UrlSource, Usage

_LARGE_BYTES = 256 * 1024
_REFUSAL_TEXT_CHARACTERS_MAX = 4_000
_URL_CHARACTERS_MAX = 8_192
_REVISED_PROMPT_CHARACTERS_MAX = 32_000
# More digits than any number has that is meant to be read; json would give up the whole answer over thousands of them.
_NUMBER_CHARACTERS_MAX = 30

# OpenAI's codes, and what each says under whatever 4xx it comes: its own statuses, 400 for an account without money
# among them, are not those that relays make of them. Only where a code stands: in prose, a prompt that upstream repeats
# could name one. source: developers.openai.com/docs/guides/error-codes and the pages named below, 2026-11-22.
_CODES: Mapping[str, RefusalCode] = {
    "account_deactivated": "upstream_auth_failed",
    "invalid_api_key": "upstream_auth_failed",
    "billing_hard_limit_reached": "upstream_balance_exhausted",
    "billing_not_active": "upstream_balance_exhausted",
    "credit_balance_exhausted": "upstream_balance_exhausted",
    "insufficient_quota": "upstream_balance_exhausted",
    "organization_spend_limit_exceeded": "upstream_balance_exhausted",
    "organization_usage_limit_exceeded": "upstream_balance_exhausted",
    "project_spend_limit_exceeded": "upstream_balance_exhausted",
    "model_not_found": "upstream_model_gone",
    "content_policy_violation": "content_rejected",
    "moderation_blocked": "content_rejected",
    "rate_limit_exceeded": "upstream_busy",
    "slow_down": "upstream_busy",
}

# Tried in this order. "Your account has been banned" must not become a rejected prompt, so the account comes first.
# TTAPI publishes no text of a content rejection; the words are gathered from sister services and OpenAI's codes
# (docs.ttapi.io/grids/en/development/response, docs.mjapiapp.com/reference/status-code, community.openai.com/t/356407;
# read 2026-11-22).
_WORDS: tuple[tuple[RefusalCode, re.Pattern[str]], ...] = (
    (
        "upstream_auth_failed",
        re.compile(
            r"tt-api-key|invalid_api_key|incorrect api key|email is not activated"
            r"|account\b.{0,40}\b(?:banned|blocked|disabled|suspended|deactivated)",
            re.IGNORECASE | re.DOTALL,
        ),
    ),
    (
        "upstream_balance_exhausted",
        re.compile(
            r"insufficient[ _](?:balance|quota|credit|fund)|(?:balance|quota|credits?) (?:is |are )?(?:insufficient"
            r"|not enough|exhausted|used up)|not enough (?:balance|quota|credit)|exceeded your current quota"
            r"|billing_hard_limit|credit_balance_exhausted|(?:spend|usage)_limit_exceeded",
            re.IGNORECASE,
        ),
    ),
    (
        "upstream_model_gone",
        re.compile(
            r"model_not_found|(?:unknown|invalid|no such|unsupported) model"
            r"|model\b.{0,100}\b(?:deprecated|does not exist|not found|no longer|retired|shut down|removed)",
            re.IGNORECASE | re.DOTALL,
        ),
    ),
    (
        "content_rejected",
        re.compile(
            r"safety[ _]system|content[ _-]?(?:policy|filter)|moderation|\bbanned|(?<!case[ -])\bsensitive"
            r"|responsible ?ai|policy violation|safety_violation",
            re.IGNORECASE,
        ),
    ),
    ("upstream_busy", re.compile(r"rate[ _-]limit|too many requests|too frequent|slow_down", re.IGNORECASE)),
)


def read_reply(status: int, content_type: str | None, body: bytes | bytearray, *, now: datetime) -> Outcome:
    """Tells what a whole answer means. Never raises, whatever the body holds; no part of the body is in a `detail`.

    Pictures count under any 2xx, in TTAPI's envelope or OpenAI's bare shape, as URL or base64. A refusal that surely
    cost nothing is a 4xx but 408, or `status: FAILED` under 200. All else is `Unknown`, a 5xx whatever its body says.
    source: docs.ttapi.io/grids/en/development/response and docs.ttapi.io/api/en/openai/images-generations, 2026-11-22.
    """
    if 400 <= status < 500 and status != 408:
        code = _refusal_code(status, _parsed(body), body)
        return Refused(code, f"HTTP {status} from upstream, read as {code}", status)
    if not 200 <= status < 300:
        return Unknown(f"HTTP {status} from upstream, which may hide a picture already made", status)
    reply = _parsed(body)
    sources = tuple(_sources(reply, now))
    if sources:
        # Also where the envelope says FAILED: a picture in hand is what was ordered.
        return Generated(sources, status, _usage(reply))
    if status == 200 and _says_failed(reply):
        code = _refusal_code(status, reply, body)
        return Refused(code, f"FAILED inside HTTP 200 from upstream, read as {code}", status)
    return Unknown(f"HTTP {status} from upstream without a picture: {_kind(reply, content_type, body)}", status)


def _parsed(body: bytes | bytearray) -> Any:
    if len(body) > _LARGE_BYTES:
        # Pictures in base64: json would hold all of it once more as text. What this can't read, that may.
        with suppress(ValueError):
            return from_json(body)
    try:
        return json.loads(body, parse_int=_whole_number)
    except (ValueError, RecursionError):
        # ValueError covers broken JSON and broken encodings.
        return None


def _whole_number(digits: str) -> int | None:
    return int(digits) if len(digits) <= _NUMBER_CHARACTERS_MAX else None


def _says_failed(reply: Any) -> bool:
    said = reply.get("status") if isinstance(reply, dict) else None
    return isinstance(said, str) and said.upper() == "FAILED"


def _kind(reply: Any, content_type: str | None, body: bytes | bytearray) -> str:
    if reply is not None:
        return "JSON of another shape"
    if "html" in (content_type or "").lower() or body.lstrip()[:1] == b"<":
        return "HTML"
    return "not JSON" if body else "no body"


def _refusal_code(status: int, reply: Any, body: bytes | bytearray) -> RefusalCode:
    if (told := _told_code(reply)) is not None:
        return told
    text = _refusal_text(reply, body)
    heard = next((code for code, words in _WORDS if words.search(text)), None)
    match status:
        case 401:
            return "upstream_balance_exhausted" if heard == "upstream_balance_exhausted" else "upstream_auth_failed"
        case 402:
            return "upstream_balance_exhausted"
        case 403:
            # One caller's prompt must not look like a dead account, which would stop the service for everyone.
            if heard in ("content_rejected", "upstream_balance_exhausted", "upstream_model_gone"):
                return heard
            return "upstream_auth_failed"
        case 404:
            return "content_rejected" if heard == "content_rejected" else "upstream_model_gone"
        case 429:
            # OpenAI says "out of money" with 429; waiting does not help there.
            return "upstream_balance_exhausted" if heard == "upstream_balance_exhausted" else "upstream_busy"
        case 499:
            return "upstream_busy"
        case 400 | 422:
            return heard or "invalid_value"
        case _:
            return heard or "upstream_failed"


def _told_code(reply: Any) -> RefusalCode | None:
    said = (place.get(key) for place in _error_places(reply) for key in ("code", "type"))
    return next((_CODES[code] for code in said if isinstance(code, str) and code in _CODES), None)


def _refusal_text(reply: Any, body: bytes | bytearray) -> str:
    if not isinstance(reply, dict):
        return body[:_REFUSAL_TEXT_CHARACTERS_MAX].decode("utf-8", "replace")
    said = (place.get(key) for place in _error_places(reply) for key in ("code", "type", "message", "detail"))
    return "\n".join(text[:_REFUSAL_TEXT_CHARACTERS_MAX] for text in said if isinstance(text, str))


def _error_places(reply: Any) -> tuple[Mapping[str, Any], ...]:
    """Where an answer says what is wrong: in OpenAI's error object before TTAPI's envelope."""
    if not isinstance(reply, dict):
        return ()
    error = reply.get("error")
    return (error, reply) if isinstance(error, dict) else (reply, {"message": error})


def _usage(reply: Any) -> Usage | None:
    """Return what the tokens of an answer were; None where it doesn't say, or says what no picture can have taken."""
    inner = reply.get("data")
    for place in (reply, inner if isinstance(inner, dict) else {}):
        usage = place.get("usage")
        if isinstance(usage, dict):
            taken, made = usage.get("input_tokens"), usage.get("output_tokens")
            # By type, for True is an int; a relay that does not count says 0.
            if type(taken) is int and type(made) is int and taken >= 0 and made > 0:
                return Usage(taken, made)
    return None


def _sources(reply: Any, now: datetime) -> Iterator[UrlSource | BytesSource]:
    pictures = reply.get("data") if isinstance(reply, dict) else None
    if isinstance(pictures, dict):
        pictures = pictures.get("data", pictures)
    if isinstance(pictures, dict):
        pictures = [pictures]
    for picture in pictures if isinstance(pictures, list) else []:
        if isinstance(picture, dict) and (source := _source(picture, now)):
            yield source


def _source(picture: dict[str, Any], now: datetime) -> UrlSource | BytesSource | None:
    revised_prompt = _storable(picture.get("revised_prompt"))
    url, encoded = picture.get("url"), picture.get("b64_json")
    # Bytes in hand come before a URL that dies. Some relays put them into the URL itself.
    for text in (encoded, url if isinstance(url, str) and url.startswith("data:") else None):
        if isinstance(text, str) and (body := _decoded(text)):
            return BytesSource(body, revised_prompt)
    if isinstance(url, str) and _is_web_address(url):
        return UrlSource(url, source_expires_at(url, now), revised_prompt)
    return None


def _is_web_address(url: str) -> bool:
    printable = url.isprintable() and " " not in url
    return printable and len(url) <= _URL_CHARACTERS_MAX and url.lower().startswith(("https://", "http://"))


def _decoded(encoded: str) -> bytes | None:
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    try:
        # Right away, as nearly all come: each copy of it takes megabytes. Not by Python's own base64, which takes 8 ms
        # for a picture of 1.5 MB, as much as all else that is done for its order; this takes 0.2.
        return b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        pass
    # Also with more signs at the end than there need be.
    compact = "".join(encoded.split()).rstrip("=")
    try:
        return b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _storable(text: Any) -> str | None:
    # Postgres stores neither NUL nor half a surrogate pair; a paid picture must not be lost to its caption.
    if not isinstance(text, str):
        return None
    return text[:_REVISED_PROMPT_CHARACTERS_MAX].replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def source_expires_at(url: str, now: datetime) -> datetime | None:
    """Reads from a signed URL when it dies (UTC), or None where it does not say or says what cannot be.

    An Azure SAS says it in `se` (`ske` is the signing key's end, not the URL's), AWS in `X-Amz-Date` and
    `X-Amz-Expires`. A moment before `now` on a fresh answer proves a wrong clock, not a dead picture: None.
    source: learn.microsoft.com/en-us/rest/api/storageservices/formatting-datetime-values, 2026-11-22.
    """
    try:
        pairs = [pair.partition("=") for pair in urlsplit(url).query.split("&")]
        # unquote and not parse_qs: a "+" of a time zone that was left unescaped is no blank.
        said = {unquote(name).lower(): unquote(value) for name, _, value in reversed(pairs)}
        if "se" in said:
            expires_at = _utc(said["se"])
        elif "x-amz-date" in said and "x-amz-expires" in said:
            expires_at = _utc(said["x-amz-date"]) + timedelta(seconds=int(said["x-amz-expires"]))
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return expires_at if expires_at > now else None


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
