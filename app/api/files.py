"""How is an image served at its permanent URL, for ever?"""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse

from app.api.surface import Render, create_surface, wiring_of
from app.errors import ImageDeleted, NotFound, RangeNotSatisfiable
from app.generations import images
from app.generations.records import Image
from app.wiring import Wiring

_NAME = re.compile(r"([0-9a-f]{32})\.(png|jpg|webp)")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

# Open to every page, and always so: an answer cached from an <img>, which sends no Origin, would else break a later
# fetch() of the same URL (seen in Chromium).
_OPEN = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "content-length, content-range, etag, x-request-id",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
}
# A deletion reaches every cache within a day.
_CACHED = {"cache-control": "public, max-age=86400"}


def create_files(render: Render) -> FastAPI:
    """Return the application under `/i`. It asks for no key, and minds none that comes along: some clients send one."""

    def render_open(request: Request, error: Exception) -> Response:
        answer = render(request, error)  # type: ignore[arg-type]
        answer.headers.update(_OPEN)
        if isinstance(error, RangeNotSatisfiable):
            answer.headers["content-range"] = f"bytes */{error.details['bytes']}"
        return answer

    app = create_surface(render_open, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/{name}", get_image, methods=["GET", "HEAD"])
    app.add_api_route("/{name}", allow_all, methods=["OPTIONS"])
    return app


async def get_image(request: Request, name: str) -> Response:
    """Serve an image: whole, a range of it, its headers alone, or the news that the cached copy is still right."""
    image = await _find(request, name)
    etag = f'"{image.sha256.hex()[:32]}"'
    headers = {**_OPEN, **_CACHED, "etag": etag, "accept-ranges": "bytes"}
    wiring = wiring_of(request)
    elsewhere = wiring.settings.s3_public_base_url
    if elsewhere and request.method == "GET" and image.storage == wiring.home.name:
        # Not cached: the day the bucket moves, every URL must follow.
        location = {"location": f"{elsewhere}/{image.storage_key}", "cache-control": "no-store"}
        return Response(status_code=302, headers=_OPEN | location)
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        # Range has a meaning for GET alone (RFC 9110, 14.2).
        return _head(image, headers)
    span = _read_range(request, image, etag)
    return await stream_image(wiring, image, headers, span)


async def allow_all(request: Request, name: str) -> Response:
    """Answer a browser's preflight: any page may read images, with whatever headers it sends."""
    allowed = {
        "access-control-allow-methods": "GET, HEAD, OPTIONS",
        "access-control-allow-headers": request.headers.get("access-control-request-headers", "*"),
        "access-control-max-age": "86400",
        "vary": "access-control-request-headers",
    }
    return Response(status_code=204, headers=_OPEN | allowed)


@dataclass(frozen=True)
class Span:
    """A part of an image: `length` bytes from `start` on."""

    start: int
    length: int


async def stream_image(wiring: Wiring, image: Image, headers: Mapping[str, str], span: Span | None = None) -> Response:
    """Return an image's bytes, or a span of them, streamed from wherever it lives. Raises StorageUnavailable."""
    start, length = (span.start, span.length) if span else (0, image.size_bytes)
    chunks = await images.read(wiring.database, wiring.storages, image, start=start, length=length)
    told = {**headers, "content-length": str(length), "x-content-type-options": "nosniff"}
    if span:
        told["content-range"] = f"bytes {start}-{start + length - 1}/{image.size_bytes}"
    return StreamingResponse(
        _closing(chunks), status_code=206 if span else 200, headers=told, media_type=image.content_type
    )


async def _closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Free the file or the socket also when the client leaves half-way."""
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]


def _head(image: Image, headers: Mapping[str, str]) -> Response:
    told = {**headers, "content-length": str(image.size_bytes), "content-type": image.content_type}
    return Response(headers=told)


async def _find(request: Request, name: str) -> Image:
    match = _NAME.fullmatch(name)
    if match is None:
        raise NotFound("There is no such image.")
    async with wiring_of(request).database.statement() as connection:
        image = await images.find(connection, match[1])
    if image is None or image.extension != match[2]:
        raise NotFound("There is no such image.")
    if image.deleted_at is not None:
        raise ImageDeleted
    return image


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return any(given.strip().removeprefix("W/") in (etag, "*") for given in header.split(","))


def _read_range(request: Request, image: Image, etag: str) -> Span | None:
    """Return the one range that was asked for; None for none, several, or one that can't be read (RFC 9110, 14.2)."""
    header = request.headers.get("range")
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(1, 2) == ("", "") or request.headers.get("if-range", etag) != etag:
        return None
    first, last, size = match[1], match[2], image.size_bytes
    if not first:
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
    if last and first and int(last) < int(first):
        return None
    if start >= size or (not first and int(last) == 0):
        raise RangeNotSatisfiable(f"The picture has {size} bytes.", details={"bytes": size})
    return Span(start, end - start + 1)
