"""What does the host of the pictures answer?"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp

from app.sandbox.drawing import draw, draw_bomb, sign
from app.sandbox.pictures import Denied, Picture, read_url
from app.sandbox.sending import cut, drop, endless, html, stalled
from app.sandbox.witness import Witness

_HUGE_PICTURE_BYTES: Final = 41 * 1024 * 1024
_SVG: Final = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@dataclass(frozen=True)
class Drawing:
    """How pictures are made: drawn (`draw`), or, for load, one blank a size from `blank`, signed."""

    draw: bool
    blank: Callable[[tuple[int, int], str], bytes]


async def paint(drawing: Drawing, picture: Picture) -> bytes:
    """The picture's bytes. Drawing runs in a thread; a blank is kept, and is cheaper than a thread would be."""
    if not drawing.draw:
        blank = drawing.blank(picture.width_height, picture.image_format)
        return sign(blank, picture.image_format, picture.prompt)
    return await to_thread.run_sync(_draw, picture)


async def answer_picture(drawing: Drawing, witness: Witness, request: Request) -> ASGIApp:
    """Answers the GET of a picture's URL: the picture, what its fault orders, or 403 when changed or over."""
    witness.note_picture(headers=request.headers.keys())
    file_name = request.path_params["file_name"]
    try:
        picture = read_url(file_name, request.query_params, now=time.time())
    except Denied as denied:
        return _azure_error(403, "AuthenticationFailed", "Server failed to authenticate the request.", str(denied))
    asked_before = witness.note_picture_of(picture.order_id, file_name)
    name, _, argument = picture.fault.partition(" ")
    media_type = f"image/{picture.image_format}"
    return _instead(name, argument, media_type, asked_before) or await _painted(drawing, name, argument, picture)


def _instead(name: str, argument: str, media_type: str, asked_before: int) -> ASGIApp | None:
    match name:
        case "missing":
            return _azure_error(404, "BlobNotFound", "The specified blob does not exist.")
        case "status":
            return _azure_error(int(argument), "Ordered", "The prompt ordered this status.")
        case "flaky" if asked_before < int(argument):
            return _azure_error(503, "ServerBusy", "The server is busy.")
        case "html":
            return html(200)
        case "svg":
            return Response(_SVG, media_type="image/svg+xml")
        case "garbage":
            return Response(b"this is no picture " * 100, media_type=media_type)
        case "empty":
            return Response(b"", media_type=media_type)
        case "redirect":
            return RedirectResponse(argument, 302)
        case "drop":
            return drop
        case _:
            return None


async def _painted(drawing: Drawing, name: str, argument: str, picture: Picture) -> ASGIApp:
    media_type = f"image/{picture.image_format}"
    if name == "bomb":
        return Response(await to_thread.run_sync(draw_bomb), media_type="image/png")
    content = await paint(drawing, picture)
    match name:
        case "huge":
            return endless(content, media_type=media_type, bytes_count=_HUGE_PICTURE_BYTES)
        case "slow":
            return stalled(content, media_type=media_type, seconds=float(argument or 0))
        case "cut":
            return cut(content, media_type=media_type)
        case _:
            return Response(content, media_type=media_type)


def _draw(picture: Picture) -> bytes:
    seed = f"{picture.order_id} {picture.index}"
    return draw(picture.width_height, picture.image_format, prompt=picture.prompt, seed=seed)


def _azure_error(status: int, code: str, message: str, detail: str = "") -> Response:
    more = f"<AuthenticationErrorDetail>{escape(detail)}</AuthenticationErrorDetail>" if detail else ""
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>'
    return Response(body, status, headers={"x-ms-error-code": code}, media_type="application/xml")
