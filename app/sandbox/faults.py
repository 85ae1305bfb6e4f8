"""Which faults does a prompt order?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# Only "]]" that no third bracket follows ends an order, so that a redirect may name http://[::1]. The spaces around
# it are left to split(): here they would be tried in every combination, for minutes in a prompt made of spaces.
_ORDER: Final = re.compile(r"\[\[((?:(?!\[\[).)+?)\]\](?!\])")

_NOTHING: Final = ""
_SECONDS: Final = r"\d{1,6}(?:\.\d{1,3})?"
_SECONDS_OR_NONE: Final = rf"(?:{_SECONDS})?"
_CODE: Final = r"[45]\d\d"
_URL_BYTES_MAX: Final = 500
_URL: Final = rf"[\x21-\x7e]{{1,{_URL_BYTES_MAX}}}"

# Each order's name, and the shape of its argument. What fits neither is a person's own brackets, and is left alone.
_SHAPES: Final[Mapping[str, str]] = {
    "refuse": _NOTHING,
    "refuse-in-200": _NOTHING,
    "failed-in-200": _NOTHING,
    "status": _CODE,
    "html": _CODE,
    "redirect": rf"(?:{_URL})?",
    "model-gone": r"(?:400|404)?",
    "hang": _SECONDS_OR_NONE,
    "drop": _NOTHING,
    "reset": _NOTHING,
    "cut": _NOTHING,
    "broken-json": _NOTHING,
    "garbage": _NOTHING,
    "empty": _NOTHING,
    "no-url": _NOTHING,
    "bad-b64": _NOTHING,
    "huge-answer": _NOTHING,
    "gzip-bomb": _NOTHING,
    "drip": _SECONDS_OR_NONE,
    "delay": _SECONDS,
    "b64": _NOTHING,
    "unbilled": _NOTHING,
    "usage": r"none|-?\d{1,40}",
    "expires": _SECONDS,
    "format": r"png|jpeg|webp",
    "id": r"\S{1,100}",
    "picture missing": _NOTHING,
    "picture status": _CODE,
    "picture flaky": r"\d{1,3}",
    "picture html": _NOTHING,
    "picture svg": _NOTHING,
    "picture garbage": _NOTHING,
    "picture empty": _NOTHING,
    "picture huge": _NOTHING,
    "picture bomb": _NOTHING,
    "picture wrong-size": _NOTHING,
    "picture slow": _SECONDS_OR_NONE,
    "picture cut": _NOTHING,
    "picture drop": _NOTHING,
    "picture redirect": _URL,
}
# These stand beside an answer's fault instead of being one.
_CIRCUMSTANCES: Final = frozenset({"delay", "b64", "unbilled", "usage", "expires", "format", "id"})
_REFUSALS: Final = frozenset({"refuse", "refuse-in-200", "failed-in-200", "redirect", "model-gone"})


@dataclass(frozen=True)
class Fault:
    """One order: its name, and its argument as written ("" where it has none)."""

    name: str
    argument: str = ""

    def seconds(self, default: float) -> float:
        """The argument as seconds, or `default` where none was written."""
        return float(self.argument or default)

    @property
    def of_picture(self) -> str:
        """A picture's fault as its URL carries it: "name argument", without the word `picture`."""
        return f"{self.name.removeprefix('picture ')} {self.argument}".strip()


@dataclass(frozen=True)
class FaultOrders:
    """All that one prompt orders; `prompt` is what is left of it without the orders."""

    prompt: str
    answer: Fault | None = None
    picture: Fault | None = None
    delay_seconds: float = 0
    in_base64: bool = False
    unbilled: bool = False
    counted: str | None = None
    url_lifetime_seconds: float | None = None
    image_format: str | None = None
    tag: str | None = None

    @property
    def billed(self) -> bool:
        """Whether this order is paid for: what fails once work has begun is, what is refused is not.

        TTAPI publishes no such rule; this is the careful reading (upstream-facts.md section 2, 2026-11-22).
        """
        if self.unbilled:
            return False
        if self.answer is None:
            return True
        if self.answer.name in ("status", "html"):
            return int(self.answer.argument) >= 500
        return self.answer.name not in _REFUSALS


def read_faults(prompt: str) -> FaultOrders:
    """Reads the orders in double square brackets, such as `a cat [[delay 2]] [[picture missing]]`.

    Names are case-insensitive. Of two faults of the answer, or of the picture, the first counts.
    Brackets that hold no known order stay in the prompt.
    """
    ordered: dict[str, Fault] = {}

    def take(match: re.Match[str]) -> str:
        fault = _read_fault(match[1])
        if fault is None:
            return match[0]
        ordered.setdefault(fault.name, fault)
        return ""

    left = " ".join(_ORDER.sub(take, prompt).split())
    # "hang 3" is a late answer; "hang" and "hang 0" are no answer at all.
    hang = ordered.get("hang")
    hang_seconds = hang.seconds(0) if hang else 0
    if hang_seconds:
        del ordered["hang"]
    faults = [fault for fault in ordered.values() if fault.name not in _CIRCUMSTANCES]
    return FaultOrders(
        prompt=left,
        answer=next((fault for fault in faults if not fault.name.startswith("picture ")), None),
        picture=next((fault for fault in faults if fault.name.startswith("picture ")), None),
        delay_seconds=hang_seconds + (ordered["delay"].seconds(0) if "delay" in ordered else 0),
        in_base64="b64" in ordered or "bad-b64" in ordered,
        unbilled="unbilled" in ordered,
        counted=ordered["usage"].argument.lower() if "usage" in ordered else None,
        url_lifetime_seconds=ordered["expires"].seconds(0) if "expires" in ordered else None,
        image_format=ordered["format"].argument.lower() if "format" in ordered else None,
        tag=ordered["id"].argument if "id" in ordered else None,
    )


def _read_fault(text: str) -> Fault | None:
    words = text.split()
    if not words:
        return None
    name_length = 2 if words[0].lower() == "picture" else 1
    name = " ".join(words[:name_length]).lower()
    argument = " ".join(words[name_length:])
    shape = _SHAPES.get(name)
    if shape is None or re.fullmatch(shape, argument, re.IGNORECASE) is None:
        return None
    return Fault(name, argument)
