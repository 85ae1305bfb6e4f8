"""Does every command do what it says, beside a running service and without one, for a person and for a script?"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import make_url

from tests.installation import Installation, beside, eventually, free_port, running_installation
from tests.sandbox_server import RunningSandbox
from tests.service import rows

PRICE_MICROS = 10_000
NOBODY = "01a203a5-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with everything of its own."""
    env = {"UPSTREAM_TIMEOUT_SECONDS": "2", "PENDING_LEASE_SECONDS": "3", "RECOVERY_INTERVAL_SECONDS": "0.3"}
    with running_installation(tmp_path_factory.mktemp("cli"), env=env) as installation:
        yield installation


@pytest.fixture
def running(started: Installation) -> Installation:
    """It serves."""
    started.ensure(workers=1)
    return started


# Every verb


def test_every_verb_prints_one_json_document_beside_a_running_service(running: Installation) -> None:
    generation_id = running.order("a fox").json()["id"]

    use_every_verb(running, generation_id)


def test_every_verb_prints_one_json_document_without_a_service(running: Installation) -> None:
    generation_id = running.order("a fox").json()["id"]
    cut_off = running.begin("a fox [[hang]]")
    running.kill9()

    use_every_verb(running, generation_id)

    # Nobody else recovers now, and its lease has run out over all those commands.
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


# What users, keys and limits bind


def test_limits_bind_from_the_next_order_on_and_none_takes_them_away(running: Installation) -> None:
    running.ask("users", "add", "ada", "--images-per-day", "1")
    key = running.ask("keys", "create", "ada")["key"]
    assert order(running, key).status_code == 200
    refused = order(running, key)
    assert (refused.status_code, refused.json()["limit"]) == (429, "images_per_day")

    assert running.ask("users", "limits", "ada", "--images-per-day", "none", "--usd-per-month", "0.02") == [
        {
            "scope": f"user:{running.ask('users', 'list')[0]['id']}",
            "name": "micros_per_month",
            "maximum": 2 * PRICE_MICROS,
            "used": PRICE_MICROS,
            "resets_in_seconds": pytest.approx(16 * 86_400, abs=16 * 86_400),
        }
    ]
    assert order(running, key).status_code == 200
    refused = order(running, key)
    assert (refused.status_code, refused.json()["limit"]) == (429, "micros_per_month")

    running.ask("users", "disable", "ada")
    assert (order(running, key).status_code, order(running, key).json()["code"]) == (403, "user_disabled")
    running.ask("users", "enable", "ada")
    assert order(running, key).status_code == 429


def test_a_rotated_key_is_dead_and_its_limits_live_on_in_the_new_one(running: Installation) -> None:
    old = running.ask("keys", "create", "first")
    running.ask("keys", "limits", old["id"], "--images-total", "0")

    new = running.ask("keys", "rotate", old["id"])

    assert (order(running, old["key"]).status_code, order(running, old["key"]).json()["code"]) == (
        401,
        "api_key_invalid",
    )
    refused = order(running, new["key"])
    assert (refused.status_code, refused.json()["limit"], refused.json()["scope"]) == (429, "images_total", "key")
    running.ask("keys", "limits", new["id"], "--images-total", "none")
    assert order(running, new["key"]).status_code == 200

    running.ask("keys", "revoke", new["id"])
    assert order(running, new["key"]).status_code == 401


def test_a_limit_of_the_whole_installation_binds_everybody(running: Installation) -> None:
    (gauge,) = running.ask("limits", "--images-total", "0")
    refused = order(running, running.key)
    running.ask("limits", "--images-total", "none")

    assert (gauge["scope"], gauge["used"] > 0) == ("all", True), "what was used before is counted"
    assert (refused.status_code, refused.json()["scope"]) == (429, "all")
    assert order(running, running.key).status_code == 200


# What an operator looks after


def test_a_person_settles_what_is_unknown_by_what_the_account_says(running: Installation) -> None:
    running.ask("users", "add", "bob", "--images-per-day", "9")
    running.ask("limits", "--images-total", "999")
    key = running.ask("keys", "create", "bob")["key"]
    ids = [order(running, key, f"{animal} [[drop]]").json()["id"] for animal in ("a fox", "a hare")]
    listed = running.ask("generations", "list", "--state", "unknown", "--user", "bob")
    assert [(row["id"], row["held_micros"], row["settled_micros"]) for row in listed] == [
        (generation_id, PRICE_MICROS, None) for generation_id in reversed(ids)
    ]
    before = used_images(running)
    assert before["user"] == 2

    billed = running.ask("generations", "resolve", ids[0], "--billed")
    not_billed = running.ask("generations", "resolve", ids[1], "--not-billed")

    assert (billed["state"], billed["settled_micros"], billed["failure_code"]) == (
        "lost",
        PRICE_MICROS,
        "image_unavailable",
    )
    assert (not_billed["state"], not_billed["settled_micros"]) == ("failed", 0)
    # The user has both back; the installation has paid for one.
    assert used_images(running) == {"user": 0, "all": before["all"] - 1}
    (usage,) = [row for row in running.ask("usage") if row["user"] == "bob"]
    assert (usage["micros_lost"], usage["micros_held"], usage["micros_settled"]) == (PRICE_MICROS, 0, 0)
    assert running.ask("usage", "--month", "2020-02") == []
    again = running.run("generations", "resolve", ids[0], "--billed")
    assert (again.returncode, again.stdout, again.stderr.count("\n")) == (1, "", 1)
    running.ask("limits", "--images-total", "none")


def test_generations_are_listed_with_what_is_held_while_it_is_and_settled_once_it_is(running: Installation) -> None:
    done, unknown = running.order("a fox"), running.order("a fox [[drop]]")
    ids = {done.json()["id"]: ("-", "0.01"), unknown.json()["id"]: ("0.01", "-")}

    head, *lines = running.run("generations", "list", "--user", "first", "--limit", "2").stdout.splitlines()

    columns = head.replace("USD HELD", "USD_HELD").replace("USD SETTLED", "USD_SETTLED").split()
    rows_by_id = {line.split()[0]: dict(zip(columns, line.split(), strict=True)) for line in lines}
    assert {one: (row["USD_HELD"], row["USD_SETTLED"]) for one, row in rows_by_id.items()} == ids


def test_one_generation_is_shown_in_lines_that_fit_a_terminal(running: Installation) -> None:
    generation_id = running.order("a fox").json()["id"]

    lines = running.run("generations", "show", generation_id).stdout.splitlines()

    assert max(map(len, lines)) <= 100
    assert ["id", generation_id] in [line.split() for line in lines]
    assert any(line.startswith("images ") and "storage=folder" in line for line in lines)


def test_resolving_keeps_who_said_so(running: Installation) -> None:
    generation_id = order(running, running.key, "a fox [[drop]]").json()["id"]

    running.ask("generations", "resolve", generation_id, "--not-billed", "--by", "grace")

    detail = running.ask("generations", "show", generation_id)["failure_detail"]
    assert detail.startswith("resolved as not billed by grace at 20")


def test_verify_holds_beside_a_running_service_and_names_the_image_that_was_spoiled(running: Installation) -> None:
    generation_id = running.order("a fox").json()["id"]
    (image,) = running.ask("generations", "show", generation_id)["images"]
    path = running.data / "images" / image["key"]
    body = path.read_bytes()

    whole = running.ask("verify", "--bytes")
    path.write_bytes(body[::-1])
    by_size = running.ask("verify")
    spoiled = running.run("verify", "--bytes", "--json")
    told = running.run("verify", "--bytes")
    path.write_bytes(body)

    assert (whole["holds"], whole["violations"], whole["cannot_tell"]) == (True, {}, [])
    assert whole["checked"]["images"] >= 1
    assert by_size["holds"], "it has the right size"
    assert (spoiled.returncode, spoiled.stderr) == (1, "")
    report = json.loads(spoiled.stdout)
    assert [(found["kind"], found["subject"]) for found in report["listed"]] == [("image_bytes", image["id"])]
    assert told.returncode == 1
    assert told.stdout.startswith("Checked: ")
    assert f"image_bytes: 1\n  {image['id']}\n" in told.stdout
    assert told.stdout.endswith("\nNot as it should be: 1.\n")


def used_images(installation: Installation) -> dict[str, int]:
    """What bob's and the installation's budgets say."""
    (bob,) = installation.ask("users", "limits", "bob")
    (everybody,) = installation.ask("limits")
    return {"user": bob["used"], "all": everybody["used"]}


def test_reconcile_exits_with_1_and_names_the_counter_that_is_wrong(running: Installation) -> None:
    scope = "user:" + next(user["id"] for user in running.ask("users", "list") if user["name"] == "first")
    url = embedded_url(running)
    rows(url, "UPDATE budgets SET images_day = images_day + 1 WHERE scope = %s", scope)

    wrong = running.run("reconcile", "--json")
    rows(url, "UPDATE budgets SET images_day = images_day - 1 WHERE scope = %s", scope)

    (difference,) = json.loads(wrong.stdout)
    assert (wrong.returncode, wrong.stderr) == (1, "")
    assert (difference["scope"], difference["counter"]) == (scope, "images_day")
    assert difference["counted"] == difference["recounted"] + 1
    assert running.ask("reconcile") == []


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
    assert early.stderr == "imagekeep: the database has no tables yet: run `imagekeep migrate` first\n"
    assert migrated["before"] is None
    assert installation.ask("users", "list") == []


def order(installation: Installation, key: str, prompt: str = "a fox") -> httpx.Response:
    return installation.client.post("/images", json={"prompt": prompt}, headers={"authorization": f"Bearer {key}"})


def answered(url: str) -> dict[str, Any] | None:
    try:
        report: dict[str, Any] = httpx.get(url).json()
    except httpx.TransportError:
        return None
    return report


def embedded_url(installation: Installation) -> str:
    """Where the private Postgres of a running installation is."""
    port = json.loads((installation.data / "postgres.owner").read_text())["port"]
    password = (installation.data / "postgres.password").read_text()
    return f"postgresql://imagekeep:{password}@127.0.0.1:{port}/imagekeep"
