"""Which orders would TTAPI accept, and what would it count for them?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

N_MAX: Final = 10

# Documented fields only, so that a client that sends anything else is seen at once
# (docs.ttapi.io/api/en/openai/images-generations and the seed's page; upstream-facts.md section 2, 2026-11-22).
_SEED_FIELDS: Final = frozenset({"prompt", "size", "model", "n", "quality", "response_format", "style"})
_BARE_FIELDS: Final = _SEED_FIELDS | {"background", "moderation", "output_compression", "output_format", "user"}
# gpt-image models have one form of answer and no style; OpenAI refuses both (upstream-facts.md section 1).
_DALL_E_FIELDS: Final = frozenset({"response_format", "style"})

# Shut down on 2026-10-23 (upstream-facts.md section 1).
_GONE: Final = frozenset({"gpt-image-1"})

_GPT_SIZES: Final = ("auto", "1024x1024", "1536x1024", "1024x1536")


@dataclass(frozen=True)
class Family:
    """What the models whose names begin alike take: sizes and qualities as sent, the first is the default.

    `tokens` are what a picture of a quality counts, as a square and as any other; empty where none are counted.
    """

    prefix: str
    sizes: Sequence[str]
    qualities: Sequence[str]
    prompt_length_max: int
    tokens: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def _gpt_image(prefix: str, **tokens: tuple[int, int]) -> Family:
    return Family(prefix, _GPT_SIZES, ("auto", *tokens), 32_000, tokens)


# Upstream-facts.md section 3, 2026-11-22. The tokens are those of OpenAI's calculator for gpt-image-2 and of its table
# for the first generation; for 2.5, published for squares, and for others by the calculator's way. The first that fits.
_FAMILIES: Final = (
    Family("dall-e-3", ("1024x1024", "1792x1024", "1024x1792"), ("standard", "hd"), 4_000),
    Family("dall-e-2", ("1024x1024", "512x512", "256x256"), ("standard",), 1_000),
    _gpt_image(
        "gpt-image-2.5",
        low=(196, 158),
        medium=(439, 343),
        high=(1_756, 1_372),
        xhigh=(3_122, 2_459),
        max=(7_024, 5_488),
    ),
    _gpt_image("gpt-image-2", low=(196, 158), medium=(1_756, 1_372), high=(7_024, 5_488)),
    _gpt_image("gpt-image-", low=(272, 400), medium=(1_056, 1_568), high=(4_160, 6_208)),
)


class Refused(Exception):
    """An order that TTAPI would not take: the HTTP status, the words of its answer, and OpenAI's code for it."""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass(frozen=True)
class Order:
    """One accepted order, with its defaults filled in and every choice made: neither word is ever `auto`.

    `tokens` are what each of its pictures counts; 0 for a model that counts none.
    """

    prompt: str
    model: str
    size: str
    quality: str
    n: int
    image_format: str
    in_base64: bool
    tokens: int

    @property
    def prompt_tokens(self) -> int:
        """What the prompt counts, roughly as OpenAI's tokenizer would."""
        return 7 + len(self.prompt.encode()) // 4


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
    model = body.get("model", "dall-e-3")
    family = _family(model)
    allowed = _BARE_FIELDS if bare else _SEED_FIELDS
    for name in body:
        if name not in (allowed - _DALL_E_FIELDS if family.tokens else allowed):
            raise Refused(400, f"Unknown parameter: {name!a}.", code="unknown_parameter")
    size = body.get("size", family.sizes[0] if bare else None)
    _choice("size", size, family.sizes)
    quality = body.get("quality", family.qualities[0])
    _choice("quality", quality, family.qualities)
    _choice("response_format", body.get("response_format", "url"), ("url", "b64_json"))
    _choice("style", body.get("style", "vivid"), ("vivid", "natural"))
    image_format = body.get("output_format", "png")
    _choice("output_format", image_format, ("png", "jpeg", "webp"))
    size = "1024x1024" if size == "auto" else size
    quality = "medium" if quality == "auto" else quality
    square, other = family.tokens.get(quality, (0, 0))
    return Order(
        prompt=_prompt(body.get("prompt"), family.prompt_length_max),
        model=model,
        size=size,
        quality=quality,
        n=_n(body.get("n", 1)),
        image_format=image_format,
        # gpt-image models never answer with a URL (upstream-facts.md section 1, 2026-11-22).
        in_base64=bool(family.tokens) or body.get("response_format") == "b64_json",
        tokens=square if size == "1024x1024" else other,
    )


def readable(text: str) -> str:
    """The text without lone surrogates, which JSON can carry but UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _family(model: object) -> Family:
    if not isinstance(model, str):
        raise Refused(400, "Invalid value for model: a string is needed.", code="invalid_type")
    if model in _GONE:
        raise Refused(404, f"The model `{model}` has been deprecated.", code="model_not_found")
    for family in _FAMILIES:
        if model.startswith(family.prefix):
            return family
    raise Refused(404, f"The model {model!a} does not exist or you do not have access to it.", code="model_not_found")


def _choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise Refused(
            400, f"Invalid value for {name}: supported values are {', '.join(choices)}.", code="invalid_value"
        )


def _prompt(prompt: object, length_max: int) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise Refused(400, "Invalid value for prompt: a text is needed.", code="invalid_value")
    if len(prompt) > length_max:
        raise Refused(400, f"Invalid value for prompt: at most {length_max} characters.", code="string_too_long")
    return readable(prompt)


def _n(n: object) -> int:
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= N_MAX:
        raise Refused(400, f"Invalid value for n: a whole number from 1 to {N_MAX} is needed.", code="invalid_value")
    return n
