"""Is a full process quick to say so, and does it finish what it took, without keeping the memory?"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.overload import overload


def test_a_crowd_on_few_slots_is_refused_at_once_and_all_that_was_taken_is_finished(
    copy_cluster: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.SystemRandom().randrange(2**32)

    copy_cluster(tmp_path / "postgres")
    figures = overload(clients=200, slots=16, seconds=5, seed=seed, folder=tmp_path)

    with capsys.disabled():
        print(f"\n    seed {seed}: {figures}")
    assert figures.surprises == {}
    assert figures.refused > figures.completed > 16
    assert (figures.unfinished, figures.differences) == (0, 0)
    # The figure to reach is 100 ms on a machine of its own; here others may be at work.
    assert figures.service_p99_ms < 250
    assert figures.rss_after_mib < figures.rss_before_mib * 1.25
