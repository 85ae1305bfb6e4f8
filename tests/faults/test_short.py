"""Do the promises hold under a few faults of each kind, on every day?

The long run of the same parts is `python -m tests.faults`.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.frame import Part, Piece
from tests.faults.parts import PARTS


@pytest.mark.parametrize("part", [part for part in PARTS if part.times_short], ids=lambda part: part.name)
def test_a_few_faults_break_nothing(part: Part, copy_cluster: Callable[[Path], Path], tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"part {part.name}, seed {seed}")

    copy_cluster(tmp_path / "postgres")
    figures = part.run(Piece(part.times_short, seed, tmp_path))

    assert figures.broken == ()
    assert all(figures.did.values()), f"a fault that did not happen proves nothing: {figures.did}"
