"""How does a program order with LiteLLM?"""

from typing import Any

import litellm
from openai import APIError

from tests.clients.lines import answer_lines, error, pictures_of


def ask(call: dict[str, Any]) -> dict[str, Any]:
    """Order once, as its documentation shows for a server that speaks like OpenAI."""
    order = dict(call["order"])
    timeout = {} if call["timeout_seconds"] is None else {"timeout": call["timeout_seconds"]}
    try:
        answer = litellm.image_generation(
            model=f"openai/{order.pop('model')}",
            api_base=f"{call['base_url']}/v1",
            api_key=call["key"],
            **order,
            **timeout,
        )
    except APIError as failure:
        return error(type(failure).__name__, getattr(failure, "status_code", None), str(failure))
    return pictures_of([picture.model_dump() for picture in answer.data])


if __name__ == "__main__":
    answer_lines(ask)
