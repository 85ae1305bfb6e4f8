"""What becomes of a body that was answered before it was read?"""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DISCARDED_BYTES_MAX = 32 * 1024 * 1024
_DISCARDED_SECONDS_MAX = 5


class UnreadBody:
    """Reads what is left of a request's body, and throws it away, once the whole answer is on its way.

    A connection that is closed over bytes nobody read is reset, and a reset can overtake the answer: the client would
    see a broken connection in the place of our 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _brings_body(scope):
            await self._app(scope, receive, send)
            return
        unread = True

        async def receive_noting() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def discard() -> None:
            size = 0
            while unread and size <= _DISCARDED_BYTES_MAX:
                size += len((await receive_noting()).get("body", b""))

        async def send_then_discard(message: Message) -> None:
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                # All of the answer goes out here; only its end, after which the connection may be closed, is held back.
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(_DISCARDED_SECONDS_MAX):
                        await discard()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, receive_noting, send_then_discard)


def _brings_body(scope: Scope) -> bool:
    if scope["type"] != "http":
        return False
    headers = dict(scope["headers"])
    # Who sends `Expect` waits to be asked for the body, and has our answer instead.
    return b"expect" not in headers and (
        b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
    )
