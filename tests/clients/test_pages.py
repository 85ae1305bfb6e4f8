"""Does what the clients' pages show work when it is pasted?"""

import subprocess
from pathlib import Path

import pytest

from tests.clients.clients import Client
from tests.clients.conftest import Counter
from tests.clients.environments import drive_of, surroundings
from tests.docs.pages import blocks
from tests.service import add_user

# As a reader's service has it.
_SHOWN_URL = "http://127.0.0.1:8080"


def test_what_the_page_shows_orders_a_picture_each_time(client: Client, counter: Counter, tmp_path: Path) -> None:
    if client.kind not in ("python", "command"):
        pytest.skip("its page shows another language")
    python = drive_of(client)[0]
    # A user of the page's own: the Idempotency-Keys of two pages are the same.
    key = add_user(counter.service.database_url, client.name)
    environment = surroundings(client) | {"IMAGEKEEP_KEY": key}
    environment["PATH"] = f"{Path(python).parent}:{environment['PATH']}"
    shown = [block for block in blocks(f"docs/clients/{client.page}.md") if block.language in ("python", "sh")]

    for block in shown:
        program = block.text.replace(_SHOWN_URL, counter.service.url)
        shell = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [python, "-c"]
        before = _completed(counter, client.name)
        done = subprocess.run([*shell, program], cwd=tmp_path, env=environment, capture_output=True, text=True)

        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        assert _completed(counter, client.name) == before + 1, f"{block.text}\n{done.stdout}\n{done.stderr}"
    assert shown


def _completed(counter: Counter, user: str) -> int:
    (row,) = counter.service.rows(
        "SELECT count(*) AS completed FROM generations g JOIN users u ON u.id = g.user_id "
        "WHERE u.name = %s AND g.state = 'completed'",
        user,
    )
    return int(row["completed"])
