"""How does a program order that TTAPI's own documentation shows?

Source: ttapi.io/docs/apiReference/dalle3, its example in Python, read 2026-11-22.
"""

from typing import Any

import requests

from tests.clients.lines import answer_lines, error, pictures_of


def ask(call: dict[str, Any]) -> dict[str, Any]:
    """Order once, by TTAPI's example, with another endpoint and another key."""
    timeout = {} if call["timeout_seconds"] is None else {"timeout": call["timeout_seconds"]}

    endpoint = f"{call['base_url']}/openai/v1/images/generations"
    headers = {"TT-API-KEY": call["key"]}
    data = call["order"]
    try:
        response = requests.post(endpoint, headers=headers, json=data, **timeout)
    except requests.RequestException as failure:
        return error(type(failure).__name__, None, str(failure))
    answer = response.json()
    if answer["status"] != "SUCCESS":
        return error(answer["status"], response.status_code, answer["message"])
    return pictures_of(answer["data"]["data"])


if __name__ == "__main__":
    answer_lines(ask)
