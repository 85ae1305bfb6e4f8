"""How is one paid order sent to upstream, once at most, and what came of it?"""

import asyncio
import re
from datetime import UTC, datetime

import httpx

from app.upstream.catalog import Model
from app.upstream.outcome import (
    Outcome,
    Refused,
    Unknown,
)
from app.upstream.reply import read_reply
from app.upstream.wire import NEVER_SENT, BodyTooLarge, Wire, read_capped

# A picture of 32 MiB is 42.7 MiB of base64; the rest is room for the envelope and the revised prompt.
ANSWER_BYTES_PER_IMAGE_MAX = 48 * 1024 * 1024

# Above this the loop would stand still while JSON and base64 are read (about 10 ms a MiB), so a thread reads them.
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
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._timeout = {"connect": connect_timeout_seconds, "read": read_timeout_seconds}
        self._total_timeout_seconds = total_timeout_seconds
        self._answer_bytes_per_image_max = answer_bytes_per_image_max
        self._transport = transport or Wire()

    async def generate(self, *, model: Model, prompt: str, size: str, quality: str, n: int) -> Outcome:
        """Sends one order exactly once and tells what came of it; never raises for anything upstream or the net does.

        `Refused` is surely not billed, `Unknown` may be. Cancelling passes through, and leaves the outcome unknown.
        Only the fields that the model's route takes are sent; none says in which form the pictures are to come.
        source: ttapi.io/docs/apiReference/dalle3, docs.ttapi.io/api/en/openai/images-generations, 2026-11-22.
        """
        order = {"prompt": prompt, "size": size, "model": model.name, "n": n, "quality": quality}
        request = httpx.Request(
            "POST",
            self._base_url + model.path,
            headers={
                "TT-API-KEY": self._api_key,
                "Accept": "application/json",
                # A compressed answer could be a bomb, and pictures do not shrink.
                "Accept-Encoding": "identity",
                "Connection": "close",
                "User-Agent": "imagekeep",
            },
            json={name: value for name, value in order.items() if name in model.fields},
            extensions={"timeout": self._timeout},
        )
        try:
            async with asyncio.timeout(self._total_timeout_seconds):
                response = await self._transport.handle_async_request(request)
                try:
                    body = await _read_answer(response, self._answer_bytes_per_image_max * n)
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
        return await _understood(response, body)

    async def close(self) -> None:
        """Closes every connection. An order still in flight ends as `Unknown`."""
        await self._transport.aclose()


def _is_base_url(text: str) -> bool:
    parts = _BASE_URL.fullmatch(text)
    return parts is not None and int(parts["port"] or 0) <= 65_535


async def _read_answer(response: httpx.Response, bytes_max: int) -> bytes:
    # One gzip layer is read, for a proxy that ignores Accept-Encoding: each chunk grows to 16 MiB at most before the
    # cap is looked at. Layers upon layers would multiply that.
    if response.headers.get("content-encoding", "").strip().lower() not in ("", "identity", "gzip"):
        raise httpx.DecodingError("unexpected Content-Encoding")
    return await read_capped(response, response.aiter_bytes(), bytes_max=bytes_max)


async def _understood(response: httpx.Response, body: bytes) -> Outcome:
    # Outside the deadline: an answer that is here in full is read in full.
    status, content_type, now = response.status_code, response.headers.get("content-type"), datetime.now(UTC)
    if len(body) <= _BODY_BYTES_READ_ON_LOOP_MAX:
        return read_reply(status, content_type, body, now=now)
    return await asyncio.to_thread(read_reply, status, content_type, body, now=now)


def _unreadable(error: Exception, status: int | None) -> Unknown:
    began = "No answer from upstream" if status is None else f"HTTP {status} from upstream, whose body did not come"
    # httpx's errors are named by `Wire` after aiohttp's; any other text could hold a URL, so only its class is told.
    if isinstance(error, BodyTooLarge):
        return Unknown(f"{began}: it is larger than an answer may be", status)
    reason = f"{type(error).__name__} ({error})" if isinstance(error, httpx.TransportError) else type(error).__name__
    return Unknown(f"{began}: {reason}", status)
