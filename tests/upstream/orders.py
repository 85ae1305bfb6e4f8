"""What do tests order, from an upstream of their own, and what does a good answer look like?"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from app.upstream.catalog import load_catalog
from app.upstream.client import Upstream
from app.upstream.outcome import Outcome

KEY = "tt-canary-key-5d1e"
PROMPT = "a canary in a coal mine — 🐤"
MODEL = load_catalog(None).models[0]
ORDER: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "size": "1792x1024", "quality": "hd", "n": 1}
SUCCESS = json.dumps(
    {
        "status": "SUCCESS",
        "message": "success",
        "data": {"created": 1, "data": [{"revised_prompt": "a bird", "url": "https://pictures.example/a.png?sig=x"}]},
    }
).encode()


@asynccontextmanager
async def upstream_at(
    base_url: str,
    *,
    connect: float = 5.0,
    read: float = 5.0,
    total: float = 10.0,
    answer_bytes_max: int = 1024 * 1024,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Upstream]:
    upstream = Upstream(
        base_url=base_url,
        api_key=KEY,
        connect_timeout_seconds=connect,
        read_timeout_seconds=read,
        total_timeout_seconds=total,
        answer_bytes_per_image_max=answer_bytes_max,
        transport=transport,
    )
    try:
        yield upstream
    finally:
        await upstream.close()


async def order_from(upstream: Upstream) -> Outcome:
    outcome = await upstream.generate(**ORDER)
    for secret in (KEY, PROMPT, "sig=x"):
        assert secret not in repr(outcome)
        assert secret not in repr(upstream)
    return outcome
