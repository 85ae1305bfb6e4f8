"""Does a picture that comes inside upstream's answer go the whole way to S3, also when its process is killed?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.installation import Installation, beside, eventually, running_installation
from tests.s3_server import S3Server, running_s3
from tests.sandbox_server import RunningSandbox
from tests.service import rows

LEASES = {"UPSTREAM_TIMEOUT_SECONDS": "4", "PENDING_LEASE_SECONDS": "5", "GENERATED_LEASE_SECONDS": "2"}
# Let upstream choose, so that what is held and what is charged differ widely.
AUTO: dict[str, Any] = {"model": "gpt-image-2", "size": "auto", "quality": "auto"}
CEILING_MICROS = 210_720


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    with running_s3(tmp_path / "s3-server") as server:
        yield server


@pytest.fixture
def installation(database_url: str, sandbox: RunningSandbox, s3: S3Server, tmp_path: Path) -> Iterator[Installation]:
    env = beside(database_url, sandbox, **LEASES, **s3.credentials)
    env |= {"S3_BUCKET": s3.bucket, "S3_ENDPOINT_URL": s3.url, "S3_PATH_STYLE": "true"}
    with running_installation(tmp_path / "home", env=env) as running:
        yield running


def held_micros(prompt: str) -> int:
    """The dearest picture there is, and five micros for each byte of the prompt and sixteen more."""
    return CEILING_MICROS + 5 * (len(prompt) + 16)


def row_of(database_url: str, generation_id: str) -> dict[str, Any]:
    (row,) = rows(database_url, "SELECT * FROM generations WHERE id = %s", generation_id)
    return row


def test_a_picture_goes_from_the_answer_to_s3_and_outlives_the_process_that_brought_it(
    installation: Installation, sandbox: RunningSandbox, s3: S3Server, database_url: str
) -> None:
    told = installation.order("a fox", **AUTO).json()
    running = installation.begin("a fox [[hang]] [[id cut-off]]", **AUTO)
    eventually(lambda: sandbox.witness(tag="cut-off")["asked"])

    installation.kill9()
    installation.start()
    cut_off = installation.reaches(running, "unknown")

    (url,) = [image["url"] for image in told["images"]]
    ((key, kept),) = s3.objects().items()
    assert key.endswith("-0.png")
    assert httpx.get(url).content == kept
    assert installation.generation(told["id"])["images"] == told["images"]
    # The sandbox counts eight tokens for the prompt and 1,756 for a square of medium quality.
    row = row_of(database_url, told["id"])
    assert (row["held_micros"], row["settled_micros"]) == (held_micros("a fox"), 8 * 5 + 1_756 * 30)
    assert told["price"]["micros"] == row["settled_micros"]
    # Nobody knows what became of the other: what was held for it stays held, and nothing sends it again.
    assert cut_off["failure"]["code"] == "upstream_outcome_unknown"
    assert cut_off["price"]["micros"] == held_micros("a fox [[hang]] [[id cut-off]]")
    assert sandbox.witness()["asked"] == 2
    assert {order["path"] for order in sandbox.witness()["orders"]} == {"/v1/images/generations"}
    assert installation.ask("reconcile") == []


@pytest.mark.parametrize("statement_too", [True, False], ids=["recovery-completes-it", "its-statement-outlives-it"])
def test_a_picture_that_is_in_s3_when_its_process_is_killed_is_completed_and_sent_once(
    installation: Installation, sandbox: RunningSandbox, s3: S3Server, database_url: str, statement_too: bool
) -> None:
    prompt = "a fox [[delay 0.7]]"
    with psycopg.connect(database_url.replace("+psycopg", "")) as holding:
        generation_id = installation.begin(prompt, **AUTO)
        # Held until the picture is in the bucket and the statement that says so waits for the row.
        holding.execute("SELECT FROM generations WHERE id = %s FOR UPDATE", [generation_id])
        eventually(lambda: waiting_for_a_row(database_url))
        (kept,) = s3.objects().values()
        installation.kill9()
        if statement_too:
            rows(database_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            eventually(lambda: not waiting_for_a_row(database_url))
        holding.rollback()

    installation.start()
    told = installation.reaches(generation_id, "completed")

    assert httpx.get(told["images"][0]["url"]).content == kept
    assert list(s3.objects().values()) == [kept]
    # What upstream counted was lost with its answer, unless the statement got through that was to say so.
    used = 11 * 5 + 1_756 * 30
    settled = held_micros(prompt) if statement_too else used
    row = row_of(database_url, generation_id)
    assert (row["settled_images"], row["settled_micros"]) == (1, settled)
    assert sandbox.witness()["asked"] == 1
    assert installation.ask("reconcile") == []


def waiting_for_a_row(database_url: str) -> bool:
    asked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(rows(database_url, asked))
