"""What does a client see that was written for TTAPI's own image endpoint?

Source: ttapi.io/docs/apiReference/dalle3 and docs.ttapi.io/grids/en/development/response, read 2026-11-22.
"""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request, Response

from app.api.openai import message_of
from app.api.openai_answer import answer_with_images
from app.api.openai_order import read_image_request
from app.api.ordering import take_order
from app.api.overload import OrderingByEither
from app.api.quota import quota_headers, refusal_headers
from app.api.surface import Json, create_surface, error_headers, read_body, wiring_of
from app.errors import AppError, BudgetSpent

# TTAPI's statuses, where they differ from ours. Public clients of TTAPI take a 4xx, and nothing else, for a promise
# that nothing was bought; and a 402 would blame the caller for the operator's empty account.
STATUSES: Final[Mapping[str, int]] = {
    "image_deleted": 404,
    "idempotency_key_reused": 400,
    "budget_spent": 402,
    "overloaded": 429,
    "upstream_busy": 429,
    "upstream_auth_failed": 500,
    "upstream_balance_exhausted": 500,
    "upstream_failed": 500,
    "upstream_model_gone": 500,
    "upstream_unreachable": 500,
    "image_unavailable": 500,
    "database_unavailable": 500,
    "storage_unavailable": 500,
    "answer_unavailable": 504,
}
# What TTAPI's own messages begin with, for those who look for it.
_BEGINNINGS: Final[Mapping[int, str]] = {401: "Wrong TT-API-KEY. ", 402: "Insufficient balance. "}


def create_ttapi() -> FastAPI:
    """Return the surface under `/openai/v1`."""
    app = create_surface(render_failed, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/images/generations", order_images, methods=["POST"])
    return app


async def order_images(request: Request, caller: OrderingByEither) -> Response:
    """Order images, wait for them to the end, and answer in TTAPI's envelope. See docs/api.md."""
    wiring = wiring_of(request)
    body = await read_body(request, bytes_max=wiring.settings.request_bytes_max)
    asked = read_image_request(body, wiring.catalog)
    taken = await take_order(request, caller, asked.order, through_recovery=True)
    return await answer_with_images(
        request, taken, asked, envelope=_success, headers=quota_headers(taken.placed.gauges)
    )


def render_failed(request: Request, error: AppError) -> Response:
    """Return an error as TTAPI's envelope."""
    status = STATUSES.get(error.code, error.status)
    message = _BEGINNINGS.get(status, "") + message_of(error)
    generation_id = error.details.get("id")
    headers = {
        **error_headers(error),
        **refusal_headers(error),
        **({"location": f"/images/{generation_id}"} if generation_id else {}),
    }
    if isinstance(error, BudgetSpent):
        headers.pop("retry-after", None)
    return Json({"status": "FAILED", "message": message, "data": None}, status_code=status, headers=headers)


def _success(content: dict[str, Any]) -> dict[str, Any]:
    # Always there in TTAPI's answers, so that clients index it.
    pictures = [{"revised_prompt": None, **picture} for picture in content["data"]]
    return {"status": "SUCCESS", "message": "success", "data": {**content, "data": pictures}}
