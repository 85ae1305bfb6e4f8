"""Are the planted bugs still mistakes in the code as it is now?"""

from pathlib import Path

import pytest

from tests.faults.frame import Piece
from tests.faults.parts import PARTS
from tests.faults.planted import BUGS, CHECKOUT, Bug, plant


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_fits_the_code_and_has_a_part_that_looks_for_it(bug: Bug) -> None:
    assert (CHECKOUT / bug.file).read_text().count(bug.right) == 1
    if bug.times:
        assert bug.part in {part.name for part in PARTS}
    else:
        assert (CHECKOUT / bug.part.partition("::")[0]).exists()


def test_a_planted_bug_is_caught(tmp_path: Path) -> None:
    number = next(number for number, bug in enumerate(BUGS) if bug.name == "a window rolled back at midnight")

    figures = plant(Piece(1, 1, tmp_path, number))

    assert figures.did == {"planted": 1, "caught": 1}
    assert figures.broken == ()
