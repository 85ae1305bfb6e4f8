"""What becomes of a generation when the process that runs it is killed, cut off or frozen, in whatever state it was?

`crash` is one `kill -9` with a generation standing in every state, and one restart; each test looks at its own.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.installation import Installation, beside, eventually, running_installation
from tests.sandbox_server import RunningSandbox, running_sandbox
from tests.service import rows

# Seconds instead of minutes. The first is longer than it takes to see an order at upstream and kill its runner.
LEASES = {"UPSTREAM_TIMEOUT_SECONDS": "4", "PENDING_LEASE_SECONDS": "5", "GENERATED_LEASE_SECONDS": "2"}
PRICE_MICROS = 10_000

# By state, what leaves a generation there: the first four for good, the last two until the kill.
PROMPTS = {
    "completed": "a fox",
    "failed": "a fox [[refuse]]",
    "unknown": "a fox [[drop]]",
    "reset": "a fox [[reset]]",
    "lost": "a fox [[picture missing]] [[expires 1]]",
    "generated": "a fox [[picture flaky 5]]",
    "pending": "a fox [[hang]]",
}


@dataclass(frozen=True)
class Crash:
    """What was there when the process was killed, by the name of its prompt, and the installation that came after."""

    installation: Installation
    database_url: str
    sandbox: RunningSandbox
    ids: dict[str, str]
    before: dict[str, dict[str, Any]]

    def now(self, name: str) -> dict[str, Any]:
        """The generation's row as it stands."""
        return row_of(self.database_url, self.ids[name])

    def asked(self, name: str) -> int:
        """How often upstream was sent this order."""
        count: int = self.sandbox.witness(tag=name)["asked"]
        return count


@pytest.fixture(scope="module")
def own_database_url(postgres_url: str) -> str:
    """An empty database for this module; the installation migrates it."""
    name = f"crash_{uuid4().hex}"
    rows(postgres_url, f"CREATE DATABASE {name}")
    return make_url(postgres_url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def crash(own_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crash]:
    with running_sandbox() as sandbox:
        env = beside(own_database_url, sandbox, **LEASES)
        with running_installation(tmp_path_factory.mktemp("crash"), env=env) as installation:
            ids = {
                name: installation.begin(f"{prompt} [[id {name}]]", headers={"idempotency-key": name})
                for name, prompt in PROMPTS.items()
                if name not in ("generated", "pending")
            }
            for name, generation_id in ids.items():
                installation.reaches(generation_id, "unknown" if name == "reset" else name)
            for name in ("generated", "pending"):
                ids[name] = installation.begin(f"{PROMPTS[name]} [[id {name}]]", headers={"idempotency-key": name})
            installation.reaches(ids["generated"], "generated")
            eventually(lambda: sandbox.witness(tag="pending")["asked"])
            installation.kill9()
            before = {name: row_of(own_database_url, generation_id) for name, generation_id in ids.items()}
            installation.start()
            yield Crash(installation, own_database_url, sandbox, ids, before)


def test_pending_ends_unknown_with_its_hold_kept_and_is_never_sent_again(crash: Crash) -> None:
    assert crash.before["pending"]["state"] == "pending"

    told = crash.installation.reaches(crash.ids["pending"], "unknown")

    row = crash.now("pending")
    assert told["failure"]["code"] == "upstream_outcome_unknown"
    assert (row["held_micros"], row["settled_micros"]) == (PRICE_MICROS, None)
    assert crash.asked("pending") == 1


def test_generated_gets_its_picture_from_the_same_source(crash: Crash) -> None:
    assert crash.before["generated"]["state"] == "generated"

    told = crash.installation.reaches(crash.ids["generated"], "completed")

    row = crash.now("generated")
    assert httpx.get(told["images"][0]["url"]).headers["content-type"] == "image/png"
    assert (row["settled_images"], row["settled_micros"]) == (1, PRICE_MICROS)
    assert row["attempts"] >= 1
    assert row["source_urls"] is None, "a signature opens the picture"
    assert crash.asked("generated") == 1


def test_completed_answers_a_repeat_with_the_same_url(crash: Crash) -> None:
    (image,) = rows(crash.database_url, "SELECT * FROM images WHERE generation_id = %s", crash.ids["completed"])

    again = repeat(crash, "completed")

    assert again.status_code == 200
    assert again.json()["id"] == crash.ids["completed"]
    assert again.json()["images"][0]["url"] == f"{crash.installation.url}/i/{image['id']}.png"
    assert httpx.get(again.json()["images"][0]["url"]).headers["content-length"] == str(image["size_bytes"])
    assert crash.asked("completed") == 1


@pytest.mark.parametrize("name", ["completed", "failed", "unknown", "reset", "lost"])
def test_what_had_ended_is_not_moved(crash: Crash, name: str) -> None:
    # Recovery has looked at every row when it has found this one.
    crash.installation.reaches(crash.ids["pending"], "unknown")

    assert crash.now(name) == crash.before[name]
    assert crash.asked(name) == 1


@pytest.mark.parametrize(
    ("name", "settled_micros"), [("failed", 0), ("unknown", None), ("reset", None), ("lost", 10_000)]
)
def test_what_brought_no_picture_stands_in_the_books_as_what_it_cost(
    crash: Crash, name: str, settled_micros: int | None
) -> None:
    assert crash.before[name]["settled_micros"] == settled_micros


def test_a_repeat_of_an_order_that_was_cut_off_is_not_sent_again(crash: Crash) -> None:
    again = repeat(crash, "unknown")

    assert (again.status_code, again.json()["code"]) == (504, "upstream_outcome_unknown")
    assert again.json()["id"] == crash.ids["unknown"]
    assert crash.asked("unknown") == 1


def test_the_books_are_right_after_the_crash(crash: Crash) -> None:
    crash.installation.reaches(crash.ids["pending"], "unknown")
    crash.installation.reaches(crash.ids["generated"], "completed")

    assert crash.installation.ask("reconcile") == []

    (budget,) = rows(crash.database_url, "SELECT * FROM budgets")
    # Two were delivered; three may have been billed, and stay held. The lost one and the failed one were given back.
    assert (budget["images_day"], budget["micros_month"], budget["in_flight"]) == (5, 5 * PRICE_MICROS, 0)


@pytest.mark.parametrize("statement_too", [True, False], ids=["recovery-completes-it", "its-statement-outlives-it"])
def test_pending_whose_picture_is_stored_is_completed_with_that_picture(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path, statement_too: bool
) -> None:
    with (
        running_installation(tmp_path, env=beside(database_url, sandbox, **LEASES)) as installation,
        psycopg.connect(database_url.replace("+psycopg", "")) as holding,
    ):
        generation_id = installation.begin("a fox [[delay 0.7]] [[b64]]")
        # Held until the picture is stored and the statement that says so waits for the row.
        holding.execute("SELECT FROM generations WHERE id = %s FOR UPDATE", [generation_id])
        eventually(lambda: waiting_for_a_row(database_url))
        (stored,) = (path for path in (installation.data / "images").rglob("*.png"))
        installation.kill9()
        if statement_too:
            rows(database_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            eventually(lambda: not waiting_for_a_row(database_url))
        holding.rollback()

        installation.start()
        told = installation.reaches(generation_id, "completed")

        row = row_of(database_url, generation_id)
        assert httpx.get(told["images"][0]["url"]).content == stored.read_bytes()
        assert (row["settled_images"], row["settled_micros"], row["attempts"]) == (1, PRICE_MICROS, int(statement_too))
        assert sandbox.witness()["asked"] == 1
        assert len(rows(database_url, "SELECT id FROM images")) == 1
        assert installation.ask("reconcile") == []


# Two processes on one database


@pytest.fixture(scope="module")
def pair(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Installation, Installation, str]]:
    """Two installations that share a database and a picture folder, and the database's URL."""
    name = f"pair_{uuid4().hex}"
    rows(postgres_url, f"CREATE DATABASE {name}")
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    folder = tmp_path_factory.mktemp("pair")
    with running_sandbox() as sandbox:
        # Room for a picture that takes half of it, and yet a lease that a frozen process is soon beyond.
        leases = LEASES | {"GENERATED_LEASE_SECONDS": "3"}
        env = beside(url, sandbox, DATA_DIR=str(folder / "data"), **leases)
        with (
            running_installation(folder / "one", env=env) as one,
            running_installation(folder / "two", env=env) as two,
        ):
            two.key = one.key
            two.client.headers["authorization"] = f"Bearer {one.key}"
            yield one, two, url


@pytest.fixture
def replicas(pair: tuple[Installation, Installation, str]) -> Iterator[tuple[Installation, Installation, str]]:
    """Both of them running, whatever the test before did to them."""
    for installation in pair[:2]:
        installation.ensure(workers=1)
    yield pair
    if pair[0].process.poll() is None:
        thaw(pair[0])


def test_a_late_answer_counts_although_its_frozen_runner_was_given_up(
    replicas: tuple[Installation, Installation, str],
) -> None:
    one, two, database_url = replicas
    generation_id = one.begin("a fox [[delay 1]]")
    freeze(one)
    # By the database's clock the lease has run out; by the frozen process's own it has time left for the answer.
    rows(database_url, "UPDATE generations SET lease_until = now() - interval '1 s' WHERE id = %s", generation_id)
    two.reaches(generation_id, "unknown")

    thaw(one)
    told = two.reaches(generation_id, "completed")

    row = row_of(database_url, generation_id)
    assert httpx.get(told["images"][0]["url"]).status_code == 200
    assert (row["settled_images"], row["settled_micros"], row["failure_code"]) == (1, PRICE_MICROS, None)
    assert two.ask("reconcile") == []


def test_a_runner_that_was_frozen_past_its_lease_settles_nothing_twice(
    replicas: tuple[Installation, Installation, str],
) -> None:
    one, two, database_url = replicas
    generation_id = one.begin("a fox [[picture slow 1.5]]")
    one.reaches(generation_id, "generated")
    freeze(one)
    first = two.reaches(generation_id, "completed")

    thaw(one)
    eventually(lambda: "imagekeep_generations_in_flight 0.0" in httpx.get(f"{one.url}/metrics").text)

    assert two.generation(generation_id) == first
    assert httpx.get(first["images"][0]["url"]).headers["content-type"] == "image/png"
    assert len(rows(database_url, "SELECT id FROM images WHERE generation_id = %s", generation_id)) == 1
    assert "generation_crashed" not in one.stderr.read_text(), "it is told that somebody else was first"
    assert two.ask("reconcile") == []


def test_another_replica_recovers_what_a_dead_one_left(replicas: tuple[Installation, Installation, str]) -> None:
    one, two, database_url = replicas
    generated = one.begin("a fox [[picture flaky 5]]")
    pending = one.begin("a fox [[hang]]")
    one.reaches(generated, "generated")
    one.kill9()

    told = two.reaches(generated, "completed")
    two.reaches(pending, "unknown")

    assert httpx.get(told["images"][0]["url"]).headers["content-type"] == "image/png"
    assert row_of(database_url, generated)["settled_micros"] == PRICE_MICROS
    assert two.ask("reconcile") == []


def row_of(database_url: str, generation_id: str) -> dict[str, Any]:
    (row,) = rows(database_url, "SELECT * FROM generations WHERE id = %s", generation_id)
    return row


def repeat(crash: Crash, name: str) -> httpx.Response:
    """The same order under the same Idempotency-Key, as a client sends it that never got its answer."""
    return crash.installation.order(f"{PROMPTS[name]} [[id {name}]]", headers={"idempotency-key": name})


def waiting_for_a_row(database_url: str) -> bool:
    asked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(rows(database_url, asked))


def freeze(installation: Installation) -> None:
    """Stop the process between two instructions, as a paused virtual machine does, and return once it stands still."""
    os.kill(installation.process.pid, signal.SIGSTOP)
    status = Path(f"/proc/{installation.process.pid}/status")
    eventually(lambda: "State:\tT" in status.read_text())


def thaw(installation: Installation) -> None:
    os.kill(installation.process.pid, signal.SIGCONT)
