"""What do all surfaces share: a request's id and log line, its body's limit, and errors in the caller's own format?"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import uuid4

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import telemetry
from app.errors import (
    AnswerUnavailable,
    AppError,
    BodyTooLarge,
    InternalError,
    InvalidJson,
    InvalidValue,
    MethodNotAllowed,
    MissingParameter,
    NotFound,
    Overloaded,
    UnsupportedParameter,
)
from app.wiring import Wiring

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What a parameter may be called to have its name repeated in an answer.
_PARAMETER = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
# A body over the limit is read on and thrown away up to here: answered at once, most clients would see a broken
# connection instead of the 413.
_DISCARDED_BYTES_MAX = 32 * 1024 * 1024

_CUT_OFF = (
    "The service was stopped before your answer was there. An order may have been taken: look at GET /images first."
)

# What uvloop 0.2x says of a write to a connection that is gone; asyncio's own transports say nothing.
_CLOSED = "the handler is closed"

Body = TypeVar("Body", bound=BaseModel)
Render = Callable[[Request, AppError], Response]


def wiring_of(request: Request) -> Wiring:
    """Return what this process shares; the lifespan of the outermost app put it there."""
    wiring = request.state.wiring
    assert isinstance(wiring, Wiring)
    return wiring


def request_id_of(request: Request) -> str:
    """Return this request's id, the caller's own if it was sane."""
    request_id = request.state.request_id
    assert isinstance(request_id, str)
    return request_id


def milliseconds_so_far(request: Request) -> int:
    """Return how long ago this request came."""
    started_at = request.state.started_at
    assert isinstance(started_at, float)
    return round((time.monotonic() - started_at) * 1000)


class Json(JSONResponse):
    """An answer in JSON, written as `encoded` does."""

    def render(self, content: Any) -> bytes:
        return encoded(content)


def encoded(content: Any) -> bytes:
    """Return JSON that holds any text: a lone surrogate in what a caller sent must not become a crash of the answer.

    Compact, slashes as they are: there are clients that look for `"url":"` with a regular expression.
    """
    try:
        return to_json(content, ensure_ascii=True)
    except ValueError:
        # pydantic's writer takes a fifth of the time, and refuses half a surrogate pair.
        return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()


def create_surface(render: Render, **options: Any) -> FastAPI:
    """Return an empty application on which every error is answered by `render`.

    Crashes, unknown paths, and requests that are cut off because the process must stop, too.
    """
    app = FastAPI(redirect_slashes=False, **options)

    async def on_app_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        # A crowd that is refused has a line for each request, and a metric; twice as many tell nothing more.
        if error.status >= 500 and not isinstance(error, Overloaded):
            log.warning("refused", code=error.code, detail=error.message)
        return render(request, error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known: dict[int, AppError] = {404: NotFound(), 405: MethodNotAllowed()}
        answer = render(request, known.get(error.status_code) or InvalidValue(str(error.detail)))
        answer.headers.update(error.headers or {})
        if error.status_code == 405:
            # Starlette knows only the first route of a path, and would leave the methods of the others out.
            answer.headers["allow"] = ", ".join(_methods_of(app, request))
        return answer

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return render(request, InvalidValue(f"`{first['loc'][-1]}`: {first['msg']}.", parameter=str(first["loc"][-1])))

    async def on_crash(request: Request, error: Exception) -> Response:
        log.error("crashed", exc_info=error)
        return render(request, InternalError())

    app.add_exception_handler(AppError, on_app_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_crash)
    app.add_middleware(_CutOff, render=render)
    return app


class _CutOff:
    """Answers a request that is cut off. Unanswered, uvicorn would say a bare 500, which clients order again."""

    def __init__(self, app: ASGIApp, *, render: Render) -> None:
        self._app = app
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except asyncio.CancelledError:
            if begun:
                raise
            await self._render(Request(scope), AnswerUnavailable(_CUT_OFF))(scope, receive, send)


def _methods_of(app: FastAPI, request: Request) -> list[str]:
    matching = (route for route in app.routes if isinstance(route, Route) and route.matches(request.scope)[0].value)
    return sorted({method for route in matching for method in route.methods or ()})


async def read_body(request: Request, *, bytes_max: int) -> bytes:
    """Return a request's whole body. Raises BodyTooLarge for more than `bytes_max`, InvalidJson when it breaks off."""
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= bytes_max:
                chunks.append(chunk)
            elif size > _DISCARDED_BYTES_MAX:
                break
    except ClientDisconnect:
        # Nobody reads this answer; it keeps a client that left from being counted and logged as a crash of ours.
        raise InvalidJson("The body broke off.") from None
    if size > bytes_max:
        raise BodyTooLarge(f"The body has more than {bytes_max} bytes.")
    return b"".join(chunks)


def parse_json(body: bytes, model: type[Body]) -> Body:
    """Return a JSON body as `model`, whatever its content type said. Types are not guessed: "1" is no number.

    Raises InvalidJson, MissingParameter, UnsupportedParameter or InvalidValue, none of which repeats what was sent.
    """
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise _as_app_error(error) from None


def _as_app_error(error: ValidationError) -> AppError:
    first = error.errors(include_input=False, include_url=False)[0]
    kind = first["type"]
    if kind == "json_invalid":
        return InvalidJson(f"The body is not JSON: {first['ctx']['error']}.")
    if not first["loc"]:
        return InvalidJson("The body must be a JSON object.")
    parameter = str(first["loc"][0])
    if not _PARAMETER.fullmatch(parameter):
        return UnsupportedParameter("A parameter has a name that is not offered here.")
    if kind == "missing":
        return MissingParameter(f"`{parameter}` is required.", parameter=parameter)
    if kind == "extra_forbidden":
        return UnsupportedParameter(f"`{parameter}` is not offered here.", parameter=parameter)
    return InvalidValue(f"`{parameter}`: {first['msg'].lower()}.", parameter=parameter)


@asynccontextmanager
async def answering(request: Request, *, or_else: Callable[[], None]) -> AsyncIterator[None]:
    """Call `or_else` when the client leaves before the body below is through, or when that breaks off.

    The body is not cut short: the work goes on without its client. The request's own body must be read already.
    """
    client = asyncio.create_task(_until_gone(request))
    client.add_done_callback(lambda gone: None if gone.cancelled() else or_else())
    try:
        yield
    except BaseException:
        # A process that was told to stop now, or a database that is away: the client is told, but not what it ordered.
        or_else()
        raise
    finally:
        client.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def error_headers(error: AppError) -> dict[str, str]:
    """Return the headers that an error asks for on every surface."""
    headers = {"cache-control": "no-store"}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


class RequestContext:
    """Gives every request an id, one log line and its figures; stands outside everything else.

    An error that comes out of the application was answered and logged by the surface it happened on, so it ends here;
    so does a request that was cut off.
    """

    def __init__(self, app: ASGIApp, *, leaving: Callable[[], bool]) -> None:
        """`leaving` tells whether clients are to open their next connection elsewhere."""
        self._app = app
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        request_id = _request_id(dict(scope["headers"]))
        scope.setdefault("state", {}).update(request_id=request_id, started_at=started)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if self._leaving():
                    # A kept connection that is closed under a request in flight looks like an order that was lost.
                    headers["connection"] = "close"
            try:
                await send(message)
            except RuntimeError as error:
                # uvloop's word for a client that hung up before uvicorn was told: nobody reads on, nothing crashed.
                if not str(error).endswith(_CLOSED):
                    raise

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except (asyncio.CancelledError, Exception):
                if not status:
                    raise
            finally:
                _observe(scope, status, time.monotonic() - started)


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    # It is kept with the generation, so a key that somebody took for an id must not pass.
    sane = _REQUEST_ID.fullmatch(given) and telemetry.redact(given) == given
    return given if sane else uuid4().hex


def _observe(scope: Scope, status: int, seconds: float) -> None:
    route = _route_template(scope)
    telemetry.child(telemetry.requests_total, scope["method"], route, status).inc()
    telemetry.child(telemetry.request_seconds, scope["method"], route).observe(seconds)
    log.info("request", method=scope["method"], route=route, status=status, ms=round(seconds * 1000, 1))


def _route_template(scope: Scope) -> str:
    """The template, never the path: an image's path is all it takes to see it, and labels must stay few."""
    matched = scope.get("route")
    if matched is None or isinstance(matched, Mount):
        return "(none)"
    return str(scope.get("root_path", "") + matched.path)
