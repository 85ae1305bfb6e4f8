"""What do the tests of this room share: data folders that the private Postgres has been in?"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.database.embedded import open_embedded
from tests.database.launcher import ask


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("made") / "data"
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        ask(postgres.url, "CREATE TABLE kept AS SELECT 'a picture' AS what")
    return data_dir


@pytest.fixture
def data_dir(made_once: Path, tmp_path: Path) -> Path:
    """A data folder that has been used before, and that nobody uses now."""
    copy = tmp_path / "data"
    subprocess.run(["cp", "-a", made_once, copy], check=True)
    return copy


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="imagekeep-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
