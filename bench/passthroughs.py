"""What does an order cost where nothing is done but passing it on: how fast are the two yardsticks?

Fixed before anything was measured against them, and not touched since: both are written as somebody would who knows
their libraries (one client, no limit on its connections, the raw body passed on), and do nothing else. No key of the
caller's is looked at, nothing is counted, stored or kept.

python -m bench.passthroughs aiohttp --port 9001 --upstream http://127.0.0.1:9000
python -m bench.passthroughs httpx --port 9002 --upstream http://127.0.0.1:9000
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

PATH = "/openai/v1/images/generations"

_HEADERS = {"TT-API-KEY": "bench-upstream-key", "Content-Type": "application/json"}
_TIMEOUT_SECONDS = 300


def with_aiohttp(upstream_url: str) -> FastAPI:
    """Return a bare FastAPI application that passes every order on with aiohttp."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post(PATH)
    async def pass_on(request: Request) -> Response:
        body = await request.body()
        async with request.app.state.client.post(upstream_url + PATH, data=body, headers=_HEADERS) as answer:
            return Response(await answer.read(), answer.status, media_type=answer.content_type)

    return app


def with_httpx(upstream_url: str) -> FastAPI:
    """Return a bare FastAPI application that passes every order on with httpx as it comes, over its own transport."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=_TIMEOUT_SECONDS) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post(PATH)
    async def pass_on(request: Request) -> Response:
        body = await request.body()
        answer = await request.app.state.client.post(upstream_url + PATH, content=body, headers=_HEADERS)
        return Response(answer.content, answer.status_code, media_type=answer.headers["content-type"])

    return app


def main() -> None:
    """Serve one of the two until it is ended, with the same server, loop and parser as Imagekeep has."""
    parser = argparse.ArgumentParser(prog="python -m bench.passthroughs")
    parser.add_argument("client", choices=["aiohttp", "httpx"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    asked = parser.parse_args()
    create = with_aiohttp if asked.client == "aiohttp" else with_httpx
    app = create(asked.upstream)
    uvicorn.run(app, host="127.0.0.1", port=asked.port, log_level="warning", access_log=False, backlog=2048)


if __name__ == "__main__":
    main()
