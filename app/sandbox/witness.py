"""What was asked of the sandbox, and what did it bill?"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from app.sandbox.orders import readable

ORDERS_MAX: Final = 10_000
PROMPT_LENGTH_MAX: Final = 4_000
_HEADER_NAMES_MAX: Final = 200
_WORD_LENGTH_MAX: Final = 100


@dataclass(frozen=True)
class Ordered:
    """One order as it came. A field that was absent or no plain value is None; headers are names, never values."""

    tag: str | None
    prompt: str | None
    path: str
    model: str | None
    size: str | None
    quality: str | None
    n: int | None
    billed: bool
    headers: tuple[str, ...]


class Witness:
    """Counts without end, and remembers the last 10,000 orders and which of their pictures were asked for."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything, the counts too."""
        self._asked = 0
        self._billed = 0
        self._pictures_asked = 0
        self._orders: OrderedDict[str, Ordered] = OrderedDict()
        self._asks_by_order: Counter[str] = Counter()
        self._asks_by_url: OrderedDict[str, int] = OrderedDict()
        self._picture_headers: set[str] = set()

    def note_order(
        self,
        order_id: str,
        body: Mapping[str, Any],
        *,
        path: str,
        tag: str | None,
        billed: bool,
        headers: Iterable[str],
    ) -> None:
        """Remembers one order, readable or not (then `body` is empty). Never give it a header's value."""
        self._asked += 1
        self._billed += billed
        n = body.get("n")
        self._orders[order_id] = Ordered(
            tag=tag,
            prompt=_text(body.get("prompt"), PROMPT_LENGTH_MAX),
            path=path,
            model=_text(body.get("model"), _WORD_LENGTH_MAX),
            size=_text(body.get("size"), _WORD_LENGTH_MAX),
            quality=_text(body.get("quality"), _WORD_LENGTH_MAX),
            n=n if isinstance(n, int) else None,
            billed=billed,
            headers=tuple(headers),
        )
        if len(self._orders) > ORDERS_MAX:
            oldest, _ = self._orders.popitem(last=False)
            self._asks_by_order.pop(oldest, None)

    def note_picture(self, *, headers: Iterable[str]) -> None:
        """Counts one GET of a picture, whatever comes of it, and remembers which headers such GETs carry."""
        self._pictures_asked += 1
        if len(self._picture_headers) < _HEADER_NAMES_MAX:
            self._picture_headers.update(headers)

    def note_picture_of(self, order_id: str, file_name: str) -> int:
        """Counts one GET of a picture with a good URL, and returns how many came for it before."""
        if order_id in self._orders:
            self._asks_by_order[order_id] += 1
        before = self._asks_by_url.pop(file_name, 0)
        self._asks_by_url[file_name] = before + 1
        if len(self._asks_by_url) > ORDERS_MAX:
            self._asks_by_url.popitem(last=False)
        return before

    def report(self, *, tag: str | None = None, prompt: str | None = None) -> dict[str, Any]:
        """Everything, or only the remembered orders with that tag, or with that text somewhere in the prompt.

        Shape: {asked, billed, orders: [as Ordered], pictures: {asked, headers}}. Filtered, all counts are of the
        orders shown; the headers are those of every picture.
        """
        chosen = {
            order_id: ordered
            for order_id, ordered in self._orders.items()
            if (tag is None or ordered.tag == tag) and (prompt is None or prompt in (ordered.prompt or ""))
        }
        everything = tag is None and prompt is None
        return {
            "asked": self._asked if everything else len(chosen),
            "billed": self._billed if everything else sum(ordered.billed for ordered in chosen.values()),
            "orders": [asdict(ordered) for ordered in chosen.values()],
            "pictures": {
                "asked": self._pictures_asked
                if everything
                else sum(self._asks_by_order[order_id] for order_id in chosen),
                "headers": sorted(self._picture_headers),
            },
        }


def _text(value: object, length_max: int) -> str | None:
    return readable(value[:length_max]) if isinstance(value, str) else None
