"""How does a person order with curl?"""

import json
import subprocess
from typing import Any

from tests.clients.lines import answer_lines, error, pictures_of


def ask(call: dict[str, Any]) -> dict[str, Any]:
    """Order once. `-d` without a content type is what people type; curl then says that it sends a form."""
    command = ["curl", "-sS", "--fail-with-body", "--write-out", "\n%{http_code}"]
    if call["timeout_seconds"] is not None:
        command += ["--max-time", str(call["timeout_seconds"])]
    command += [f"{call['base_url']}/v1/images/generations", "-H", f"Authorization: Bearer {call['key']}"]
    done = subprocess.run(
        [*command, "-d", json.dumps(call["order"])], capture_output=True, text=True, check=False, encoding="utf-8"
    )
    body, _, status = done.stdout.rpartition("\n")
    if done.returncode:
        return error(f"curl ({done.returncode})", int(status) or None, body or done.stderr)
    return pictures_of(json.loads(body)["data"])


if __name__ == "__main__":
    answer_lines(ask)
