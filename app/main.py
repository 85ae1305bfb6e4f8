"""Which application does a server run: what is mounted where, and what stands around it?"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp

from app.api.files import create_files
from app.api.native import create_native, render_problem
from app.api.openai import create_openai, render_error
from app.api.ops import ops_routes
from app.api.surface import Render, RequestContext
from app.api.ttapi import create_ttapi, render_failed
from app.api.unread import UnreadBody
from app.errors import NotFound
from app.generations.recovery import recover_for_ever
from app.settings import Settings
from app.wiring import STAYING, Departure, Neighbours, open_wiring

# Where each wire format begins; everything else is native.
_RENDERS: Mapping[str, Render] = {"/v1/": render_error, "/openai/v1/": render_failed}

_EXPOSED = (
    "imagekeep-made",
    "imagekeep-price-micros",
    "location",
    "openai-processing-ms",
    "preference-applied",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-request-id",
    "x-should-retry",
)


def create_app(settings: Settings, neighbours: Neighbours, *, departure: Departure = STAYING) -> Starlette:
    """Return the whole service. Its lifespan opens what it shares, recovers in the background, and drains at the end.

    `departure` tells how far the server that runs it is on its way out.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with open_wiring(settings, neighbours, departure) as wiring:
            recovery = asyncio.create_task(
                recover_for_ever(
                    wiring.database,
                    wiring.driver,
                    wiring.stores,
                    # Sources that are silent in recovery leave half of the places to orders that are made now.
                    places=max(1, settings.rehost_in_flight_max // 2),
                    lease_seconds=settings.generated_lease_seconds,
                    interval_seconds=settings.recovery_interval_seconds,
                )
            )
            yield {"wiring": wiring}
            await wiring.runner.drain(seconds=settings.drain_seconds, stop_now=departure.hurried)
            recovery.cancel()
            with suppress(asyncio.CancelledError):
                await recovery

    return Starlette(
        lifespan=lifespan,
        # A path that no mount takes: one with a line break in it.
        exception_handlers={HTTPException: _render_not_found},
        middleware=[
            Middleware(RequestContext, leaving=departure.announced),
            Middleware(UnreadBody),
        ],
        routes=[
            *ops_routes(),
            # Images are open to every origin by themselves, so they stand outside the configured origins.
            Mount("/i", create_files(render_problem)),
            Mount("/v1", _for_origins(create_openai(), settings.origins())),
            Mount("/openai/v1", _for_origins(create_ttapi(), settings.origins())),
            Mount("/", _for_origins(create_native(), settings.origins())),
        ],
    )


def _render_not_found(request: Request, error: Exception) -> Response:
    render = next((render for path, render in _RENDERS.items() if request.url.path.startswith(path)), render_problem)
    return render(request, NotFound())


def _for_origins(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    if not origins:
        return app
    # Around the whole surface: put inside it, it would miss the answer to a crash, and a browser would show its page a
    # network error in the place of our message.
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        # Whatever a page asks for: SDKs in browsers send a dozen of their own, with every release another. A key alone
        # opens anything here, so a header that is allowed gives a page nothing.
        allow_headers=["*"],
        expose_headers=_EXPOSED,
        max_age=600,
    )
