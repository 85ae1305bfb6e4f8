"""What can a verification say, and how is a long one told in little?"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

# Of each kind; the rest is counted. A bucket that lost everything would else be told a million times over.
LISTED_PER_KIND_MAX = 100


@dataclass(frozen=True)
class Checked:
    """So many of these were looked at."""

    what: str
    count: int


@dataclass(frozen=True)
class Violation:
    """Something that should never be. `subject` is the scope, generation, image or key that it is about."""

    kind: str
    subject: str
    detail: str


@dataclass(frozen=True)
class Untold:
    """A storage doesn't say how so many of these stand. That is no proof of anything."""

    storage: str
    what: str
    count: int
    why: str


@dataclass(frozen=True)
class Note:
    """Something worth a look that need not be wrong."""

    subject: str
    detail: str


Finding = Checked | Violation | Untold | Note


@dataclass(frozen=True)
class Report:
    """What a verification found. `violations` counts all by kind, `listed` holds the first hundred of each kind."""

    checked: Mapping[str, int]
    violations: Mapping[str, int]
    listed: Sequence[Violation]
    untold: Sequence[Untold]
    notes: Sequence[Note]

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong, as far as it could be told."""
        return not self.violations


async def sum_up(findings: AsyncIterator[Finding]) -> Report:
    """Take findings as they come, and keep counts and the first few."""
    checked: Counter[str] = Counter()
    violations: Counter[str] = Counter()
    untold: Counter[tuple[str, str, str]] = Counter()
    listed: list[Violation] = []
    notes: list[Note] = []
    async for finding in findings:
        match finding:
            case Checked():
                checked[finding.what] += finding.count
            case Violation():
                violations[finding.kind] += 1
                if violations[finding.kind] <= LISTED_PER_KIND_MAX:
                    listed.append(finding)
            case Untold():
                untold[finding.storage, finding.what, finding.why] += finding.count
            case Note():
                notes.append(finding)
    return Report(
        checked,
        violations,
        listed,
        [Untold(storage, what, count, why) for (storage, what, why), count in untold.items()],
        notes,
    )
