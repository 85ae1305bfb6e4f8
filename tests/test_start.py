"""Does a start go without what it doesn't need: what was imported, and how often was it looked through?"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.installation import Installation, beside, running_installation
from tests.sandbox_server import RunningSandbox

# What each of them is for: a bucket; a schema that has to be changed, the sandbox, which is a process of its own,
# models of pydantic's old version, and what typer shows its help with.
OF_A_BUCKET = {"boto3", "botocore", "s3transfer", "urllib3"}
NOT_NEEDED = {"alembic", "mako", "app.sandbox", "pydantic.v1.main", "rich.text"} | OF_A_BUCKET


def imports(stderr: Path) -> list[str]:
    """What a process with PYTHONPROFILEIMPORTTIME has imported, in this order."""
    lines = [line for line in stderr.read_text().splitlines() if line.startswith("import time:")]
    return [line.rpartition("|")[2].strip() for line in lines]


def with_packages(names: Iterable[str]) -> set[str]:
    """These modules, and the packages that each is in."""
    return {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)}


@pytest.fixture(scope="module")
def started(
    module_database_url: str, shared_sandbox: RunningSandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    env = {**beside(module_database_url, shared_sandbox), "PYTHONPROFILEIMPORTTIME": "1"}
    with running_installation(tmp_path_factory.mktemp("start"), env=env) as installation:
        yield installation


def test_a_start_imports_nothing_that_a_prepared_database_and_a_folder_do_not_need(started: Installation) -> None:
    assert started.client.get("/healthz").status_code == 200

    found = with_packages(imports(started.stderr))

    assert {"app.main", "app.storage.folder", "app.api.native", "sqlalchemy.ext.asyncio"} <= found
    assert not NOT_NEEDED & found


def test_a_bucket_is_opened_once_it_answers_and_before_it_is_announced(
    module_database_url: str, shared_sandbox: RunningSandbox, tmp_path: Path
) -> None:
    bucket = {"S3_BUCKET": "pictures", "S3_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "an-id"}
    env = {**beside(module_database_url, shared_sandbox), **bucket, "AWS_SECRET_ACCESS_KEY": "a-secret"}

    with running_installation(tmp_path, env={**env, "PYTHONPROFILEIMPORTTIME": "1"}) as installation:
        found = imports(installation.stderr)

    # uvicorn imports this as it starts to serve.
    serving = found.index("uvicorn.protocols.http.httptools_impl")
    assert not OF_A_BUCKET & with_packages(found[:serving])
    assert with_packages(found[serving:]) >= OF_A_BUCKET


def looked_for_garbage(started: Installation) -> float:
    """How often the process has looked for garbage among its youngest objects."""
    figures = started.client.get("/metrics").text
    found = re.search(r'python_gc_collections_total\{generation="0"\} (\S+)', figures)
    assert found is not None
    return float(found[1])


def test_garbage_is_looked_for_while_it_serves_and_hardly_while_it_imports(started: Installation) -> None:
    by_imports = looked_for_garbage(started)

    # Seven times what a serving process lets go by.
    started.client.post("/images", json={"prompt": [[] for _ in range(70_000)]})

    # Some 400 times, if Python is left to itself.
    assert by_imports < 100
    assert looked_for_garbage(started) >= by_imports + 5
