"""How does a program order with openai-python?"""

from typing import Any

from openai import APIError, OpenAI

from tests.clients.lines import answer_lines, error, pictures_of


def ask(call: dict[str, Any]) -> dict[str, Any]:
    """Order once, as its documentation shows."""
    timeout = {} if call["timeout_seconds"] is None else {"timeout": call["timeout_seconds"]}
    with OpenAI(base_url=f"{call['base_url']}/v1", api_key=call["key"], **timeout) as client:
        try:
            answer = client.images.generate(**call["order"])
        except APIError as failure:
            return error(type(failure).__name__, getattr(failure, "status_code", None), failure.message)
    return pictures_of([picture.model_dump() for picture in answer.data])


if __name__ == "__main__":
    answer_lines(ask)
