"""Does an installation with a bucket finish its work where its folder can't be made?

So it is in a container whose file system is read-only, and for a command that is run from anywhere.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.generations import records
from app.generations.records import Held
from app.generations.recovery import recover_once
from app.generations.verify import Care, verify
from app.settings import Settings
from app.wiring import Neighbours, Wiring, open_wiring
from tests.makers import make_caller, reserve
from tests.s3_server import running_s3

pytestmark = pytest.mark.anyio


@pytest.fixture
async def wiring(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wiring]:
    """Everything a process shares, with a data folder that nobody can make: a file stands in its way."""
    (tmp_path / "file").write_text("")
    with running_s3(tmp_path / "s3") as s3:
        for name, value in s3.credentials.items():
            monkeypatch.setenv(name, value)
        settings = Settings(
            _env_file=None,
            tt_api_key="a-key",
            data_dir=tmp_path / "file" / "data",
            s3_bucket=s3.bucket,
            s3_endpoint_url=s3.url,
            s3_region="us-east-1",
            s3_path_style=True,
        )
        async with open_wiring(settings, Neighbours(database_url)) as opened:
            yield opened


async def test_what_a_dead_runner_left_pending_ends_unknown_and_a_person_can_resolve_it(wiring: Wiring) -> None:
    async with wiring.database.transaction() as tx:
        caller = await make_caller(tx)
    async with wiring.database.statement() as connection:
        held = await reserve(connection, caller, lease_seconds=-1)
    assert isinstance(held, Held)

    await recover_once(wiring.database, wiring.driver, wiring.stores, lease_seconds=60)

    async with wiring.database.statement() as connection:
        left = await records.find(connection, held.generation.id)
    assert left is not None
    assert left.state == "unknown"
    resolved = await wiring.driver.resolve(left, billed=False, by="ada")
    assert resolved is not None
    assert resolved.state == "failed"


async def test_verify_goes_through_what_there_is(wiring: Wiring) -> None:
    report = await verify(wiring.database, wiring.storages, Care(lease_seconds=60, prefixes={}))

    assert report.holds
