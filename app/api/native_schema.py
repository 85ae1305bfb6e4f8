"""What does the native surface's /openapi.json say its answers look like?

For reading only: answers are not sent through these models, tests hold the two together.
"""

from collections.abc import Callable
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MoneyAnswer(_Answer):
    """An amount. 1 USD is 1,000,000 micros."""

    micros: int = Field(ge=0)
    usd: str = Field(pattern=r"^[0-9]+\.[0-9]{6}$")


class ImageAnswer(_Answer):
    """One picture, under its permanent URL."""

    url: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    bytes: int = Field(ge=1)
    content_type: Literal["image/png", "image/jpeg", "image/webp"]


class FailureAnswer(_Answer):
    """Why a generation did not end well."""

    code: str
    detail: str


class AskedAnswer(_Answer):
    """The words an order was asked in, where the catalog made others of them; null is "left out"."""

    model: str | None
    size: str | None
    quality: str | None


class GenerationAnswer(_Answer):
    """How a generation stands."""

    id: UUID
    state: Literal["pending", "generated", "completed", "failed", "unknown", "lost"]
    created_at: datetime
    finished_at: datetime | None
    prompt: str | None
    revised_prompt: str | None
    model: str
    size: str
    quality: str
    asked: AskedAnswer | None = None
    n: int = Field(ge=1)
    price: MoneyAnswer
    images: list[ImageAnswer]
    failure: FailureAnswer | None = None


class PageAnswer(_Answer):
    """Generations, newest first; `next` is the path of the page after this one."""

    generations: list[GenerationAnswer]
    next: str | None


class LimitAnswer(_Answer):
    """A limit, and how far it is used."""

    scope: Literal["user", "key", "team"]
    limit: str
    maximum: int
    used: int | None
    remaining: int | None
    resets_in_seconds: int | None


class OutstandingAnswer(_Answer):
    """What is held for generations of one kind."""

    generations: int = Field(ge=0)
    images: int = Field(ge=0)
    price: MoneyAnswer


class HeldAnswer(_Answer):
    """What is held: for what runs, and for what nobody knows the outcome of."""

    running: OutstandingAnswer
    unknown: OutstandingAnswer


class CallerAnswer(_Answer):
    """Who a key speaks for."""

    user: str
    api_key_id: UUID
    limits: list[LimitAnswer]
    held: HeldAnswer


class PriceAnswer(MoneyAnswer):
    """What one picture of this size and quality costs."""

    size: str
    quality: str


class TokenPricesAnswer(_Answer):
    """What a million tokens cost in micros; with them, what upstream says was used is charged, up to what was held."""

    input: int = Field(ge=1)
    output: int = Field(ge=1)


class TranslationAnswer(_Answer):
    """Words for sizes and qualities that are taken, and what is made for each."""

    sizes: dict[str, str]
    qualities: dict[str, str]


class StandInAnswer(TranslationAnswer):
    """A name of another model that this one is made for."""

    name: str


class ModelAnswer(_Answer):
    """A model that can be ordered."""

    name: str
    aliases: list[str]
    sizes: list[str]
    qualities: list[str]
    default_size: str
    default_quality: str
    prompt_characters_max: int
    n_max: int
    prices: list[PriceAnswer]
    token_prices: TokenPricesAnswer | None
    price_source: str
    price_date: date
    also_takes: TranslationAnswer
    stands_in_for: list[StandInAnswer]
    retires_on: date | None
    retired: bool


class CatalogAnswer(_Answer):
    """All models there are."""

    models: list[ModelAnswer]
    default: str


class ProblemAnswer(BaseModel):
    """An error (RFC 9457). Some carry more, such as the generation's `id`."""

    type: Literal["about:blank"]
    title: str
    status: int = Field(ge=400, le=599)
    code: str
    detail: str
    parameter: str = Field("", description="The field or header that is at fault.")
    request_id: str


_SAID: dict[int, str] = {
    200: "Done.",
    202: "Not ended yet: ask `Location` again after `Retry-After` seconds.",
    204: "Deleted.",
    400: "The request is wrong; `parameter` says where.",
    401: "No key, a mistyped one, or one that is not known here.",
    403: "The key's user is disabled.",
    404: "There is nothing, or it is not yours.",
    409: "The generation has not ended yet.",
    410: "The image was deleted.",
    413: "The body is too large.",
    422: "This Idempotency-Key was used for another order.",
    429: "A limit refused; `Retry-After` says until when.",
}
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}}


def answers(model: type[BaseModel] | None, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route's `responses` are: `model` for those below 400, the problem for every other."""
    told: dict[int | str, dict[str, Any]] = {}
    for status in (*statuses, 401, 403):
        told[status] = {"description": _SAID[status]}
        if status >= 400:
            told[status]["content"] = _PROBLEM
        elif model is not None:
            told[status]["model"] = model
    return told


def finished(generated: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return FastAPI's schema with our errors in the place of its 422, written as OpenAPI 3.0 wants it."""
    schema = generated()
    schemas = schema["components"]["schemas"]
    problem = ProblemAnswer.model_json_schema()
    schemas["ProblemAnswer"] = problem
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            operation["responses"]["default"] = {
                "description": "A problem (RFC 9457); `code` says which, docs/api.md what to do.",
                "content": _PROBLEM,
            }
    told = _in_3_0(schema)
    assert isinstance(told, dict)
    return told


def _in_3_0(node: Any) -> Any:
    """`null` is a word of its own in 3.0, and a schema has one `example`, no list of them."""
    if isinstance(node, list):
        return [_in_3_0(item) for item in node]
    if not isinstance(node, dict):
        return node
    told = {name: _in_3_0(value) for name, value in node.items()}
    options = told.get("anyOf")
    if isinstance(options, list) and {"type": "null"} in options:
        del told["anyOf"]
        rest = [option for option in options if option != {"type": "null"}]
        # A reference stands alone in 3.0, so it is wrapped.
        told |= {"allOf": rest} if "$ref" in rest[0] else rest[0]
        told["nullable"] = True
    if "const" in told:
        told["enum"] = [told.pop("const")]
    if isinstance(told.get("examples"), list):
        told["example"] = told.pop("examples")[0]
    return told
