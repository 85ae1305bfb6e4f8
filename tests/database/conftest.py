"""What do the tests of this room share: a way to Postgres that can be spoilt, and data
folders that the private one has been in?"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from app.database.embedded import open_embedded
from tests.database.launcher import ask
from tests.tcp_proxy import TcpProxy


@pytest.fixture
def proxy(database_url: str) -> Iterator[TcpProxy]:
    """What stands between a pool and its Postgres, and can be spoilt."""
    url = make_url(database_url)
    with TcpProxy(url.host or "", url.port or 0) as opened:
        yield opened


@pytest.fixture(scope="module")
def made_once(copy_cluster: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = copy_cluster(tmp_path_factory.mktemp("made") / "data")
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
