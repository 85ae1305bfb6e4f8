"""What came of driving the clients, by the last run of each, and how does docs/clients.md show it?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.clients.clients import Client

# Committed with the code that it is of: docs/clients.md shows what stands in it, and a test compares the two.
RECORD = Path(__file__).parent / "record.json"
PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
_BEGIN = "<!-- figures: written by `python -m tests.clients --table` -->\n"
_END = "<!-- end of figures -->"

_GOOD = ("yes", "has none")


@dataclass(frozen=True)
class Row:
    """One client's figures, of the code that git calls `code`; or `why` it could not be driven."""

    code: str
    version: str = ""
    url: str = "no"
    b64_json: str = "no"
    errors: str = "no"
    faults: str = "no"
    bills: str = "no"
    at_once: str = "no"
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether the client was driven, and nothing went wrong."""
        counted = all(len(set(figure.split(" of "))) == 1 and figure != "no" for figure in (self.errors, self.faults))
        told = all(cell in _GOOD for cell in (self.url, self.b64_json, self.at_once))
        return not self.why and counted and told and self.bills in ("0", "1")


def read_record(record: Path) -> dict[str, Row]:
    """Return the rows of a record by client; none when there is no such file."""
    if not record.exists():
        return {}
    return {name: Row(**row) for name, row in json.loads(record.read_text(encoding="utf-8")).items()}


def write_record(record: Path, rows: Mapping[str, Row]) -> None:
    """Keep these rows, and no others."""
    written = {name: asdict(row) for name, row in sorted(rows.items())}
    record.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def table(clients: Sequence[Client], rows: Mapping[str, Row]) -> str:
    """Return the rows of these clients as Markdown. One that was not driven is said to be so, and why."""
    lines = [
        "| client | version | URL | base64 | own errors | faults | bills a call | equal orders at once | code |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for client in clients:
        row = rows.get(client.name, Row("", why="not driven yet"))
        link = f"[{client.name}](clients/{client.page}.md)"
        if row.why:
            said = " ".join(row.why.split()).replace("|", "\\|")
            lines.append(f"| {link} | not driven: {said} | | | | | | | |")
            continue
        figures = (row.version, row.url, row.b64_json, row.errors, row.faults, row.bills, row.at_once, f"`{row.code}`")
        lines.append(f"| {link} | {' | '.join(figures)} |")
    return "\n".join(lines)


def show(page: Path, figures: str) -> None:
    """Write the figures into the page, where the old ones stand."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    assert end, f"{page} has no place for figures"
    page.write_text(f"{before}{begin}\n{figures}\n\n{end}{after}", encoding="utf-8")
