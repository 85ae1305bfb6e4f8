"""How is one paid order sent to upstream, once at most, and what came of it?"""

import asyncio
import json
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache, partial

import httpx

from app.connections.connection import BodyTooLarge
from app.upstream.catalog import Model
from app.upstream.outcome import BytesSource, Generated, Outcome, Refused, Unknown
from app.upstream.reply import read_reply
from app.upstream.room import SMALL_BYTES, UNTOLD_BYTES, Hold, Room
from app.upstream.wire import NEVER_SENT, Wire

# A picture of 32 MiB is 42.7 MiB of base64; the rest is room for the envelope and the revised prompt.
ANSWER_BYTES_PER_IMAGE_MAX = 48 * 1024 * 1024

# Above this the loop would stand still while JSON and base64 are read (about 0.5 ms a MiB), so a thread reads them.
_BODY_BYTES_READ_ON_LOOP_MAX = 256 * 1024

_BASE_URL = re.compile(
    r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?:/[A-Za-z0-9._~-]+)*/?"
)


class Upstream:
    """The one place that holds the TT API key and spends the operator's money.

    The key is in one request header to the origin of `base_url`, and in no repr, log or outcome.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        total_timeout_seconds: float,
        answer_bytes_per_image_max: int = ANSWER_BYTES_PER_IMAGE_MAX,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Opens nothing yet. `connect` covers name resolution, connect and TLS; `read` each silence; `total` all.

        Raises: ValueError for a key that cannot be in a header, or a base URL that is more than an origin and a path.
        """
        if not _is_base_url(base_url):
            raise ValueError("the upstream base URL must be http(s)://host[:port][/path]")
        if not api_key or not all("!" <= character <= "~" for character in api_key):
            raise ValueError("the TT API key must be visible ASCII")
        # Taking a URL apart is half of what a request costs to make, and the catalog has a few paths.
        self._url_of = cache(lambda path: httpx.URL(base_url.rstrip("/") + path))
        self._headers = httpx.Headers(
            {
                "Host": httpx.URL(base_url).netloc.decode("ascii"),
                "TT-API-KEY": api_key,
                "Accept": "application/json",
                # A compressed answer could be a bomb, and pictures do not shrink.
                "Accept-Encoding": "identity",
                "Connection": "close",
                "User-Agent": "imagekeep",
                "Content-Type": "application/json",
            }
        )
        self._timeout = {"connect": connect_timeout_seconds, "read": read_timeout_seconds}
        self._total_timeout_seconds = total_timeout_seconds
        self._answer_bytes_per_image_max = answer_bytes_per_image_max
        self._transport = transport or Wire()
        # One, since reading base64 takes several times its size: of two at once, the second gains nothing.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="answer")

    async def generate(
        self, *, model: Model, prompt: str, size: str, quality: str, n: int, held: Hold | None = None
    ) -> Outcome:
        """Sends one order exactly once and tells what came of it; never raises for anything upstream or the net does.

        `Refused` is surely not billed, `Unknown` may be. Cancelling passes through, and leaves the outcome unknown.
        `held` takes the room for an answer that holds pictures, and keeps what they need. Waiting for it is no part of
        the time that upstream has.
        Only the fields that the model's route takes are sent; none says in which form the pictures are to come.
        source: ttapi.io/docs/apiReference/dalle3, docs.ttapi.io/api/en/openai/images-generations, 2026-11-22.
        """
        order = {"prompt": prompt, "size": size, "model": model.name, "n": n, "quality": quality}
        request = self._request(model.path, {name: value for name, value in order.items() if name in model.fields})
        held = held or Room(bytes_max=0, patience_seconds=0).hold()
        try:
            async with asyncio.timeout(self._total_timeout_seconds) as deadline:
                response = await self._transport.handle_async_request(request)
                try:
                    body = await _read_answer(response, self._answer_bytes_per_image_max * n, deadline, held)
                except Exception as error:  # noqa: BLE001 - as below; here the status is known as well.
                    return _unreadable(error, response.status_code)
                finally:
                    await response.aclose()
        except NEVER_SENT as error:
            return Refused("upstream_unreachable", f"No connection to upstream was made: {error}", None)
        except TimeoutError:
            return Unknown(f"No whole answer from upstream within {self._total_timeout_seconds:g} s", None)
        except Exception as error:  # noqa: BLE001 - what nobody foresaw, after the order may have left, may be billed.
            return _unreadable(error, None)
        return await self._understood(response, body, held)

    def _request(self, path: str, order: Mapping[str, object]) -> httpx.Request:
        body = json.dumps(order, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        headers = self._headers.copy()
        headers["Content-Length"] = str(len(body))
        # Given a stream, httpx leaves the headers as they are. Finding out which are missing takes it longer than all
        # else that is done with a request.
        stream, timeout = httpx.ByteStream(body), {"timeout": self._timeout}
        return httpx.Request("POST", self._url_of(path), headers=headers, stream=stream, extensions=timeout)

    async def _understood(self, response: httpx.Response, body: bytearray, held: Hold) -> Outcome:
        # Outside the deadline: an answer that is here in full is read in full.
        status, content_type, now = response.status_code, response.headers.get("content-type"), datetime.now(UTC)
        if len(body) <= _BODY_BYTES_READ_ON_LOOP_MAX:
            return read_reply(status, content_type, body, now=now)
        reading = partial(read_reply, status, content_type, body, now=now)
        outcome = await asyncio.get_running_loop().run_in_executor(self._reader, reading)
        sources = outcome.sources if isinstance(outcome, Generated) else ()
        held.settle(sum(len(source.body) for source in sources if isinstance(source, BytesSource)))
        return outcome

    async def close(self) -> None:
        """Closes every connection. An order still in flight ends as `Unknown`."""
        await self._transport.aclose()
        self._reader.shutdown(wait=False)


def _is_base_url(text: str) -> bool:
    parts = _BASE_URL.fullmatch(text)
    return parts is not None and int(parts["port"] or 0) <= 65_535


async def _read_answer(response: httpx.Response, bytes_max: int, deadline: asyncio.Timeout, held: Hold) -> bytearray:
    """Gather the body, and promise never to hold more than `bytes_max` bytes of it. Raises BodyTooLarge.

    Room is waited for before it is read on, where Content-Length tells that it is no small one, else once it is not.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    # One gzip layer is read, for a proxy that ignores Accept-Encoding. Layers upon layers could be a bomb.
    if encoding not in ("", "identity", "gzip"):
        raise httpx.DecodingError("unexpected Content-Encoding")
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding == "gzip" else None
    declared = response.headers.get("content-length", "")
    length = int(declared) if declared.isascii() and declared.isdecimal() else None
    if length is not None and length > bytes_max:
        raise BodyTooLarge
    body, waits = bytearray(), length is None or decoder is not None
    if length is not None and not waits:
        await held.take(length, deadline=deadline)
    async for chunk in response.aiter_raw():
        if decoder is not None:
            body += decoder.decompress(chunk, bytes_max + 1 - len(body))
        elif not body and isinstance(chunk, bytearray):
            body = chunk
        else:
            body += chunk
        if len(body) > bytes_max:
            raise BodyTooLarge
        if waits and len(body) > SMALL_BYTES:
            await held.take(UNTOLD_BYTES, deadline=deadline)
            waits = False
    if decoder is not None and not decoder.eof:
        raise httpx.DecodingError("a body that ends before its gzip stream does")
    return body


def _unreadable(error: Exception, status: int | None) -> Unknown:
    began = "No answer from upstream" if status is None else f"HTTP {status} from upstream, whose body did not come"
    # What `Wire` says with httpx's errors names a class; any other text could hold a URL, so only its class is told.
    if isinstance(error, BodyTooLarge):
        return Unknown(f"{began}: it is larger than an answer may be", status)
    reason = f"{type(error).__name__} ({error})" if isinstance(error, httpx.TransportError) else type(error).__name__
    return Unknown(f"{began}: {reason}", status)
