"""Do commands do to a running service what they say: limits that bind, keys that die, orders settled, books checked?"""

import json

import httpx
import pytest

from tests.cli.conftest import PRICE_MICROS
from tests.installation import Installation
from tests.service import rows

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
    assert {row["USER"] for row in rows_by_id.values()} == {"first"}


def test_one_generation_is_shown_in_lines_that_fit_a_terminal(running: Installation) -> None:
    generation_id = running.order("a fox").json()["id"]

    lines = running.run("generations", "show", generation_id).stdout.splitlines()

    assert max(map(len, lines)) <= 100
    assert ["id", generation_id] in [line.split() for line in lines]
    assert any(line.startswith("images ") and "storage=folder" in line for line in lines)


def test_what_was_asked_in_other_words_and_what_was_used_is_shown(running: Installation) -> None:
    generation_id = running.order("a fox", model="gpt-image-2", size="1024x1024", quality="low").json()["id"]
    mapped_id = running.order("a fox", size="auto").json()["id"]

    used, mapped = (running.ask("generations", "show", one) for one in (generation_id, mapped_id))

    assert (used["n"], used["used_micros"], used["asked"]) == (1, used["settled_micros"], None)
    assert (mapped["used_micros"], mapped["asked"]) == (None, {"model": None, "size": "auto", "quality": None})


def test_what_is_resolved_is_shown_as_held_no_more(running: Installation) -> None:
    generation_id = order(running, running.key, "a fox [[drop]]").json()["id"]

    head, line = running.run("generations", "resolve", generation_id, "--not-billed").stdout.splitlines()

    columns = head.replace("USD HELD", "USD_HELD").replace("USD SETTLED", "USD_SETTLED").split()
    row = dict(zip(columns, line.split(), strict=True))
    assert (row["STATE"], row["USD_HELD"], row["USD_SETTLED"]) == ("failed", "-", "0.00")


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


def order(installation: Installation, key: str, prompt: str = "a fox") -> httpx.Response:
    return installation.client.post("/images", json={"prompt": prompt}, headers={"authorization": f"Bearer {key}"})


def embedded_url(installation: Installation) -> str:
    """Where the private Postgres of a running installation is."""
    port = json.loads((installation.data / "postgres.owner").read_text())["port"]
    password = (installation.data / "postgres.password").read_text()
    return f"postgresql://imagekeep:{password}@127.0.0.1:{port}/imagekeep"
