"""Does a crash of ours show what was in flight: keys, prompts, or what upstream made of them?"""

from pathlib import Path

from tests.installation import Installation, beside, eventually, running_installation
from tests.leaks import DATABASE_SPELLINGS, TT_CANARY, answered, canary_database, leaks
from tests.sandbox_server import RunningSandbox
from tests.service import rows

IDEMPOTENCY_KEY = "idempotency-canary-41e7"
PROMPT = "a hare-canary-77c2 in the snow"
IN_FLIGHT = {
    "the TT API key": [TT_CANARY],
    "the database's password": DATABASE_SPELLINGS,
    "the prompt": [PROMPT],
    "the revised prompt": ["drawn in the sandbox"],
    "the Idempotency-Key": [IDEMPOTENCY_KEY],
}
# A time that Python has none for: whoever reads such a row crashes, and nobody foresaw it.
UNREADABLE = "UPDATE generations SET created_at = 'infinity'"
READABLE = "UPDATE generations SET created_at = now()"
LEFT_TO_RECOVERY = (
    "UPDATE generations SET state = 'generated', lease_until = now(), settled_images = NULL, settled_micros = NULL"
)
# One more is no integer.
FULL = "UPDATE budgets SET in_flight = 2147483647"


def test_a_traceback_shows_nothing_of_what_was_in_flight(
    postgres_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    with canary_database(postgres_url) as database_url:
        env = beside(database_url, sandbox, TT_API_KEY=TT_CANARY, LOG_LEVEL="DEBUG")
        with running_installation(tmp_path / "crashes", env=env) as installation:
            # Once upstream has answered: signed source and revised prompt are in hand.
            late = installation.begin(f"{PROMPT} [[hang 1]]", headers={"idempotency-key": IDEMPOTENCY_KEY})
            eventually(lambda: sandbox.witness(prompt="[[hang 1]]")["asked"])
            rows(database_url, UNREADABLE)
            logged(installation, "move_failed")
            # In a handler, in a command, and in recovery's round.
            answers = [installation.client.get("/images"), installation.client.get(f"/images/{late}")]
            commands = [installation.run("generations", "list"), installation.run("generations", "show", late)]
            rows(database_url, LEFT_TO_RECOVERY)
            logged(installation, "batch_not_claimed")
            # Before anything was held.
            rows(database_url, READABLE)
            rows(database_url, FULL)
            answers.append(installation.order(PROMPT, headers={"idempotency-key": f"{IDEMPOTENCY_KEY}-2"}))
            logged(installation, "generation_crashed")
            log, key = installation.stderr.read_text(), installation.key

    assert [answer.status_code for answer in answers] == [500, 500, 500]
    assert all(command.returncode != 0 for command in commands)
    said = {f"what command {number} said": command.stdout + command.stderr for number, command in enumerate(commands)}
    assert all("Traceback" in text for text in said.values())
    assert log.count("Traceback") >= 4
    assert leaks(IN_FLIGHT | {"the key": [key]}, {"the log": log, **said, **answered(answers)}) == []


def logged(installation: Installation, event: str) -> None:
    """Wait until the log has told it."""
    eventually(lambda: f'"{event}"' in installation.stderr.read_text(), seconds=20)
