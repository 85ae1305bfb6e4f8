"""What can be asked of the sandbox, and who answers?"""

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from secrets import token_hex
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from app.sandbox.answers import JSON, WRONG_KEY, compact_json, failed, instead_of_pictures, refused, spoiled, success
from app.sandbox.drawing import draw_blank
from app.sandbox.faults import FaultOrders, read_faults
from app.sandbox.orders import Order, Refused, read_body, read_order, readable
from app.sandbox.picture_host import Drawing, answer_picture, paint
from app.sandbox.pictures import Picture, clip_prompt, sign_url
from app.sandbox.sending import client_left, unanswered
from app.sandbox.witness import Witness

_BODY_BYTES_MAX: Final = 1024 * 1024
_WELCOME: Final = """This is imagekeep's sandbox: it speaks TTAPI's wire format and draws its pictures locally.
POST /openai/v1/images/generations  POST /v1/images/generations  GET /midjourney/v1/info  GET /witness
"""


@dataclass(frozen=True)
class Sandbox:
    """What every answer is made from."""

    api_keys: frozenset[str] | None
    public_url: str
    url_lifetime_seconds: float
    delay_seconds: float
    drawing: Drawing
    witness: Witness


def create_sandbox(
    *,
    api_keys: frozenset[str] | None,
    public_url: str,
    draw: bool = True,
    url_lifetime_seconds: float = 7200,
    delay_seconds: float = 0,
) -> Starlette:
    """An upstream of our own: TTAPI's two image routes, the pictures' host, and the witness of both.

    `api_keys` None takes any key that is not empty. `public_url` begins the pictures' URLs, and has no slash at its
    end. `draw` False answers with blank pictures, for load, each with its prompt in a comment. Every order waits
    `delay_seconds` for its answer.
    To drop and reset connections it must run on ReachableTransportProtocol, as run_sandbox does.
    The wire format: ttapi.io/docs/apiReference/dalle3, docs.ttapi.io/api/en/openai/images-generations
    (upstream-facts.md section 2, 2026-11-22).
    """
    sandbox = Sandbox(
        api_keys=api_keys,
        public_url=public_url,
        url_lifetime_seconds=url_lifetime_seconds,
        delay_seconds=delay_seconds,
        drawing=Drawing(draw=draw, blank=lru_cache(maxsize=64)(draw_blank)),
        witness=Witness(),
    )
    return Starlette(
        routes=[
            Route("/", _welcome),
            Route("/openai/v1/images/generations", partial(_answer_order, sandbox, False), methods=["POST"]),
            Route("/v1/images/generations", partial(_answer_order, sandbox, True), methods=["POST"]),
            Route("/midjourney/v1/info", partial(_answer_balance, sandbox)),
            Route("/pictures/{file_name}", partial(answer_picture, sandbox.drawing, sandbox.witness)),
            Route("/witness", partial(_answer_witness, sandbox.witness), methods=["GET", "DELETE"]),
        ],
        exception_handlers={HTTPException: _answer_http_exception},
    )


async def _answer_order(sandbox: Sandbox, bare: bool, request: Request) -> ASGIApp:
    order_id = token_hex(8)
    note = partial(sandbox.witness.note_order, order_id, path=request.url.path, headers=request.headers.keys())
    body: Mapping[str, Any] = {}
    faults = FaultOrders(prompt="")
    try:
        # Before the key, so that the witness can tell whose order a refused one was.
        body = read_body(await _raw_body(request))
        faults = read_faults(readable(str(body.get("prompt", ""))))
        _check_key(sandbox.api_keys, request, bearer_too=bare)
        order = read_order(body, bare=bare)
    except Refused as refusal:
        note(body, tag=faults.tag, billed=False)
        return refused(refusal.status, refusal.message, bare=bare, code=refusal.code)
    # Billed as soon as it is decided, not when it is answered: a client that leaves has bought the picture.
    note(body, tag=faults.tag, billed=faults.billed)
    delay_seconds = sandbox.delay_seconds + faults.delay_seconds
    # The wait comes before the URLs are signed, so that a late answer's URLs live as long as any other's.
    if delay_seconds and await client_left(request.receive, within_seconds=delay_seconds):
        return unanswered
    return await _answer(sandbox, order, faults, order_id, route=request.url.path, bare=bare)


async def _answer(
    sandbox: Sandbox, order: Order, faults: FaultOrders, order_id: str, *, route: str, bare: bool
) -> ASGIApp:
    if faults.answer is not None:
        instead = instead_of_pictures(faults.answer, model=order.model, url=f"{sandbox.public_url}{route}", bare=bare)
        if instead is not None:
            return instead
    items = await _items(sandbox, order, faults, order_id)
    return spoiled(faults.answer, success(items, order, bare=bare, counted=faults.counted))


async def _items(sandbox: Sandbox, order: Order, faults: FaultOrders, order_id: str) -> list[dict[str, str]]:
    items = []
    fault_name = faults.answer.name if faults.answer else ""
    for picture in _pictures(order, faults, order_id):
        item = {"revised_prompt": f"{faults.prompt or 'Nothing'}, drawn in the sandbox."}
        if fault_name == "bad-b64":
            item["b64_json"] = "*** this is not base64 ***"
        elif fault_name == "no-url":
            # Nor is there a picture in base64, where that was asked for: whatever the route, none comes.
            pass
        elif order.in_base64 or faults.in_base64:
            item["b64_json"] = base64.b64encode(await paint(sandbox.drawing, picture)).decode()
        else:
            lifetime = faults.url_lifetime_seconds
            item["url"] = sign_url(
                picture,
                public_url=sandbox.public_url,
                now=time.time(),
                lifetime_seconds=sandbox.url_lifetime_seconds if lifetime is None else lifetime,
            )
        items.append(item)
    return items


def _pictures(order: Order, faults: FaultOrders, order_id: str) -> list[Picture]:
    width, _, height = order.size.partition("x")
    wrong_size = faults.picture is not None and faults.picture.name == "picture wrong-size"
    return [
        Picture(
            order_id=order_id,
            index=index,
            size=f"{int(width) // 2}x{int(height) // 2}" if wrong_size else order.size,
            image_format=faults.image_format or order.image_format,
            prompt=clip_prompt(faults.prompt),
            fault=faults.picture.of_picture if faults.picture else "",
        )
        for index in range(order.n)
    ]


async def _answer_balance(sandbox: Sandbox, request: Request) -> Response:
    try:
        _check_key(sandbox.api_keys, request, bearer_too=False)
    except Refused as refusal:
        return failed(refusal.status, refusal.message)
    account = {"email": "sandbox@example.com", "balance": 1_000_000, "freeze_balance": 0, "max_queue": 10}
    return Response(compact_json({"status": "SUCCESS", "message": "success", "data": account}), media_type=JSON)


async def _answer_witness(witness: Witness, request: Request) -> Response:
    if request.method == "DELETE":
        witness.reset()
        return Response(status_code=204)
    query = request.query_params
    return Response(compact_json(witness.report(tag=query.get("tag"), prompt=query.get("prompt"))), media_type=JSON)


async def _welcome(request: Request) -> Response:
    return PlainTextResponse(_WELCOME)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return failed(error.status_code, error.detail)


async def _raw_body(request: Request) -> bytes:
    raw = bytearray()
    async for block in request.stream():
        raw += block
        if len(raw) > _BODY_BYTES_MAX:
            raise Refused(400, "Request body is too long.")
    return bytes(raw)


def _check_key(api_keys: frozenset[str] | None, request: Request, *, bearer_too: bool) -> None:
    # The newer route's own example uses OpenAI's SDK, hence Bearer (upstream-facts.md section 2, 2026-11-22).
    key = request.headers.get("tt-api-key", "")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if bearer_too and not key and scheme.lower() == "bearer":
        key = token.strip()
    if not key or (api_keys is not None and key not in api_keys):
        raise Refused(401, WRONG_KEY)
