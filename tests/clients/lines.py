"""How does a drive take orders and give answers: one JSON object in a line, until its input ends?

Imported by drives in their clients' own environments, so it needs nothing but Python.

    in:  {"base_url", "key", "order": {"prompt", ...}, "timeout_seconds": null for the client's own}
    out: {"pictures": [{"url"} or {"b64_json"}]} or {"error": {"name", "status": null for none, "message"}}
"""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def answer_lines(ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer each line of the input with what `ask` makes of it. What a client prints goes to standard error."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            print(json.dumps(ask(json.loads(line))), file=answers, flush=True)


def pictures_of(content: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the answer of a call that went well, from `data` as OpenAI's API has it."""
    forms = ("url", "b64_json")
    return {"pictures": [{form: picture[form] for form in forms if picture.get(form)} for picture in content]}


def error(name: str, status: int | None, message: str) -> dict[str, Any]:
    """Return the answer of a call that failed: the client's own name for it, and what a person would read."""
    return {"error": {"name": name, "status": status, "message": message}}
