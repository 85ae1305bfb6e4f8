"""Does what the clients' pages show work when it is pasted?"""

import subprocess
from pathlib import Path

from tests.clients.clients import Client
from tests.clients.conftest import Counter
from tests.clients.environments import drive_of, surroundings
from tests.docs.pages import Block, blocks
from tests.service import add_user

# Whom it is run with: what is shown for browsers runs in a page, in test_browser.py.
KINDS = ("python", "command", "node")

# As a reader's service has it.
_SHOWN_URL = "http://127.0.0.1:8080"


def test_what_the_page_shows_orders_a_picture_each_time(client: Client, counter: Counter, tmp_path: Path) -> None:
    interpreter = Path(drive_of(client)[0])
    # A user of the page's own: what is counted below is what the page ordered.
    key = add_user(counter.service.database_url, client.name)
    environment = surroundings(client) | {"IMAGEKEEP_KEY": key}
    environment["PATH"] = f"{interpreter.parent}:{environment['PATH']}"
    shown = _shown(client)

    for block in shown:
        command = _command(client, block)
        program = block.text.replace(_SHOWN_URL, counter.service.url)
        before = _completed(counter, client.name)
        done = subprocess.run([*command, program], cwd=tmp_path, env=environment, capture_output=True, text=True)

        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        assert _completed(counter, client.name) == before + 1, f"{block.text}\n{done.stdout}\n{done.stderr}"
    assert shown


def _shown(client: Client) -> list[Block]:
    """The programs of the client's page; two of Node's packages share one, and each runs those that import it."""
    found = [block for block in blocks(f"docs/clients/{client.page}.md") if block.language in ("python", "sh", "js")]
    return [block for block in found if block.language != "js" or f'from "{client.package}"' in block.text]


def _command(client: Client, block: Block) -> list[str]:
    """What the text of a program is handed to."""
    interpreter, *rest = drive_of(client)
    if block.language == "sh":
        return ["bash", "-euo", "pipefail", "-c"]
    if block.language == "python":
        return [interpreter, "-c"]
    # Node looks for packages where the program is, and for that of a program without a file, where it was started.
    return ["env", "-C", str(Path(rest[0]).parent), interpreter, "--input-type=module", "--eval"]


def _completed(counter: Counter, user: str) -> int:
    (row,) = counter.service.rows(
        "SELECT count(*) AS completed FROM generations g JOIN users u ON u.id = g.user_id "
        "WHERE u.name = %s AND g.state = 'completed'",
        user,
    )
    return int(row["completed"])
