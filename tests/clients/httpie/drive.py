"""How does a person order with HTTPie?"""

import json
import re
import subprocess
import sys
from typing import Any

from tests.clients.lines import answer_lines, error, pictures_of


def ask(call: dict[str, Any]) -> dict[str, Any]:
    """Order once. `--check-status` lets the exit code tell an error: 4 or 5, the first digit of the status."""
    command = [sys.executable, "-m", "httpie", "--ignore-stdin", "--check-status", "--print=hb", "--pretty=none"]
    if call["timeout_seconds"] is not None:
        command += [f"--timeout={call['timeout_seconds']}"]
    command += [f"{call['base_url']}/v1/images/generations", f"Authorization:Bearer {call['key']}"]
    fields = [f"{name}={value}" for name, value in call["order"].items()]
    done = subprocess.run([*command, *fields], capture_output=True, text=True, check=False, encoding="utf-8")
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    if done.returncode:
        status = re.match(r"HTTP/\S+ (\d{3})", head)
        return error(f"http ({done.returncode})", int(status[1]) if status else None, body or done.stderr)
    return pictures_of(json.loads(body)["data"])


if __name__ == "__main__":
    answer_lines(ask)
