"""Does whatever a client sends leave the service standing, its books empty, its log true, and its secrets in?"""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.api.hostile_requests import CORPUS, Hostile
from tests.installation import Installation, beside, running_installation
from tests.sandbox_server import RunningSandbox
from tests.service import rows

CANARY = b"canary"
_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")
_ANSWER_BYTES_MAX = 100_000


def test_the_corpus_does_not_shrink() -> None:
    names = [hostile.name for hostile in CORPUS]

    assert len(set(names)) == len(names)
    assert len(CORPUS) >= 500


@dataclass(frozen=True)
class Keeper:
    """A running installation that has one picture to its name."""

    installation: Installation
    database_url: str
    sandbox: RunningSandbox
    generation_id: str
    image_name: str

    def send(self, hostile: Hostile) -> bytes:
        """Send one request as it is written, and return all that comes back until the service closes."""
        words = {b"{key}": self.installation.key, b"{id}": self.generation_id, b"{name}": self.image_name}
        sent = hostile.sent
        for word, value in words.items():
            sent = sent.replace(word, value.encode())
        answer = b""
        with socket.create_connection(("127.0.0.1", self.installation.port), timeout=5) as connection:
            # The service may close before all is sent: it has seen enough.
            with suppress(ConnectionError):
                connection.sendall(sent)
                if hostile.cut:
                    connection.shutdown(socket.SHUT_WR)
            # A timeout is a connection that is kept open for more; what came until then is the answer.
            with suppress(ConnectionError, TimeoutError):
                while chunk := connection.recv(65_536):
                    answer += chunk
        return answer


@pytest.fixture
def keeper(database_url: str, sandbox: RunningSandbox, tmp_path: Path) -> Iterator[Keeper]:
    env = beside(database_url, sandbox, LOG_LEVEL="DEBUG")
    with running_installation(tmp_path / "keeper", env=env) as installation:
        ordered = installation.order("a red fox").json()
        name = ordered["images"][0]["url"].rpartition("/")[2]
        sandbox.reset()
        yield Keeper(installation, database_url, sandbox, ordered["id"], name)


def faults_of(hostile: Hostile, answer: bytes) -> list[str]:
    """What is wrong with an answer: nothing, if it is one of ours or the server's own refusal."""
    statuses = _STATUS_LINE.findall(answer)
    faults = []
    if not statuses and not hostile.cut:
        faults.append("no answer")
    if any(status >= b"500" for status in statuses):
        faults.append(f"answered {statuses}")
    if CANARY in answer.lower() or b"x-forged" in answer.lower():
        faults.append("what was sent came back")
    if b"a hidden fox" in answer:
        faults.append("an order that was hidden was taken")
    if len(answer) > _ANSWER_BYTES_MAX:
        faults.append(f"{len(answer)} bytes came back")
    head, _, body = answer.rpartition(b"\r\n\r\n")
    refused = statuses and statuses[-1] >= b"400" and body and body != b"Invalid HTTP request received."
    if refused and not _is_ours(head, body):
        faults.append(f"unreadable: {body[:200]!r}")
    return faults


def _is_ours(head: bytes, body: bytes) -> bool:
    """Whether it is an error in one of the wire formats."""
    if b"content-type: application/problem+json" in head.lower():
        return "code" in json.loads(body)
    in_json = b"content-type: application/json" in head.lower()
    return in_json and json.loads(body).keys() in ({"error"}, {"status", "message", "data"})


def test_nothing_that_is_sent_does_any_harm(keeper: Keeper) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = dict(zip(CORPUS, threads.map(keeper.send, CORPUS), strict=True))

    found = {hostile.name: faults for hostile, answer in answers.items() if (faults := faults_of(hostile, answer))}
    assert found == {}
    # Nothing was bought, nothing is held, and who comes next is served.
    assert keeper.sandbox.witness()["asked"] == 0
    assert rows(keeper.database_url, "SELECT state FROM generations") == [{"state": "completed"}]
    assert keeper.installation.client.get("/readyz").json()["status"] == "ok"
    assert keeper.installation.order("a wolf").status_code == 200
    assert_log_is_true(keeper.installation)


def assert_log_is_true(installation: Installation) -> None:
    """Every line is one event of ours, none a crash, and none holds what was sent."""
    lines = installation.stderr.read_text().splitlines()
    events = [json.loads(line) for line in lines]
    # uvicorn's line for a client that hung up in the middle of an answer. It is no crash.
    left = "ASGI callable returned without completing response."
    assert [event for event in events if event["level"] == "error" and event["event"] != left] == []
    assert [event for event in events if event["event"] == "forged" or "exception" in event] == []
    assert [line for line in lines if CANARY.decode() in line.lower()] == []
    assert installation.key not in installation.stderr.read_text()
