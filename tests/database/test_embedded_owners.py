"""Has the private Postgres one owner at a time, through races, kills and what the dead leave behind?"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.database.cluster import Place, lock_file, try_lock
from app.database.embedded import EmbeddedPostgresError, open_embedded
from tests.database.launcher import IS_ROOT, answer, ask, launched, within_reach

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")


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
        await_true(lambda: no_postgres_is_left(data_dir), seconds=20)
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
