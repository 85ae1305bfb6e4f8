"""What does TTAPI answer, and what becomes of it when the prompt orders a fault?"""

import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp

from app.sandbox.faults import Fault
from app.sandbox.orders import Order
from app.sandbox.sending import cut, dripped, drop, gzip_bomb, hang, html, reset

JSON: Final = "application/json"
WRONG_KEY: Final = "Wrong TT-API-KEY or email is not activated."
# More than any JSON without pictures needs, so that a client's limit shows.
_HUGE_ANSWER_BYTES: Final = 3 * 1024 * 1024
_GZIP_BOMB_BYTES: Final = 64 * 1024 * 1024
# docs.ttapi.io/grids/en/development/response names the codes (upstream-facts.md section 2, 2026-11-22). TTAPI's own
# words for a content rejection are stored nowhere; these are OpenAI's.
_MESSAGES: Final[Mapping[int, str]] = {
    400: "Parameter error.",
    402: "Insufficient balance, please recharge.",
    403: "Your account has been blocked.",
    404: "Not found.",
    422: "Unprocessable parameters.",
    429: "Too many requests, please try again later.",
    499: "Queue exhausted, please try again later.",
    500: "Internal server error.",
    504: "The synchronous request timed out.",
}
_REJECTED: Final = (
    "Your request was rejected as a result of our safety system. Your prompt may contain text that is not allowed by "
    "our content policy."
)


# The newer route's refusals, with the codes of upstream-facts.md section 3.
_CODES: Final[Mapping[int, str]] = {
    401: "invalid_api_key",
    402: "billing_hard_limit_reached",
    429: "rate_limit_exceeded",
}


def compact_json(content: object) -> bytes:
    """JSON without spaces, slashes and ampersands as they are: public code reads TTAPI's URLs by regular expression."""
    return json.dumps(content, separators=(",", ":")).encode()


def failed(status: int, message: str) -> Response:
    """TTAPI's error envelope. A wrong key's has no `data` at all; every other's is null."""
    envelope: dict[str, Any] = {"status": "FAILED", "message": message}
    if status != 401:
        envelope["data"] = None
    return Response(compact_json(envelope), status, media_type=JSON)


def refused(status: int, message: str, *, bare: bool, code: str | None = None) -> Response:
    """A refusal in the route's own form: TTAPI's envelope, or (`bare`) OpenAI's error object."""
    if not bare:
        return failed(status, message)
    kind = "server_error" if status >= 500 else "requests" if status == 429 else "invalid_request_error"
    if code == "moderation_blocked":
        kind = "image_generation_user_error"
    error = {"message": message, "type": kind, "param": None, "code": code or _CODES.get(status)}
    return Response(compact_json({"error": error}), status, media_type=JSON)


def success(items: Sequence[Mapping[str, str]], order: Order, *, bare: bool, counted: str | None = None) -> bytes:
    """The body of a success: TTAPI's envelope, or (`bare`) OpenAI's shape.

    A model that counts tokens says how many, and what it chose. `counted` is what it says instead of the truth:
    a number of tokens, or `none`.
    """
    content: dict[str, Any] = {"created": int(time.time()), "data": items}
    if order.tokens:
        content |= {"background": "opaque", "output_format": order.image_format}
        content |= {"quality": order.quality, "size": order.size}
        if counted != "none":
            taken, made = order.prompt_tokens, int(counted or order.tokens * order.n)
            content["usage"] = {
                "input_tokens": taken,
                "input_tokens_details": {"image_tokens": 0, "text_tokens": taken},
                "output_tokens": made,
                "total_tokens": taken + made,
            }
    return compact_json(content if bare else {"status": "SUCCESS", "message": "success", "data": content})


def instead_of_pictures(fault: Fault, *, model: str, url: str, bare: bool) -> ASGIApp | None:
    """The answer to an order for which no picture is made, or None when this fault lets one be made.

    Refusals have the route's own form, except FAILED inside a 200, which is TTAPI's alone.
    A redirect that names no target leads back to `url`, so that a client that follows it is seen to ask twice.
    """
    match fault.name:
        case "refuse":
            code = "moderation_blocked" if model.startswith("gpt-image-") else "content_policy_violation"
            return refused(400, _REJECTED, bare=bare, code=code)
        case "refuse-in-200":
            return failed(200, _REJECTED)
        case "failed-in-200":
            return failed(200, "Generation failed, please try again later.")
        case "model-gone":
            gone = f"The model `{model}` has been deprecated."
            return refused(int(fault.argument or 404), gone, bare=bare, code="model_not_found")
        case "status":
            status = int(fault.argument)
            return refused(status, WRONG_KEY if status == 401 else _MESSAGES.get(status, f"Error {status}."), bare=bare)
        case "html":
            return html(int(fault.argument))
        case "redirect":
            return RedirectResponse(fault.argument or url, 307)
        case "hang":
            return hang
        case "drop":
            return drop
        case "reset":
            return reset
        case _:
            return None


def spoiled(fault: Fault | None, body: bytes) -> ASGIApp:
    """A success on its way out, spoiled as ordered."""
    match fault:
        case Fault("cut"):
            return cut(body, media_type=JSON)
        case Fault("broken-json"):
            return Response(body[: len(body) * 2 // 3], media_type=JSON)
        case Fault("garbage"):
            return Response(random.Random(len(body)).randbytes(2_000), media_type=JSON)  # noqa: S311
        case Fault("empty"):
            return Response(b"", media_type=JSON)
        case Fault("huge-answer"):
            return Response(body[:-1] + b',"padding":"' + b"x" * _HUGE_ANSWER_BYTES + b'"}', media_type=JSON)
        case Fault("gzip-bomb"):
            return gzip_bomb(body, media_type=JSON, bytes_count=_GZIP_BOMB_BYTES)
        case Fault("drip"):
            return dripped(body, media_type=JSON, seconds=fault.seconds(default=1))
        case _:
            return Response(body, media_type=JSON)
