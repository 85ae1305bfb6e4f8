"""What stands in the pages of documentation: which commands, links, tables and names?"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")),
)

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block, and the heading that it stands under."""

    heading: str
    language: str
    text: str


def read(page: str) -> str:
    """The text of a page, named from the root of the project."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = read(page)
    return [Block(_heading_before(text, match.start()), match[1], match[2]) for match in _FENCE.finditer(text)]


def _heading_before(text: str, place: int) -> str:
    headings = _HEADING.findall(_FENCE.sub("", text[:place]))
    return str(headings[-1]) if headings else ""


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def links(page: str) -> list[str]:
    """Where the links of a page go, except out into the web."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]


def anchors(page: str) -> set[str]:
    """What can stand after the # of a link to a page, as GitHub makes it from headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose(page))}


def rows(page: str) -> dict[str, list[str]]:
    """The rows of all tables of a page whose first cell is one name in backticks, by that name."""
    cells = [line.strip().strip("|").split("|") for line in prose(page).splitlines() if line.startswith("| `")]
    named = [[cell.strip() for cell in row] for row in cells if re.fullmatch(r"`\w+`", row[0].strip())]
    return {row[0].strip("`"): row[1:] for row in named}


def commands(page: str) -> Iterator[list[str]]:
    """What follows the word `imagekeep` in every command line of a page's shell blocks."""
    for block in blocks(page):
        if block.language != "sh":
            continue
        for line in re.split(r"\n|&&", block.text.replace("\\\n", " ")):
            words = shlex.split(line, comments=True)
            places = [place for place, word in enumerate(words) if word.rpartition("/")[2] == "imagekeep"]
            if places:
                yield words[places[-1] + 1 :]


def mentioned_commands(page: str) -> list[list[str]]:
    """The same for what prose mentions in backticks."""
    return [text.split() for text in re.findall(r"`imagekeep ([^`]+)`", prose(page))]
