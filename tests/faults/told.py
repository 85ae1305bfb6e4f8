"""What does an order of the load look like, and what was its client told?"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

# What upstream is ordered to do, and how often of a hundred. `lost` may be the end only where the source dies.
FAULTS: Sequence[tuple[int, str, str]] = (
    (44, "plain", ""),
    (8, "base64", "[[b64]]"),
    (4, "jpeg", "[[format jpeg]]"),
    (5, "flaky", "[[picture flaky 2]]"),
    (4, "stalled", "[[picture slow 0.4]]"),
    (2, "gone", "[[picture missing]] [[expires 1]]"),
    (2, "torn", "[[picture cut]] [[expires 1]]"),
    (4, "refuse", "[[refuse]]"),
    (2, "failed-in-200", "[[failed-in-200]]"),
    (3, "busy", "[[status 429]]"),
    (4, "status-500", "[[status 500]]"),
    (2, "status-504", "[[status 504]]"),
    (4, "drop", "[[drop]]"),
    (2, "drop-unbilled", "[[drop]] [[unbilled]]"),
    (3, "reset", "[[reset]]"),
    (3, "hang", "[[hang]]"),
    (2, "garbage", "[[garbage]]"),
    (2, "late", "[[delay 1.6]]"),
)
DYING_SOURCES = ("gone", "torn")
NO_FAULTS: Sequence[tuple[int, str, str]] = (
    (80, "plain", ""),
    (15, "base64", "[[b64]]"),
    (5, "jpeg", "[[format jpeg]]"),
)


@dataclass(frozen=True)
class Told:
    """One answer: its status, and what of it counts."""

    status: int
    code: str | None = None
    id: str | None = None
    state: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Asked:
    """One order of the load, and the answers to every try of it, which are added as they come."""

    tag: str
    fault: str
    user: str
    api_key: str = field(repr=False)
    idempotency_key: str | None
    prompt: str
    told: list[Told] = field(default_factory=list)
    # Tries whose answer never came, for whatever reason.
    unanswered: list[str] = field(default_factory=list)
    # Ids that the client asked to be deleted.
    deleted: list[str] = field(default_factory=list)

    @property
    def image_format(self) -> str:
        return "jpeg" if self.fault == "jpeg" else "png"

    @property
    def headers(self) -> dict[str, str]:
        keyed = {"idempotency-key": self.idempotency_key} if self.idempotency_key else {}
        return {"authorization": f"Bearer {self.api_key}", **keyed}


def warm_up(api_key: str) -> Asked:
    """Return the order that is taken before there is any replica."""
    return Asked("warm-up", "plain", "free", api_key, None, "warm-up [[id warm-up]]")


def make_order(
    chance: random.Random,
    number: int,
    *,
    user: str,
    api_key: str,
    keyed: bool,
    faults: Sequence[tuple[int, str, str]],
    seconds_max: float,
) -> Asked:
    """Return an order with a tag of its own, which its picture carries, and with a fault drawn by its weight."""
    (_, fault, ordered) = chance.choices(faults, weights=[weight for weight, _, _ in faults])[0]
    tag = f"{fault}-{number}"
    delay = "" if "delay" in ordered else f"[[delay {chance.uniform(0, seconds_max):.2f}]]"
    prompt = " ".join(filter(None, (tag, f"[[id {tag}]]", delay, ordered)))
    return Asked(tag, fault, user, api_key, f"key-{number}" if keyed else None, prompt)


def read_answer(answer: httpx.Response) -> Told:
    """Return what an answer of POST /images or GET /images/{id} says."""
    try:
        said: Mapping[str, Any] = answer.json()
    except ValueError:
        return Told(answer.status_code, code="not_json")
    pictures = said.get("images") or [{}]
    return Told(answer.status_code, said.get("code"), said.get("id"), said.get("state"), pictures[0].get("url"))
