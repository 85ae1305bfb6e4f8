"""What does a caller see: Imagekeep's own routes, their schemas, and how an answer is written?"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from app.accounts.budgets import Gauge, gauges_of
from app.api.auth import Authenticated
from app.api.files import stream_image
from app.api.native_schema import CallerAnswer, CatalogAnswer, GenerationAnswer, PageAnswer, answers, finished
from app.api.ordering import charged_micros, failure_of, take_order, told_headers
from app.api.overload import Ordering, unless_crowded
from app.api.prefer import read_preference
from app.api.quota import quota_headers, refusal_headers
from app.api.surface import Json, create_surface, error_headers, parse_json, read_body, request_id_of, wiring_of
from app.errors import AppError, GenerationRunning, ImageDeleted, InvalidValue, NotFound, StorageUnavailable
from app.generations import images, records
from app.generations.order import Order
from app.generations.records import Generation
from app.generations.usage import Outstanding, outstanding_of
from app.upstream.catalog import Model, Translation
from app.upstream.retirement import today

_PAGE_DEFAULT, _PAGE_MAX = 20, 100
_RUNNING_RETRY_SECONDS = 2
_NO_STORE = {"cache-control": "no-store"}


class ImageOrder(BaseModel):
    """The body of `POST /images`. What is left out is as usual for the model; GET /models tells."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"prompt": "a red fox in the snow"}]})

    prompt: str = Field(description="What the image shows.")
    model: str | None = Field(None, description="A model's name or alias.")
    size: str | None = Field(None, description="Width x height, such as 1024x1024.")
    quality: str | None = Field(None, description="Such as standard or hd.")
    n: int = Field(1, description="How many images.")


def create_native() -> FastAPI:
    """Return the native surface: the routes at the root."""
    app = create_surface(
        render_problem, title="Imagekeep", version="1", docs_url=None, redoc_url=None, openapi_url="/openapi.json"
    )
    # The vendored viewer reads 3.0; it is served from here, so that /docs works without the internet.
    app.openapi_version = "3.0.3"
    app.mount("/docs/files", StaticFiles(directory=str(swagger_ui_path)), name="docs-files")
    order = {
        "requestBody": {"content": {"application/json": {"schema": ImageOrder.model_json_schema()}}, "required": True}
    }
    app.add_api_route("/docs", show_docs, methods=["GET"], include_in_schema=False)
    ordered = answers(GenerationAnswer, 200, 202, 400, 404, 410, 413, 422, 429)
    for kind in ("png", "jpeg", "webp"):
        ordered[200].setdefault("content", {})[f"image/{kind}"] = {"schema": {"type": "string", "format": "binary"}}
    routes: list[tuple[str, Callable[..., Any], str, dict[int | str, Any], dict[str, Any]]] = [
        ("/images", order_image, "POST", ordered, order),
        ("/images", list_generations, "GET", answers(PageAnswer, 200, 400), {}),
        ("/images/{generation_id}", get_generation, "GET", answers(GenerationAnswer, 200, 404, 410), {}),
        ("/images/{generation_id}", delete_generation, "DELETE", answers(None, 204, 404, 409), {}),
        ("/me", get_me, "GET", answers(CallerAnswer, 200), {}),
        ("/models", list_models, "GET", answers(CatalogAnswer, 200), {}),
    ]
    for path, endpoint, method, responses, extra in routes:
        status = 204 if method == "DELETE" else 200
        app.add_api_route(
            path, endpoint, methods=[method], status_code=status, responses=responses, openapi_extra=extra
        )
    app.openapi = partial(finished, app.openapi)  # type: ignore[method-assign]
    return app


async def order_image(request: Request, caller: Ordering) -> Response:
    """Order an image, wait for it, and answer with its permanent URL. See docs/api.md."""
    preference = read_preference(request)
    bytes_max = wiring_of(request).settings.request_bytes_max
    asked = parse_json(await read_body(request, bytes_max=bytes_max), ImageOrder)
    taken = await take_order(request, caller, Order(**asked.model_dump()), wait_seconds=preference.wait_seconds)
    headers = {**_NO_STORE, **quota_headers(taken.placed.gauges), **(preference.applied if taken.waited else {})}
    return await _render_order(request, taken.generation, headers, picture=preference.picture)


async def get_generation(request: Request, generation_id: str, caller: Authenticated) -> Response:
    """Tell how a generation stands. `Prefer: wait=N` waits up to N seconds for its end."""
    preference = unless_crowded(request, read_preference(request))
    generation = await wiring_of(request).runner.wait(
        _uuid(generation_id), caller.user_id, seconds=preference.wait_seconds or 0
    )
    if generation.deleted_at is not None:
        raise ImageDeleted
    headers = _NO_STORE | preference.applied
    if generation.state in records.RUNNING:
        headers["retry-after"] = str(_RUNNING_RETRY_SECONDS)
    return JSONResponse(_generation_json(request, generation), headers=headers)


async def list_generations(
    request: Request, caller: Authenticated, limit: int = _PAGE_DEFAULT, before: str | None = None
) -> Response:
    """List your generations, newest first. `next` is the path of the page after this one, null at the end."""
    if not 1 <= limit <= _PAGE_MAX:
        raise InvalidValue(f"`limit` must be 1 to {_PAGE_MAX}.", parameter="limit")
    start = _cursor(before) if before is not None else None
    async with wiring_of(request).database.statement() as connection:
        found = await records.page(connection, limit=limit + 1, user_id=caller.user_id, before=start)
    shown = found[:limit]
    following = f"/images?limit={limit}&before={shown[-1].id}" if len(found) > limit else None
    answer = {"generations": [_generation_json(request, generation) for generation in shown], "next": following}
    return JSONResponse(answer, headers=_NO_STORE)


async def delete_generation(request: Request, generation_id: str, caller: Authenticated) -> Response:
    """Delete a generation's images and prompt for good; its URLs answer 410 from then on. Amounts stay in the books."""
    wiring = wiring_of(request)
    async with wiring.database.statement() as connection:
        generation = await records.find(connection, _uuid(generation_id), user_id=caller.user_id)
    if generation is None:
        raise NotFound("There is no such generation.")
    if generation.state in records.RUNNING:
        raise GenerationRunning
    await images.delete(wiring.database, wiring.stores, generation)
    return Response(status_code=204)


async def get_me(request: Request, caller: Authenticated) -> Response:
    """Tell who this key speaks for, how far each of its limits is used, and what is held for its user."""
    async with wiring_of(request).database.statement() as connection:
        gauges = await gauges_of(connection, [scope for scope in caller.scopes if scope != "all"])
        running, unknown = await outstanding_of(connection, caller.user_id)
    answer = {
        "user": caller.user_name,
        "api_key_id": str(caller.api_key_id),
        "limits": [_gauge_json(gauge) for gauge in gauges],
        "held": {"running": _outstanding_json(running), "unknown": _outstanding_json(unknown)},
    }
    return JSONResponse(answer, headers=_NO_STORE | quota_headers(gauges))


async def list_models(request: Request, caller: Authenticated) -> Response:
    """List the models that can be ordered, with their sizes, qualities and prices."""
    catalog = wiring_of(request).catalog
    models = [_model_json(model) for model in catalog.models]
    return JSONResponse({"models": models, "default": catalog.default_model}, headers=_NO_STORE)


def _model_json(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "sizes": list(model.sizes),
        "qualities": list(model.qualities),
        "default_size": model.default_size,
        "default_quality": model.default_quality,
        "prompt_characters_max": model.prompt_characters_max,
        "n_max": model.images_max,
        "prices": [
            {"size": size, "quality": quality, **_money(micros)} for size, quality, micros in model.all_prices()
        ],
        "token_prices": asdict(model.token_prices) if model.token_prices else None,
        "price_source": model.price_source,
        "price_date": model.price_date.isoformat(),
        "also_takes": _translation_json(model.also_takes),
        "stands_in_for": [{"name": name, **_translation_json(meant)} for name, meant in model.stands_in_for.items()],
        "retires_on": model.retires_on.isoformat() if model.retires_on else None,
        "retired": model.retires_on is not None and model.retires_on <= today(),
    }


def _translation_json(translation: Translation) -> dict[str, Any]:
    return {"sizes": dict(translation.sizes), "qualities": dict(translation.qualities)}


async def show_docs(request: Request) -> HTMLResponse:
    """Show the API in a browser."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Imagekeep",
        swagger_js_url="/docs/files/swagger-ui-bundle.js",
        swagger_css_url="/docs/files/swagger-ui.css",
        swagger_favicon_url="/docs/files/favicon-32x32.png",
    )


def render_problem(request: Request, error: AppError) -> Response:
    """Return an error as an RFC 9457 problem with a `code`."""
    problem: dict[str, Any] = {
        "type": "about:blank",
        "title": error.code.replace("_", " ").capitalize(),
        "status": error.status,
        "code": error.code,
        "detail": error.message,
        **({"parameter": error.parameter} if error.parameter else {}),
        **error.details,
        "request_id": request_id_of(request),
    }
    return Json(
        problem,
        status_code=error.status,
        headers=error_headers(error) | refusal_headers(error),
        media_type="application/problem+json",
    )


async def _render_order(
    request: Request, generation: Generation, headers: Mapping[str, str], *, picture: bool
) -> Response:
    headers = {**headers, "location": f"/images/{generation.id}"}
    if generation.state in records.RUNNING:
        headers["retry-after"] = str(_RUNNING_RETRY_SECONDS)
        return JSONResponse(_generation_json(request, generation), status_code=202, headers=headers)
    if generation.deleted_at is not None:
        raise ImageDeleted
    if generation.state != "completed":
        raise failure_of(generation)
    if picture:
        # Where storage keeps the picture to itself just now, its URL is the answer: a 503 would be ordered again.
        with suppress(StorageUnavailable):
            headers_of_picture = {**headers, **told_headers(generation)}
            return await stream_image(wiring_of(request), generation.images[0], headers_of_picture)
    return JSONResponse(_generation_json(request, generation), headers=headers)


def _generation_json(request: Request, generation: Generation) -> dict[str, Any]:
    public_url = wiring_of(request).settings.resolved_public_url()
    answer: dict[str, Any] = {
        "id": str(generation.id),
        "state": generation.state,
        "created_at": _time(generation.created_at),
        "finished_at": _time(generation.finished_at),
        "prompt": generation.prompt,
        "revised_prompt": generation.revised_prompt,
        "model": generation.model,
        "size": generation.size,
        "quality": generation.quality,
        **({"asked": generation.asked} if generation.asked else {}),
        "n": generation.held_images,
        "price": _money(charged_micros(generation)),
        "images": [
            {
                "url": f"{public_url}/i/{image.id}.{image.extension}",
                "width": image.width,
                "height": image.height,
                "bytes": image.size_bytes,
                "content_type": image.content_type,
            }
            for image in generation.images
        ],
    }
    if generation.failure_code is not None:
        failure = failure_of(generation)
        answer["failure"] = {"code": failure.code, "detail": failure.message}
    return answer


def _gauge_json(gauge: Gauge) -> dict[str, Any]:
    return {
        "scope": gauge.scope.partition(":")[0],
        "limit": gauge.name,
        "maximum": gauge.maximum,
        "used": gauge.used,
        "remaining": gauge.remaining,
        "resets_in_seconds": gauge.resets_in_seconds,
    }


def _outstanding_json(held: Outstanding) -> dict[str, Any]:
    return {"generations": held.generations, "images": held.images, "price": _money(held.micros)}


def _money(micros: int) -> dict[str, Any]:
    return {"micros": micros, "usd": f"{micros // 1_000_000}.{micros % 1_000_000:06d}"}


def _time(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFound("There is no such generation.") from None


def _cursor(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidValue("`before` must be a generation's id.", parameter="before") from None
