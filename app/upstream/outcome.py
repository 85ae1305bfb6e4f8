"""What can come of one paid order, and who can have been billed for it?"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

RefusalCode = Literal[
    "content_rejected",
    "invalid_value",
    "upstream_auth_failed",
    "upstream_balance_exhausted",
    "upstream_busy",
    "upstream_unreachable",
    "upstream_model_gone",
    "upstream_failed",
]


@dataclass(frozen=True)
class UrlSource:
    """A picture that waits at upstream's address until `expires_at` (UTC; None: the address does not say).

    The URL carries a signature and the revised prompt is the caller's text, so neither is in the repr.
    """

    url: str = field(repr=False)
    expires_at: datetime | None
    revised_prompt: str | None = field(repr=False)


@dataclass(frozen=True)
class BytesSource:
    """A picture that came inside the answer; not yet checked to be one."""

    body: bytes = field(repr=False)
    revised_prompt: str | None = field(repr=False)


@dataclass(frozen=True)
class Usage:
    """How many tokens upstream says an order took: of the prompt, and, never 0, of the pictures. It may lie."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Generated:
    """Upstream made at least one picture, in its own order; it may be fewer than were ordered."""

    sources: tuple[UrlSource | BytesSource, ...]
    upstream_status: int
    usage: Usage | None = None


@dataclass(frozen=True)
class Refused:
    """Upstream surely made and billed nothing. `upstream_status` is None when the order never left this process.

    `detail` is for the operator's log: our own words, never upstream's, no prompt, no URL, no key.
    """

    code: RefusalCode
    detail: str
    upstream_status: int | None


@dataclass(frozen=True)
class Unknown:
    """Upstream may have billed, and no picture came. Such an order is never sent again.

    `detail` is for the operator's log, as in `Refused`. `upstream_status` is None when no status line came.
    """

    detail: str
    upstream_status: int | None


Outcome = Generated | Refused | Unknown
