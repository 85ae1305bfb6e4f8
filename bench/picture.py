"""How do the figures look: what an order costs, as a picture?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.figures import Figures
from bench.record import Measured
from bench.table import number_of

_WIDTH, _LABEL_WIDTH, _BAR_WIDTH = 760, 250, 400
_ROW, _BAR, _TITLE = 26, 16, 44
_OURS, _OTHERS, _POSTGRES, _INK, _PAPER = "#1f6feb", "#8c959f", "#54aeff", "#24292f", "#ffffff"


@dataclass(frozen=True)
class _Bar:
    label: str
    value: float
    # What stands at the end of the bar in another colour, and is not in `value`.
    more: float = 0

    @property
    def whole(self) -> float:
        return self.value + self.more


def draw(record: Mapping[str, Measured]) -> str:
    """Return an SVG of what an order costs each of them, and how many a second they answer; the same bytes each time.

    Without figures it says so.
    """
    orders = record["orders"].medians if "orders" in record else {}
    panels = [
        ("CPU ms per order, 64 in flight (of Postgres in light blue)", _cpu_bars(orders)),
        ("Orders per second, 64 in flight, one process on one core", _rate_bars(orders)),
    ]
    drawn: list[str] = []
    top = 10
    for title, bars in panels:
        drawn.append(_text(10, top + 22, title if bars else f"{title}: not measured", weight="bold"))
        top += _TITLE
        drawn += [line for place, bar in enumerate(bars) for line in _draw_bar(bar, top + place * _ROW, _most(bars))]
        top += len(bars) * _ROW
    height = top + 10
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="What an order costs">'
    )
    paper = f'<rect width="{_WIDTH}" height="{height}" fill="{_PAPER}"/>'
    return "\n".join([opening, paper, *drawn, "</svg>", ""])


def _cpu_bars(orders: Mapping[str, Figures]) -> list[_Bar]:
    bars = []
    for name, figures in orders.items():
        if figures.cpu_ms_per_order is not None:
            # Of those without a database Postgres takes what it takes anyway.
            postgres = (figures.postgres_ms_per_order or 0) if _is_ours(name) else 0
            bars.append(_Bar(name, figures.cpu_ms_per_order, postgres))
    return bars


def _rate_bars(orders: Mapping[str, Figures]) -> list[_Bar]:
    return [_Bar(name, figures.orders_per_second) for name, figures in orders.items()]


def _is_ours(name: str) -> bool:
    return name.startswith("imagekeep")


def _most(bars: Sequence[_Bar]) -> float:
    return max(bar.whole for bar in bars) or 1


def _draw_bar(bar: _Bar, top: int, most: float) -> list[str]:
    colour = _OURS if _is_ours(bar.label) else _OTHERS
    width, more_width = (round(_BAR_WIDTH * value / most, 1) for value in (bar.value, bar.more))
    said = number_of(bar.value) + (f" + {number_of(bar.more)}" if bar.more else "")
    middle = top + _BAR - 3
    more = (
        f'<rect x="{_LABEL_WIDTH + width}" y="{top}" width="{more_width}" height="{_BAR}" fill="{_POSTGRES}"/>'
        if bar.more
        else ""
    )
    return [
        _text(_LABEL_WIDTH - 8, middle, bar.label, anchor="end"),
        f'<rect x="{_LABEL_WIDTH}" y="{top}" width="{width}" height="{_BAR}" fill="{colour}"/>{more}',
        _text(round(_LABEL_WIDTH + width + more_width + 8, 1), middle, said),
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    style = f'fill="{_INK}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'
