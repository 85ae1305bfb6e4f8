"""What does a client see that was written for OpenAI's Images API, or for TTAPI's newer route?

Source: OpenAI's API as openai-python 3.54.0 and openai-node 7.57.0 speak it, and TTAPI's
docs.ttapi.io/api/en/openai/images-generations, read 2026-11-22.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, time
from typing import Any, Final

from fastapi import FastAPI, Request, Response

from app.api.auth import AuthenticatedByEither
from app.api.openai_answer import answer_with_images
from app.api.openai_order import read_image_request
from app.api.ordering import take_order
from app.api.overload import OrderingByEither
from app.api.quota import quota_headers, refusal_headers, request_headers, request_refusal_headers
from app.api.surface import Json, create_surface, error_headers, milliseconds_so_far, read_body, wiring_of
from app.errors import ApiKeyInvalid, ApiKeyMistyped, AppError, BudgetSpent, IdempotencyKeyReused, NotFound
from app.upstream.catalog import Model

# OpenAI's words for our codes, where clients test for them; every other code is the same on all surfaces.
CODES: Final[Mapping[str, str]] = {
    "content_rejected": "content_policy_violation",
    "api_key_missing": "invalid_api_key",
    "api_key_mistyped": "invalid_api_key",
    "api_key_invalid": "invalid_api_key",
    "user_disabled": "permission_denied",
    "budget_spent": "insufficient_quota",
    "too_many_in_flight": "rate_limit_exceeded",
}
# What OpenAI's own message begins with. LiteLLM 1.106.2 knows a wrong key by these words alone, and calls every other
# `invalid_request_error` a bad order, whatever its status.
_WRONG_KEY: Final = "Incorrect API key provided. "
_NO_STORE: Final = {"cache-control": "no-store"}


class _ModelMissing(NotFound):
    """There is no such model here. GET /v1/models lists what there is."""

    code = "model_not_found"


def create_openai() -> FastAPI:
    """Return the surface under `/v1`."""
    app = create_surface(render_error, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/images/generations", order_images, methods=["POST"])
    app.add_api_route("/images/edits", refuse_edit, methods=["POST"])
    app.add_api_route("/images/variations", refuse_edit, methods=["POST"])
    app.add_api_route("/models", list_models, methods=["GET"])
    app.add_api_route("/models/{model_id:path}", get_model, methods=["GET"])
    return app


async def order_images(request: Request, caller: OrderingByEither) -> Response:
    """Order images, wait for them to the end, and answer with their URLs or with them. See docs/api.md."""
    wiring = wiring_of(request)
    body = await read_body(request, bytes_max=wiring.settings.request_bytes_max)
    asked = read_image_request(body, wiring.catalog)
    taken = await take_order(request, caller, asked.order, through_recovery=True)
    gauges = taken.placed.gauges
    headers = {**_timing(request), **quota_headers(gauges), **request_headers(gauges)}
    return await answer_with_images(request, taken, asked, envelope=lambda content: content, headers=headers)


async def refuse_edit(request: Request, caller: AuthenticatedByEither) -> Response:
    """Say that images are not edited here."""
    raise NotFound("Images are not edited or varied here: POST /v1/images/generations is all that is offered.")


async def list_models(request: Request, caller: AuthenticatedByEither) -> Response:
    """List every name that an image can be ordered by."""
    models = [_model_json(name, model) for model in wiring_of(request).catalog.models for name in model.names]
    return Json({"object": "list", "data": models}, headers={**_NO_STORE, **_timing(request)})


async def get_model(request: Request, model_id: str, caller: AuthenticatedByEither) -> Response:
    """Tell of one such name."""
    model = wiring_of(request).catalog.find(model_id)
    if model is None:
        raise _ModelMissing(parameter="model")
    return Json(_model_json(model_id, model), headers={**_NO_STORE, **_timing(request)})


def render_error(request: Request, error: AppError) -> Response:
    """Return an error as OpenAI's object, with all four of its keys: SDKs read nothing else."""
    generation_id = error.details.get("id")
    status = 400 if isinstance(error, IdempotencyKeyReused) else error.status
    code = CODES.get(error.code, error.code)
    beginning = _WRONG_KEY if isinstance(error, ApiKeyMistyped | ApiKeyInvalid) else ""
    told = {
        "message": beginning + message_of(error),
        "type": _type_of(status, code),
        "param": error.parameter,
        "code": code,
    }
    headers = {
        **_timing(request),
        **error_headers(error),
        **refusal_headers(error),
        **request_refusal_headers(error),
        **({"location": f"/images/{generation_id}"} if generation_id else {}),
    }
    if isinstance(error, BudgetSpent):
        # SDKs would wait for as long as it says, and try again then; that may be weeks.
        headers.pop("retry-after", None)
    return Json({"error": told}, status_code=status, headers=headers)


def message_of(error: AppError) -> str:
    """Return what a person is told, who may have no other place to find the generation's id in."""
    generation_id = error.details.get("id")
    if generation_id is None or error.status < 500 or str(generation_id) in error.message:
        return error.message
    return f"{error.message} (generation {generation_id})"


def _type_of(status: int, code: str) -> str:
    if status >= 500:
        return "server_error"
    return {"insufficient_quota": "insufficient_quota", "rate_limit_exceeded": "rate_limit_error"}.get(
        code, "invalid_request_error"
    )


def _timing(request: Request) -> dict[str, str]:
    return {"openai-processing-ms": str(milliseconds_so_far(request))}


def _model_json(name: str, model: Model) -> dict[str, Any]:
    # OpenAI's `created` must be there. When a model was made nobody here knows; this is since when its price is known.
    listed_at = datetime.combine(model.price_date, time.min, UTC)
    return {"id": name, "object": "model", "created": int(listed_at.timestamp()), "owned_by": "imagekeep"}
