"""Does every command print what was asked for, beside a running service and without one, for a person and a script?"""

import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import make_url

from tests.cli.conftest import PENDING_LEASE_SECONDS, PRICE_MICROS
from tests.installation import Installation, beside, eventually, free_port
from tests.sandbox_server import RunningSandbox
from tests.service import rows

NOBODY = "01a203a5-0000-7000-8000-000000000000"


# What it prints


def test_every_verb_prints_one_json_document_beside_a_running_service(running: Installation) -> None:
    generation_id = running.order("a fox").json()["id"]

    use_every_verb(running, generation_id)


def test_every_verb_prints_one_json_document_without_a_service(running: Installation) -> None:
    generation_id = running.order("a fox").json()["id"]
    cut_off = running.begin("a fox [[hang]]")
    running.kill9()
    lease_ends = time.monotonic() + PENDING_LEASE_SECONDS

    use_every_verb(running, generation_id)

    # Nobody else recovers now, and its lease has run out.
    time.sleep(max(0, lease_ends - time.monotonic()))
    recovered = running.run("recover", "--json")
    assert json.loads(recovered.stdout) == {"claimed": 1, "ended": 1, "erased": 0, "unspooled": 0}
    assert (recovered.returncode, json.loads(recovered.stderr)["generation_id"]) == (0, cut_off), "it is warned of"
    assert running.ask("generations", "show", cut_off)["state"] == "unknown"


def use_every_verb(installation: Installation, generation_id: str) -> None:
    """All that needs no upstream; what does not build on another is run at once, as operators' scripts do."""
    name = f"user-{uuid4().hex[:8]}"
    user = installation.ask("users", "add", name, "--images-per-day", "3", "--usd-per-month", "12.50")
    assert (user["name"], user["disabled"]) == (name, False)
    assert (user["limits"]["images_per_day_max"], user["limits"]["micros_per_month_max"]) == (3, 12_500_000)
    key = installation.ask("keys", "create", name)
    assert key.keys() == {"id", "user", "key", "created_at"}
    assert re.fullmatch(r"ik_user_[0-9A-Za-z]{38}", key["key"])

    commands = {
        "migrate": ["migrate"],
        "users": ["users", "list"],
        "user limits": ["users", "limits", name],
        "keys": ["keys", "list", name],
        "key limits": ["keys", "limits", key["id"], "--images-total", "7"],
        "limits": ["limits"],
        "usage": ["usage"],
        "reconcile": ["reconcile"],
        "generations": ["generations", "list", "--user", "first"],
        "generation": ["generations", "show", generation_id],
        "move": ["storage", "move"],
    }
    with ThreadPoolExecutor(3) as threads:
        said = dict(
            zip(commands, threads.map(lambda command: installation.ask(*command), commands.values()), strict=True)
        )

    assert said["migrate"]["before"] == said["migrate"]["now"]
    assert {"first", name} <= {row["name"] for row in said["users"]}
    assert [(gauge["name"], gauge["maximum"], gauge["used"]) for gauge in said["user limits"]] == [
        ("images_per_day", 3, 0),
        ("micros_per_month", 12_500_000, 0),
    ]
    assert [(row["id"], row["last_four"], row["revoked_at"]) for row in said["keys"]] == [
        (key["id"], key["key"][-4:], None)
    ]
    assert [(gauge["scope"], gauge["maximum"]) for gauge in said["key limits"]] == [(f"key:{key['id']}", 7)]
    assert said["limits"] == []
    assert said["usage"][0]["user"] == "first"
    assert said["reconcile"] == []
    assert generation_id in {row["id"] for row in said["generations"]}
    assert (said["generation"]["state"], said["generation"]["settled_micros"]) == ("completed", PRICE_MICROS)
    assert said["generation"]["images"][0]["storage"] == "folder"
    assert "prompt" not in said["generation"]
    assert said["move"] == {"to": "folder", "images": 0, "bytes": 0, "failures": []}

    verified = installation.run("verify", "--json")
    # Without a service, what was cut off is found to be left: nobody else recovers now.
    assert set(json.loads(verified.stdout)["violations"]) <= {"lease_stale"}

    rotated = installation.ask("keys", "rotate", key["id"])
    assert rotated["id"] != key["id"]
    assert installation.ask("keys", "revoke", rotated["id"])["revoked_at"] is not None
    assert installation.ask("users", "disable", name)["disabled"] is True
    assert installation.ask("users", "enable", name)["disabled"] is False


def test_without_json_a_person_gets_a_table(running: Installation) -> None:
    done = running.run("users", "list")

    head, *lines = done.stdout.splitlines()
    assert head.split() == ["ID", "NAME", "DISABLED", "LIMITS"]
    assert any("first" in line and "images_per_day_max=100" in line for line in lines)


def test_the_sandbox_runs_alone_until_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "app", "sandbox", "--port", str(port), "--json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sandbox:
        try:
            assert sandbox.stdout is not None
            told = json.loads(sandbox.stdout.readline())
            report = eventually(lambda: answered(told["witness"]))
            sandbox.send_signal(signal.SIGINT)
            rest, complaints = sandbox.communicate(timeout=10)
        finally:
            sandbox.kill()

    assert told == {"url": f"http://127.0.0.1:{port}", "witness": f"http://127.0.0.1:{port}/witness"}
    assert report["asked"] == 0
    assert (rest, complaints, sandbox.returncode) == ("", "", 0)


# What it refuses


def test_the_sandbox_on_a_port_that_is_taken_is_told_in_a_sentence(running: Installation) -> None:
    done = running.run("sandbox", "--port", str(running.port), "--json")

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"imagekeep: Port {running.port} on 127.0.0.1 can't be had")


@pytest.mark.parametrize(
    "command",
    [
        ["users", "list"],
        ["reconcile"],
        ["verify"],
        ["recover"],
        ["storage", "move"],
        ["generations", "list"],
        ["keys", "create", "x"],
    ],
    ids=" ".join,
)
def test_where_there_is_no_installation_a_command_says_so_and_makes_none(command: list[str], tmp_path: Path) -> None:
    nowhere = Installation(tmp_path, {})

    done = nowhere.run(*command, "--json")

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"imagekeep: there is no installation here (DATA_DIR={nowhere.data})")
    assert not nowhere.data.exists()


def test_adding_a_user_begins_an_installation(tmp_path: Path) -> None:
    fresh = Installation(tmp_path, {})

    fresh.ask("users", "add", "ada")

    assert [user["name"] for user in fresh.ask("users", "list")] == ["ada"]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["users", "add", "first"], "there is a user 'first' already"),
        (["users", "add", " "], "a user's name must be printable and not empty"),
        (["keys", "create", "nobody"], "there is no user 'nobody'"),
        (["keys", "rotate", NOBODY], f"there is no key {NOBODY}"),
        (["generations", "show", NOBODY], f"there is no generation {NOBODY}"),
        (["generations", "resolve", NOBODY, "--billed"], f"there is no generation {NOBODY} in the state unknown"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_sentence_on_standard_error(
    running: Installation, command: list[str], sentence: str
) -> None:
    done = running.run(*command, "--json")

    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"imagekeep: {sentence}\n")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["keys", "revoke", "ik_mistaken"], "must be an id, as `list` and --json show it"),
        (["generations", "show", "ik_mistaken"], "must be an id, as `list` and --json show it"),
        (["generations", "resolve", NOBODY], "or --not-billed must be given"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_was_meant_is_asked_for_and_what_was_typed_is_not_repeated(
    tmp_path: Path, command: list[str], sentence: str
) -> None:
    done = Installation(tmp_path, {}).run(*command)

    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert "ik_mistaken" not in done.stderr


def test_a_limit_that_is_no_number_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    nowhere = Installation(tmp_path, {})

    done = nowhere.run("users", "add", "ada", "--images-per-day", "many")

    assert (done.returncode, done.stdout) == (2, "")
    assert "must be a whole number, or none" in done.stderr
    assert not nowhere.data.exists()


def test_an_empty_database_is_told_of_and_migrated(postgres_url: str, sandbox: RunningSandbox, tmp_path: Path) -> None:
    name = f"empty_{uuid4().hex}"
    rows(postgres_url, f"CREATE DATABASE {name}")
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    installation = Installation(tmp_path, beside(url, sandbox))

    early = installation.run("users", "list", "--json")
    migrated = installation.ask("migrate")

    assert (early.returncode, early.stdout) == (1, "")
    assert early.stderr == "imagekeep: the database was not migrated yet: run `imagekeep migrate` first\n"
    assert migrated["before"] is None
    assert installation.ask("users", "list") == []


def answered(url: str) -> dict[str, Any] | None:
    try:
        report: dict[str, Any] = httpx.get(url).json()
    except httpx.TransportError:
        return None
    return report
