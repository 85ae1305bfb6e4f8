"""Does the private Postgres run whoever starts it, root too, and where its own user may not enter?"""

import os
import pwd
import shutil
from pathlib import Path

import pytest

from app.database.cluster import Place
from app.database.embedded import open_embedded
from tests.database.launcher import IS_ROOT, answer, ask, carried, launched, within_reach

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can hand Postgres to another user")


@as_root
def test_root_runs_it_as_another_user_under_a_folder_that_one_cannot_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with open_embedded(closed / "data", role="serve", durable=False) as postgres:
        assert ask(postgres.url, "SELECT 1") == (1,)
        assert Place(closed / "data").cluster.stat().st_uid != 0
        rest = [closed, closed / "data", *(p for p in (closed / "data").iterdir() if p.name != "postgres")]
        assert {(p.name, p.stat().st_uid, p.stat().st_mode & 0o077) for p in rest} == {(p.name, 0, 0) for p in rest}


@as_root
def test_binaries_that_the_other_user_cannot_reach_are_copied_once(tmp_path: Path, open_folder: Path) -> None:
    package = carried("pginstall18").parents[1]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in (f"{package.name}/pginstall18", f"{package.name}.libs"):
        shutil.copytree(package.parent / name, closed / name, ignore=shutil.ignore_patterns("include", "*.a"))
    unreachable = closed / package.name / "pginstall18" / "bin"

    copies = []
    for _ in range(2):
        with launched(tmp_path / "data", "serve", binaries_dir=unreachable, temporary=open_folder) as serve:
            assert ask(answer(serve)["url"], "SELECT 1") == (1,)
        copies.append([(copy.name, copy.stat().st_ino) for copy in open_folder.iterdir()])
    # A sweeper of temporary files took one; the copy is made whole again.
    (swept,) = open_folder.glob("*/*/*/share/postgresql/timezone/Etc/UTC")
    swept.unlink()
    with launched(tmp_path / "data", "serve", binaries_dir=unreachable, temporary=open_folder) as serve:
        assert ask(answer(serve)["url"], "SELECT 1") == (1,)

    assert swept.exists()
    assert len(copies[0]) == 1
    assert copies[0] == copies[1]
    assert {(p.stat().st_uid, p.stat().st_mode & 0o777) for p in open_folder.rglob("*")} == {(0, 0o755)}


@as_root
def test_a_plain_user_runs_it_as_itself_and_root_joins_as_that_user(open_folder: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    data_dir = open_folder / "data"
    bin_dir = within_reach(data_dir)
    data_dir.mkdir()
    os.chown(data_dir, nobody, nobody)
    with launched(data_dir, "serve", uid=nobody, binaries_dir=bin_dir) as serve:
        assert ask(answer(serve)["url"], "CREATE TABLE mine (a int)") is None
    with open_embedded(data_dir, role="command", durable=False) as postgres:
        assert ask(postgres.url, "SELECT count(*) FROM mine") == (0,)
    with launched(data_dir, "serve", uid=nobody, binaries_dir=bin_dir) as serve:
        assert ask(answer(serve)["url"], "SELECT count(*) FROM mine") == (0,)


@as_root
def test_a_user_without_a_name_is_told_why_postgres_refuses_it(open_folder: Path) -> None:
    open_folder.chmod(0o777)
    data_dir = open_folder / "data"
    with launched(data_dir, "serve", uid=54321, binaries_dir=within_reach(data_dir)) as serve:
        assert "uid 54321, which has no name" in answer(serve)["error"]


@as_root
def test_a_folder_of_somebody_else_is_refused(data_dir: Path, open_folder: Path) -> None:
    data_dir.rename(open_folder / "data")
    with launched(open_folder / "data", "serve", uid=pwd.getpwnam("nobody").pw_uid) as serve:
        assert "cannot be written" in answer(serve)["error"]
