"""What do tests of the bench share: its neighbourhood, on whatever cores there are?"""

import os
from collections.abc import Iterator

import pytest

from bench.neighbourhood import Neighbourhood, open_neighbourhood
from bench.processes import Cores


@pytest.fixture(scope="package")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbourhood]:
    """Upstream, bucket and Postgres, as a measurement has them; the test process itself is not pinned."""
    given = frozenset(os.sched_getaffinity(0))
    with open_neighbourhood(tmp_path_factory.mktemp("bench"), Cores(given, given)) as neighbourhood:
        yield neighbourhood
