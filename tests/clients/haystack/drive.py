"""How does a program order with Haystack's OpenAIImageGenerator?"""

from typing import Any

from haystack.components.generators import OpenAIImageGenerator
from haystack.utils import Secret
from openai import APIError

from tests.clients.lines import answer_lines, error


def ask(call: dict[str, Any]) -> dict[str, Any]:
    """Order once, as its documentation shows. It knows no response_format, and lets openai-python's errors through."""
    order = call["order"]
    generator = OpenAIImageGenerator(
        model=order["model"],
        size=order["size"],
        api_base_url=f"{call['base_url']}/v1",
        api_key=Secret.from_token(call["key"]),
        timeout=call["timeout_seconds"],
    )
    try:
        return {"pictures": [{"b64_json": picture} for picture in generator.run(order["prompt"])["images"]]}
    except APIError as failure:
        return error(type(failure).__name__, getattr(failure, "status_code", None), failure.message)
    finally:
        generator.close()


if __name__ == "__main__":
    answer_lines(ask)
