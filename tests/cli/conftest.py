"""What do the tests of the commands share: an installation, a service running in it, and what an image costs there?"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.installation import Installation, running_installation

PRICE_MICROS = 10_000
PENDING_LEASE_SECONDS = 3


@pytest.fixture(scope="module")
def started(copy_cluster: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with everything of its own."""
    env = {
        "UPSTREAM_TIMEOUT_SECONDS": "2",
        "PENDING_LEASE_SECONDS": str(PENDING_LEASE_SECONDS),
        "RECOVERY_INTERVAL_SECONDS": "0.3",
    }
    folder = tmp_path_factory.mktemp("cli")
    copy_cluster(folder / "data")
    with running_installation(folder, env=env) as installation:
        yield installation


@pytest.fixture
def running(started: Installation) -> Installation:
    """It serves."""
    started.ensure(workers=1)
    return started
