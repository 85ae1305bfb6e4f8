"""Does the service start from nothing and stay up, and does it say in a sentence why it can't?"""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.storage.s3 import S3Storage
from tests.installation import (
    START_SECONDS_MAX,
    Installation,
    beside,
    eventually,
    nothing_runs,
    processes_in,
    refuses,
    running_installation,
)
from tests.s3_server import S3Server, running_s3
from tests.sandbox_server import RunningSandbox, running_sandbox
from tests.service import rows

# Two cores that do nothing else need 3 s and 2 s.
FIRST_START_SECONDS_MAX = 40
LATER_START_SECONDS_MAX = 20


@dataclass(frozen=True)
class FirstStart:
    """What the first start in an empty environment gave, and how long it took to the first picture."""

    installation: Installation
    answer: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstStart]:
    began = time.monotonic()
    with running_installation(tmp_path_factory.mktemp("empty")) as installation:
        answer = paste(installation.banner["curl"])
        seconds = time.monotonic() - began
        # What the following starts are for needs leases of seconds.
        installation.env |= {
            "UPSTREAM_TIMEOUT_SECONDS": "5",
            "PENDING_LEASE_SECONDS": "6",
            "RECOVERY_INTERVAL_SECONDS": "0.3",
        }
        yield FirstStart(installation, answer, seconds)


@pytest.fixture
def embedded(first: FirstStart) -> Installation:
    """The installation with everything of its own; the test says whether it runs, and with how many workers."""
    return first.installation


# Starting


def test_a_first_start_in_an_empty_environment_makes_a_picture_and_a_later_one_keeps_it(
    first: FirstStart, capsys: pytest.CaptureFixture[str]
) -> None:
    installation = first.installation
    (image,) = first.answer["images"]
    before = httpx.get(image["url"]).content
    banner = installation.banner
    installation.stop()

    # The sandbox that comes with the new start knows nothing of the URLs that the old one signed.
    began = time.monotonic()
    installation.launch()
    text = eventually(lambda: told(installation), seconds=START_SECONDS_MAX)
    again = paste(curl_line(text), IMAGEKEEP_KEY=installation.key)
    later_seconds = time.monotonic() - began

    assert banner["url"] == installation.url
    assert banner["upstream"].startswith("the SANDBOX")
    assert re.fullmatch(r"ik_user_[0-9A-Za-z]{38}", banner["key"])
    assert picture_at(image["url"]).size == (1024, 1024) == (image["width"], image["height"])
    assert httpx.get(image["url"]).content == before
    assert "ik_user_" not in text
    assert again["state"] == "completed"
    assert len(installation.client.get("/images").json()["generations"]) == 2
    with capsys.disabled():
        print(f"\n    first start to first 200: {first.seconds:.1f} s; later start to first 200: {later_seconds:.1f} s")
    assert first.seconds < FIRST_START_SECONDS_MAX
    assert later_seconds < LATER_START_SECONDS_MAX


def test_a_port_that_is_taken_is_told_in_a_sentence_and_nothing_stays(embedded: Installation, tmp_path: Path) -> None:
    embedded.ensure(workers=1)
    late = Installation(tmp_path, {"PORT": str(embedded.port)})

    done = late.run("serve")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"Port {embedded.port}" in done.stderr
    nothing_runs(late)
    assert not late.data.exists()


def test_of_two_that_start_at_once_on_one_port_one_says_that_it_cannot_have_it(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    env = beside(database_url, sandbox)
    one, two = Installation(tmp_path / "one", env), Installation(tmp_path / "two", env)
    two.env["PORT"] = one.env["PORT"]
    try:
        one.launch("--json")
        two.launch("--json")
        loser = eventually(
            lambda: next((each for each in (one, two) if each.process.poll() is not None), None),
            seconds=START_SECONDS_MAX,
        )

        assert loser.ended() == 1
        assert f"Port {one.port}" in loser.stderr.read_text()
        winner = two if loser is one else one
        eventually(lambda: winner.stdout.read_text().endswith("\n"), seconds=START_SECONDS_MAX)
        assert httpx.get(f"{one.url}/readyz").status_code == 200
    finally:
        one.close()
        two.close()


def test_a_second_serve_on_one_data_folder_says_so_and_harms_nobody(embedded: Installation, tmp_path: Path) -> None:
    embedded.ensure(workers=1)
    second = Installation(tmp_path, {"DATA_DIR": str(embedded.data)})

    done = second.run("serve")

    assert (done.returncode, done.stdout) == (1, "")
    assert f"already running as pid {embedded.process.pid}" in done.stderr
    assert done.stderr.count("\n") == 1
    nothing_runs(second)
    assert embedded.order("a fox").status_code == 200


def test_the_text_banner_says_sandbox_and_its_curl_line_works(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "text", {})
    try:
        installation.launch()
        banner = eventually(lambda: told(installation), seconds=START_SECONDS_MAX)
        answer = paste(curl_line(banner))

        assert "SANDBOX" in banner
        assert "TT_API_KEY" in banner
        assert len(re.findall(r"ik_user_[0-9A-Za-z]{38}\b", banner)) == 2, "once alone and once in the curl line"
        assert picture_at(answer["images"][0]["url"]).size == (1024, 1024)
    finally:
        installation.close()


def test_every_wrong_setting_is_told_at_once_and_nothing_is_started(tmp_path: Path) -> None:
    wrong = {
        "PORT": "abc",
        "DATABASE_URL": "mysql://user:a-password@host/db",
        "BIND_HOST": "0.0.0.0",
        "TT_API_KEY_FILE": str(tmp_path / "is-not-there"),
        "UPSTREAM_TIMEOUT_SECONDS": "400",
        "LOG_LEVEL": "LOUD",
        "S3_PREFIX": "team",
    }
    installation = Installation(tmp_path / "wrong", wrong)

    done = installation.run("serve")

    assert (done.returncode, done.stdout) == (1, "")
    named = re.findall(r"^  ([A-Z0-9_]+): ", done.stderr, re.MULTILINE)
    assert sorted(named) == sorted(
        ["PORT", "DATABASE_URL", "PUBLIC_URL", "TT_API_KEY_FILE", "PENDING_LEASE_SECONDS", "LOG_LEVEL", "S3_PREFIX"]
    )
    assert "a-password" not in done.stderr
    assert not installation.data.exists()


@pytest.mark.parametrize("command", [["migrate"], ["users", "list"]], ids=" ".join)
def test_a_database_that_does_not_answer_is_told_in_a_sentence(tmp_path: Path, command: list[str]) -> None:
    env = {"DATABASE_URL": "postgresql://user:a-password@127.0.0.1:9/db", "TT_API_KEY": "a-key"}
    installation = Installation(tmp_path, env)

    done = installation.run(*command)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("imagekeep: The database at DATABASE_URL can't be used: ")
    assert done.stderr.count("\n") == 1
    assert "refused" in done.stderr or "nobody answers at 127.0.0.1:9" in done.stderr
    assert "a-password" not in done.stderr


@pytest.mark.parametrize("command", [("serve",), ("serve", "--workers", "2"), ("recover",)], ids=" ".join)
@pytest.mark.parametrize("has_users", [False, True], ids=["a first start", "a later one"])
def test_half_of_the_s3_credentials_is_told_in_a_sentence_and_nothing_announced(
    database_url: str, tmp_path: Path, command: tuple[str, ...], has_users: bool
) -> None:
    env = {"DATABASE_URL": database_url, "TT_API_KEY": "a-key", "S3_BUCKET": "pictures", "AWS_ACCESS_KEY_ID": "half"}
    installation = Installation(tmp_path, env)
    if has_users:
        assert installation.run("users", "add", "ada").returncode == 0

    done = installation.run(*command)

    assert (done.returncode, done.stdout) == (1, "")
    # The first key is shown in the banner only, so none is made for a start that has none.
    assert rows(database_url, "SELECT id FROM api_keys") == []
    sentences = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(sentences) == 1
    assert sentences[0].startswith("imagekeep: s3:pictures: no credentials: ")


def test_credentials_that_do_not_come_hold_up_neither_an_answer_nor_a_stop(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    config = tmp_path / "aws"
    config.write_text("[default]\ncredential_process = sleep 60\n")
    bucket = {"S3_BUCKET": "pictures", "AWS_CONFIG_FILE": str(config), "DRAIN_NOTICE_SECONDS": "0"}
    installation = Installation(tmp_path / "waiting", beside(database_url, sandbox, **bucket))
    try:
        assert installation.run("users", "add", "ada").returncode == 0
        installation.launch("--json")
        eventually(lambda: not refuses(installation.port), seconds=START_SECONDS_MAX)
        answers = [httpx.get(f"{installation.url}/{path}", timeout=30) for path in ("healthz", "readyz")]
        began = time.monotonic()
        installation.terminate()
        installation.ended()
    finally:
        installation.close()

    # The spool has room for what comes meanwhile.
    assert [answer.status_code for answer in answers] == [200, 200]
    assert time.monotonic() - began < 30
    assert installation.stdout.read_text() == ""


def test_secrets_are_read_from_the_files_that_are_named(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "tt").write_text("the-key-in-the-file\n")
    (tmp_path / "db").write_text(f"{database_url}\n")
    with running_sandbox(api_keys=frozenset({"the-key-in-the-file"})) as sandbox:
        env = beside(
            "", sandbox, TT_API_KEY="", TT_API_KEY_FILE=str(tmp_path / "tt"), DATABASE_URL_FILE=str(tmp_path / "db")
        )
        with running_installation(tmp_path / "files", env=env) as installation:
            answer = installation.order("a fox")

    assert answer.status_code == 200
    assert len(rows(database_url, "SELECT id FROM generations")) == 1


# Several workers


def test_two_workers_add_their_figures_up_and_a_dead_one_is_replaced(embedded: Installation) -> None:
    embedded.ensure(workers=2)
    before = workers_of(embedded)
    assert len(before) == 2
    already = completed_of(httpx.get(f"{embedded.url}/metrics").text)

    # A connection each: the kernel spreads connections, not requests, over the workers.
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: fresh_order(embedded, f"fox {number}"), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    # Asked of whichever worker: the sum is the same.
    figures = {completed_of(httpx.get(f"{embedded.url}/metrics").text) - already for _ in range(4)}
    assert figures == {8}

    os.kill(before[0], signal.SIGKILL)

    after = eventually(lambda: two_without(embedded, before[0]))
    assert before[1] in after
    assert all(fresh_order(embedded, "a hare").status_code == 200 for _ in range(4))
    assert "worker_died" in embedded.stderr.read_text()


def test_kill_9_takes_postgres_the_sandbox_and_the_workers_along_and_the_next_start_recovers(
    embedded: Installation,
) -> None:
    embedded.ensure(workers=2)
    generation_id = embedded.begin("a fox [[hang]]")

    embedded.kill9()

    eventually(lambda: refuses(embedded.port), seconds=20)
    nothing_runs(embedded)
    embedded.start()
    assert embedded.banner["key"] is None
    assert embedded.order("a hare").status_code == 200
    assert embedded.reaches(generation_id, "unknown")["failure"]["code"] == "upstream_outcome_unknown"
    assert embedded.ask("reconcile") == []


def test_kill_9_of_the_parent_lets_workers_on_a_database_that_stays_finish_what_was_paid_for(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    with running_installation(tmp_path, env=beside(database_url, sandbox), workers=2) as installation:
        installation.begin("a fox [[delay 1.5]]")
        eventually(lambda: sandbox.witness()["asked"])

        installation.kill9()

        eventually(lambda: refuses(installation.port), seconds=20)
        nothing_runs(installation)
        assert [row["state"] for row in rows(database_url, "SELECT state FROM generations")] == ["completed"]


# A database and a bucket of the operator's own


def test_images_live_in_a_private_bucket_and_those_of_the_folder_move_there(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    with running_installation(tmp_path / "home", env=beside(database_url, sandbox)) as installation:
        early = installation.order("a fox [[expires 2]]").json()["images"][0]["url"]
        picture = httpx.get(early).content
        assert len(files_in(installation.data / "images")) == 1
        installation.stop()
        with running_s3(tmp_path) as s3:
            installation.env |= {
                **s3.credentials,
                "S3_BUCKET": s3.bucket,
                "S3_ENDPOINT_URL": s3.url,
                "S3_PATH_STYLE": "true",
                "S3_PREFIX": "team/images",
            }
            installation.start()
            late = installation.order("a hare").json()["images"][0]
            (key,) = s3.objects()
            assert re.fullmatch(r"team/images/\d{4}/\d\d/\d\d/[0-9a-f]{32}-0\.png", key)
            assert content_type(s3, key) == "image/png"
            assert httpx.get(f"{s3.url}/{s3.bucket}/{key}").is_client_error, "nobody reads the bucket but us"
            assert httpx.get(late["url"]).content == s3.objects()[key]
            assert httpx.get(early).content == picture, "what was stored before keeps its URL"

            moved = installation.ask("storage", "move")

            assert (moved["to"], moved["images"], moved["failures"]) == (f"s3:{s3.bucket}", 1, [])
            assert moved["bytes"] == len(picture)
            assert files_in(installation.data / "images") == []
            assert len(s3.objects()) == 2
            answer = httpx.get(early)
            assert (answer.content, answer.headers["content-type"]) == (picture, "image/png")
            assert installation.ask("storage", "move")["images"] == 0


def told(installation: Installation) -> str | None:
    """The text banner, once all of it is there."""
    said = installation.stdout.read_text()
    assert installation.process.poll() is None, installation.stderr.read_text()
    return said if "Stop with Ctrl-C." in said else None


def curl_line(banner: str) -> str:
    (line,) = [line for line in banner.splitlines() if line.strip().startswith("curl ")]
    return line


def paste(line: str, **env: str) -> dict[str, Any]:
    """Paste a line into a shell, and return the JSON that comes out."""
    done = subprocess.run(["sh", "-c", line], env={"PATH": os.environ["PATH"], **env}, capture_output=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def picture_at(url: str) -> Image.Image:
    answer = httpx.get(url).raise_for_status()
    assert answer.headers["content-type"] == "image/png"
    return Image.open(BytesIO(answer.content))


def fresh_order(installation: Installation, prompt: str) -> httpx.Response:
    """An order on a connection of its own."""
    headers = {"authorization": f"Bearer {installation.key}"}
    return httpx.post(f"{installation.url}/images", json={"prompt": prompt}, headers=headers, timeout=60)


def workers_of(installation: Installation) -> list[int]:
    """The processes that serve, by id; all but one of the parent's children are Postgres, the sandbox, a tracker."""
    return [pid for pid, line in processes_in(installation.folder).items() if "multiprocessing.spawn" in line]


def two_without(installation: Installation, dead: int) -> list[int] | None:
    alive = workers_of(installation)
    return alive if len(alive) == 2 and dead not in alive else None


def completed_of(figures: str) -> float:
    lines = [line for line in figures.splitlines() if line.startswith("imagekeep_generations_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'state="completed"' in line)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def content_type(s3: S3Server, key: str) -> str | None:
    """What the bucket itself says the object is."""

    async def ask() -> str | None:
        storage = S3Storage(
            s3.bucket,
            endpoint_url=s3.url,
            region="us-east-1",
            path_style=True,
            access_key_id=s3.access_key_id,
            secret_access_key=s3.secret_access_key,
        )
        try:
            return (await storage.head(key)).content_type
        finally:
            await storage.close()

    return asyncio.run(ask())
