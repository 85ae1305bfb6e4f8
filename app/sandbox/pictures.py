"""What does a picture's URL say, and does it still hold?"""

import base64
import binascii
import hashlib
import hmac
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

EXTENSIONS: Final[Mapping[str, str]] = {"png": "png", "jpeg": "jpg", "webp": "webp"}

# It guards nothing and is no secret: it only makes a changed URL fail, as a changed one of Azure's would. It is
# fixed so that a sandbox started again still serves the URLs of the one before.
_SIGNING_KEY: Final = b"imagekeep sandbox pictures"
# Keeps every URL under 2,000 characters, together with the longest redirect that a prompt can order.
_PROMPT_BYTES_MAX: Final = 500
_HOUR_SECONDS: Final = 3_600


class Denied(Exception):
    """A URL that was changed, or whose time is over; the words are for the answer's body."""


@dataclass(frozen=True)
class Picture:
    """All that is needed to draw one picture again. `fault` is what its GET does, as "name argument", or ""."""

    order_id: str
    index: int
    size: str
    image_format: str
    prompt: str
    fault: str

    @property
    def width_height(self) -> tuple[int, int]:
        """The size in pixels."""
        width, _, height = self.size.partition("x")
        return int(width), int(height)


def clip_prompt(prompt: str) -> str:
    """As much of a prompt as its picture's URL carries."""
    return prompt.encode()[:_PROMPT_BYTES_MAX].decode(errors="ignore")


def sign_url(picture: Picture, *, public_url: str, now: float, lifetime_seconds: float) -> str:
    """A URL in the style of Azure's SAS: `st` an hour ago, `se` the end of its life, in ISO form with whole seconds.

    It lives for the time asked for and up to a second more; with a lifetime of 0 it is over at once.
    `ske` is the signing key's end, long after `se`, as with Azure: who takes it for the URL's end is wrong.
    """
    expires = math.ceil(now + lifetime_seconds) if lifetime_seconds else math.floor(now)
    start_at, expires_at = _iso(now - _HOUR_SECONDS), _iso(expires)
    file_name = f"{_pack(picture)}.{EXTENSIONS[picture.image_format]}"
    query = {
        "st": start_at,
        "se": expires_at,
        "sp": "r",
        "sv": "2024-08-04",
        "sr": "b",
        "rscd": "inline",
        "rsct": f"image/{picture.image_format}",
        "ske": _iso(expires + 24 * _HOUR_SECONDS),
        "sig": _signature(file_name, start_at, expires_at),
    }
    return f"{public_url}/pictures/{file_name}?{urlencode(query)}"


def read_url(file_name: str, query: Mapping[str, str], *, now: float) -> Picture:
    """The picture that a URL's last path segment and query stand for. Raises Denied."""
    start_at, expires_at = query.get("st", ""), query.get("se", "")
    signature = _signature(file_name, start_at, expires_at)
    if not hmac.compare_digest(signature.encode(), query.get("sig", "").encode()):
        raise Denied("Signature did not match.")
    if now >= datetime.fromisoformat(expires_at).timestamp():
        raise Denied(
            f"Signature not valid in the specified time frame: Start [{start_at}] - Expiry [{expires_at}] - "
            f"Current [{_iso(now)}]"
        )
    return _unpack(file_name.partition(".")[0])


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _signature(file_name: str, start_at: str, expires_at: str) -> str:
    signed = "\n".join((file_name, start_at, expires_at)).encode()
    return base64.b64encode(hmac.digest(_SIGNING_KEY, signed, hashlib.sha256)).decode()


def _pack(picture: Picture) -> str:
    packed = zlib.compress(json.dumps(astuple(picture), ensure_ascii=False, separators=(",", ":")).encode(), 6)
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def _unpack(token: str) -> Picture:
    try:
        packed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        return Picture(*json.loads(zlib.decompress(packed)))
    except (binascii.Error, zlib.error, ValueError, TypeError) as error:
        # The signature was good, so only a sandbox of another version can have made it.
        raise Denied("Signature did not match.") from error
