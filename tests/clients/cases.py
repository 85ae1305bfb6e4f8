"""What goes wrong in turn: which refusals does each client meet, and which faults of upstream?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class Refusal:
    """An order that is refused: what is odd about it, the status by surface, and words that a person can act on."""

    statuses: Mapping[str, int]
    says: str
    order: Mapping[str, Any] = field(default_factory=dict)
    in_prompt: str = ""
    whose_key: str = "a user's"


REFUSALS: Final[Mapping[str, Refusal]] = {
    "bad size": Refusal({"openai": 400, "ttapi": 400}, "`size` must be one of 1024x1024, ", {"size": "512x512"}),
    "wrong key": Refusal({"openai": 401, "ttapi": 401}, "API key", whose_key="nobody's"),
    "spent budget": Refusal({"openai": 429, "ttapi": 402}, "Your budget is used up", whose_key="a poor user's"),
    "content refusal": Refusal({"openai": 400, "ttapi": 400}, "change the prompt", in_prompt="[[refuse]]"),
    "wrong model": Refusal({"openai": 400, "ttapi": 400}, "no such model here", {"model": "dall-e-17"}),
}


@dataclass(frozen=True)
class Fault:
    """What upstream does to an order.

    `free` when that is no bill: then each of a client's tries is another order. `late` when the picture comes after
    the client has given up waiting: who tries again gets it.
    """

    in_prompt: str
    free: bool = False
    late: bool = False
    timeout_seconds: float | None = None


# How soon a hasty client gives up: later than an answer that is there already takes on a busy machine. What comes too
# late for its first try comes in the middle of its second. The service waits for upstream for longer than both.
HASTY_SECONDS: Final = 2.0
LATE_SECONDS: Final = 3.0
UPSTREAM_SECONDS: Final = 6.0

FAULTS: Final[Mapping[str, Fault]] = {
    "429": Fault("[[status 429]]", free=True),
    "499": Fault("[[status 499]]", free=True),
    "a hang past the client's timeout": Fault("[[hang]]", timeout_seconds=HASTY_SECONDS),
    "an answer after the client's timeout": Fault(f"[[hang {LATE_SECONDS}]]", late=True, timeout_seconds=HASTY_SECONDS),
    "500": Fault("[[status 500]]"),
    "502 in HTML": Fault("[[html 502]]"),
    "504": Fault("[[status 504]]"),
    "a dropped connection": Fault("[[drop]]"),
    "broken JSON": Fault("[[broken-json]]"),
    "no URL": Fault("[[no-url]]"),
}
