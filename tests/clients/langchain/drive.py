"""How does a program order with LangChain's DallEAPIWrapper?"""

from typing import Any

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from openai import APIError

from tests.clients.lines import answer_lines, error


def ask(call: dict[str, Any]) -> dict[str, Any]:
    """Order once, as its documentation shows. It knows no response_format, and lets openai-python's errors through."""
    order = call["order"]
    wrapper = DallEAPIWrapper(
        base_url=f"{call['base_url']}/v1",
        api_key=call["key"],
        model=order["model"],
        size=order["size"],
        timeout=call["timeout_seconds"],
    )
    try:
        return {"pictures": [{"url": url} for url in wrapper.run(order["prompt"]).split(wrapper.separator)]}
    except APIError as failure:
        return error(type(failure).__name__, getattr(failure, "status_code", None), failure.message)


if __name__ == "__main__":
    answer_lines(ask)
