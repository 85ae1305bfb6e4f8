"""Which orders would TTAPI accept?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

N_MAX: Final = 10

# Documented fields only, so that a client that sends anything else is seen at once
# (docs.ttapi.io/api/en/openai/images-generations and the seed's page; upstream-facts.md section 2, 2026-11-22).
_SEED_FIELDS: Final = frozenset({"prompt", "size", "model", "n", "quality", "response_format", "style"})
_BARE_FIELDS: Final = _SEED_FIELDS | {"background", "moderation", "output_compression", "output_format", "user"}


@dataclass(frozen=True)
class Family:
    """What the models whose names begin alike take: sizes and qualities as sent, the first is the default."""

    prefix: str
    sizes: Sequence[str]
    qualities: Sequence[str]
    prompt_length_max: int


# Upstream-facts.md section 3, 2026-11-22.
_FAMILIES: Final = (
    Family("dall-e-3", ("1024x1024", "1792x1024", "1024x1792"), ("standard", "hd"), 4_000),
    Family("dall-e-2", ("1024x1024", "512x512", "256x256"), ("standard",), 1_000),
    Family(
        "gpt-image-",
        ("auto", "1024x1024", "1536x1024", "1024x1536"),
        ("auto", "low", "medium", "high", "xhigh", "max"),
        32_000,
    ),
)


class Refused(Exception):
    """An order that TTAPI would not take: the HTTP status and the words of its answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Order:
    """One accepted order, with its defaults filled in. `size` is WIDTHxHEIGHT, never `auto`."""

    prompt: str
    model: str
    size: str
    n: int
    image_format: str
    in_base64: bool


def read_body(raw: bytes) -> Mapping[str, Any]:
    """The JSON object that a request's body holds. Raises Refused (400) for anything else."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "Request body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise Refused(400, "Request body must be a JSON object.")
    return body


def read_order(body: Mapping[str, Any], *, bare: bool) -> Order:
    """Checks a body as the seed's route does, or as the newer one does (`bare`).

    The seed's route demands a size. Raises Refused: 404 for an unknown model, 400 for any other fault.
    """
    for name in body:
        if name not in (_BARE_FIELDS if bare else _SEED_FIELDS):
            raise Refused(400, f"Unknown parameter: {name!a}.")
    model = body.get("model", "dall-e-3")
    family = _family(model)
    size = body.get("size", family.sizes[0] if bare else None)
    _choice("size", size, family.sizes)
    _choice("quality", body.get("quality", family.qualities[0]), family.qualities)
    _choice("response_format", body.get("response_format", "url"), ("url", "b64_json"))
    _choice("style", body.get("style", "vivid"), ("vivid", "natural"))
    image_format = body.get("output_format", "png")
    _choice("output_format", image_format, ("png", "jpeg", "webp"))
    gpt_image = family.prefix == "gpt-image-"
    return Order(
        prompt=_prompt(body.get("prompt"), family.prompt_length_max),
        model=model,
        size="1024x1024" if size == "auto" else size,
        n=_n(body.get("n", 1)),
        image_format=image_format,
        # gpt-image models never answer with a URL (upstream-facts.md section 1, 2026-11-22).
        in_base64=gpt_image or body.get("response_format") == "b64_json",
    )


def readable(text: str) -> str:
    """The text without lone surrogates, which JSON can carry but UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _family(model: object) -> Family:
    if not isinstance(model, str):
        raise Refused(400, "Invalid value for model: a string is needed.")
    for family in _FAMILIES:
        if model.startswith(family.prefix):
            return family
    raise Refused(404, f"The model {model!a} does not exist or you do not have access to it.")


def _choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise Refused(400, f"Invalid value for {name}: supported values are {', '.join(choices)}.")


def _prompt(prompt: object, length_max: int) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise Refused(400, "Invalid value for prompt: a text is needed.")
    if len(prompt) > length_max:
        raise Refused(400, f"Invalid value for prompt: at most {length_max} characters.")
    return readable(prompt)


def _n(n: object) -> int:
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= N_MAX:
        raise Refused(400, f"Invalid value for n: a whole number from 1 to {N_MAX} is needed.")
    return n
