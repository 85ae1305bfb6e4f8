"""Is this process alive, is it ready, and what are its figures?"""

import asyncio
import os

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess
from prometheus_client import REGISTRY as PROCESS_REGISTRY
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.database.revisions import head_revision
from app.database.schema import current_revision, takes_writes
from app.errors import DatabaseUnavailable
from app.wiring import Wiring

log = structlog.get_logger(__name__)

_CHECK_SECONDS_MAX = 5
_SPOOLING = "unavailable, spooling"


def ops_routes() -> list[Route]:
    """Return the routes that an operator's machinery asks. They tell states and figures, no names and no secrets."""
    return [
        Route("/healthz", tell_alive, methods=["GET"]),
        Route("/readyz", tell_ready, methods=["GET"]),
        Route("/metrics", tell_figures, methods=["GET"]),
    ]


async def tell_alive(request: Request) -> Response:
    """Answer 200: this process runs and its loop turns. It asks nobody else."""
    return JSONResponse({"status": "ok"})


async def tell_ready(request: Request) -> Response:
    """Answer 200 when orders would be taken, 503 when not, with each part's state, or from when it is told to stop.

    Upstream is not asked, and what this process heard of it last is told without counting: no other replica has another
    upstream to send orders to. Storage is shared by all replicas as well: while the spool takes its place, a load
    balancer that left all of them out would make an outage that no caller need notice.
    """
    wiring: Wiring = request.state.wiring
    if wiring.departure.announced():
        # At once, and whatever the others say: from here on every caller is better off elsewhere.
        return JSONResponse({"status": "draining"}, status_code=503)
    database, storage = await asyncio.gather(_database_state(wiring), _storage_state(wiring))
    ready = database == "ok" and storage in ("ok", _SPOOLING)
    answer = {"status": "ok" if ready else "not ready", "database": database, "storage": storage}
    answer["breaker"] = wiring.breaker.state
    return JSONResponse(answer, status_code=200 if ready else 503)


async def tell_figures(request: Request) -> Response:
    """Answer with this installation's figures, of all its workers, in Prometheus' text format."""
    registry = PROCESS_REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def _database_state(wiring: Wiring) -> str:
    try:
        async with asyncio.timeout(_CHECK_SECONDS_MAX), wiring.database.statement() as connection:
            revision = await current_revision(connection)
            if not await takes_writes(connection):
                return "read-only"
    except TimeoutError:
        return "unavailable"
    except DatabaseUnavailable as error:
        return "not migrated" if error.not_migrated else "unavailable"
    return "ok" if revision == head_revision() else "at another schema version"


async def _storage_state(wiring: Wiring) -> str:
    stores = wiring.stores
    # While it fails, recovery asks it; a storage that hangs would hold up every probe.
    if not stores.failing and await stores.answers():
        return "ok"
    try:
        has_room = await stores.pictures_max() != 0
    except DatabaseUnavailable:
        has_room = False
    # One that has never worked here is most likely a mistake in the settings, and better told before callers come.
    return _SPOOLING if has_room and not stores.misconfigured else "unavailable"
