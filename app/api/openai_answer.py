"""How are the pictures of a completed generation written in OpenAI's words: as URLs, or as base64?

TTAPI's envelope holds the same. A picture in base64 is read from wherever it lives and encoded as it is sent, so that
an answer of many megabytes has one chunk of them in memory.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import Request, Response
from pybase64 import b64encode
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app.api.openai_order import ImageRequest
from app.api.ordering import Taken, completed, not_readable, told_headers
from app.api.surface import Json, encoded, wiring_of
from app.errors import DatabaseUnavailable, StorageUnavailable
from app.generations import images
from app.generations.records import Generation, Image
from app.wiring import Wiring


async def answer_with_images(
    request: Request,
    taken: Taken,
    asked: ImageRequest,
    *,
    envelope: Callable[[dict[str, Any]], dict[str, Any]],
    headers: Mapping[str, str],
) -> Response:
    """Return the answer to an order: `envelope` is put around `{created, data: [{url or b64_json, revised_prompt}]}`.

    Raises what `completed` does, and what `not_readable` returns when a picture in base64 can't be had just now.
    """
    generation = completed(request, taken)
    headers = {
        **headers,
        **told_headers(generation),
        "cache-control": "no-store",
        "location": f"/images/{generation.id}",
    }
    true = _true_of(generation) if asked.of_newer_model else {}
    if not asked.in_base64:
        public_url = wiring_of(request).settings.resolved_public_url()
        urls = [{"url": f"{public_url}/i/{image.id}.{image.extension}"} for image in generation.images]
        return Json(envelope({**_content(generation, urls), **true}), headers=headers)
    # Where the pictures go, until they are read. Nobody can have put it into a prompt.
    mark = secrets.token_hex(16)
    content = {**_content(generation, [{"b64_json": mark} for _ in generation.images]), **true}
    return await _stream(request, taken, encoded(envelope(content)).split(mark.encode()), generation.images, headers)


def _content(generation: Generation, pictures: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    # One revised prompt is kept for an order, and true of one picture only.
    revised = {"revised_prompt": generation.revised_prompt} if generation.revised_prompt and len(pictures) == 1 else {}
    created = int(generation.created_at.timestamp())
    return {"created": created, "data": [{**revised, **picture} for picture in pictures]}


def _true_of(generation: Generation) -> dict[str, str]:
    """What OpenAI says of a newer model's pictures, as far as it is known. Of an older one's it says nothing, and a
    strict client would not know `standard`.
    """
    image = generation.images[0]
    kind = image.content_type.removeprefix("image/")
    quality = {} if generation.quality == "auto" else {"quality": generation.quality}
    return {"size": f"{image.width}x{image.height}", "output_format": kind, **quality}


async def _stream(
    request: Request, taken: Taken, between: Sequence[bytes], pictures: Sequence[Image], headers: Mapping[str, str]
) -> Response:
    wiring = wiring_of(request)
    try:
        # The first is opened before anything is said; while storage is away, that is an error of our own words.
        first = await images.read(wiring.database, wiring.storages, pictures[0])
    except (StorageUnavailable, DatabaseUnavailable) as error:
        raise not_readable(request, taken) from error
    length = sum(map(len, between)) + sum((image.size_bytes + 2) // 3 * 4 for image in pictures)
    return _Sent(
        _written(wiring, between, pictures, first),
        # Storage broke off, or the client did: its next try is to get this picture, not to pay for another.
        or_else=partial(wiring.runner.leave_unanswered, taken.placed),
        headers={**headers, "content-length": str(length)},
    )


class _Sent(StreamingResponse):
    """An answer in pieces that calls `or_else` when not all of them could be sent."""

    def __init__(
        self, content: AsyncIterator[bytes], *, or_else: Callable[[], None], headers: Mapping[str, str]
    ) -> None:
        super().__init__(content, headers=headers, media_type="application/json")
        self._content = content
        self._or_else = or_else

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = False

        async def send_noting(message: Message) -> None:
            nonlocal ended
            await send(message)
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await super().__call__(scope, receive, send_noting)
        finally:
            await self._content.aclose()  # type: ignore[attr-defined]
            if not ended:
                self._or_else()


async def _written(
    wiring: Wiring, between: Sequence[bytes], pictures: Sequence[Image], chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    try:
        for before, image in zip(between[:-1], pictures, strict=True):
            if image is not pictures[0]:
                chunks = await images.read(wiring.database, wiring.storages, image)
            yield before
            async for part in _in_base64(chunks, image):
                yield part
        yield between[-1]
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]


async def _in_base64(chunks: AsyncIterator[bytes], image: Image) -> AsyncIterator[bytes]:
    rest, size_bytes = b"", 0
    async for chunk in chunks:
        size_bytes += len(chunk)
        rest += chunk
        whole = len(rest) - len(rest) % 3
        yield b64encode(rest[:whole])
        rest = rest[whole:]
    if size_bytes != image.size_bytes:
        # The length was told already, so the client sees that this is no whole answer.
        raise StorageUnavailable(f"Of {image.storage_key} {size_bytes} bytes came instead of {image.size_bytes}.")
    yield b64encode(rest)
