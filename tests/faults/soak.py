"""Does a service that takes orders for half an hour grow in memory, sockets, tasks or connections?"""

import asyncio
import json
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import uvicorn

from app.database.embedded import open_embedded
from app.database.schema import migrate
from app.main import create_app
from app.settings import Settings
from app.telemetry import configure_logging
from app.wiring import Neighbours
from tests.faults.frame import Figures, Piece
from tests.installation import eventually, free_port
from tests.sandbox_server import running_sandbox
from tests.service import TT_API_KEY, add_user, rows

ORDERS_PER_SECOND = 20
_SAMPLE_SECONDS = 2.0
# What a process learns in its first minutes (pools, caches, the allocator's arenas) is no leak.
_WARM_UP_SHARE = 0.3
_MIB_PER_10_MINUTES_MAX = 1.0
# What stays open between orders: the pool of connections to Postgres, and a few kept alive.
_IDLE_SOCKETS_MORE_MAX = 12

_CONNECTIONS = "SELECT count(*) AS open FROM pg_stat_activity WHERE application_name = 'imagekeep'"


@dataclass(frozen=True)
class Sample:
    """What one process held at one moment."""

    at_seconds: float
    rss_mib: float
    sockets: int
    files: int
    tasks: int


def soak(piece: Piece) -> Figures:
    """Order for `times` seconds, 20 a second, and compare what the process holds early and late."""
    samples = piece.folder / "samples.jsonl"
    with (
        open_embedded(piece.folder / "postgres", role="serve", durable=False) as postgres,
        running_sandbox(draw=False, delay_seconds=0.3) as sandbox,
    ):
        migrate(postgres.url)
        key = add_user(postgres.url, images_per_day_max=10**9)
        port = free_port()
        service = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(postgres.url, sandbox.url, port, piece.folder, samples), daemon=True
        )
        service.start()
        try:
            eventually(lambda: samples.exists() and samples.read_text(), seconds=60)
            statuses, connections = asyncio.run(_order_for(piece.times, f"http://127.0.0.1:{port}", key, postgres.url))
            time.sleep(2 * _SAMPLE_SECONDS)
        finally:
            service.terminate()
            service.join(30)
    return _figures(
        piece, [Sample(**json.loads(line)) for line in samples.read_text().splitlines()], statuses, connections
    )


def _serve(database_url: str, upstream_url: str, port: int, folder: Path, samples: Path) -> None:
    """Be the service, and write down what it holds."""
    configure_logging(level="WARNING", log_format="json", secrets=())
    settings = Settings(
        _env_file=None,
        tt_api_key=TT_API_KEY,
        tt_api_base_url=upstream_url,
        allow_private_image_hosts=True,
        data_dir=folder / "data",
        port=port,
    )
    config = uvicorn.Config(
        create_app(settings, Neighbours(database_url)), port=port, lifespan="on", log_config=None, access_log=False
    )

    async def work() -> None:
        serving = asyncio.create_task(uvicorn.Server(config).serve())
        started = time.monotonic()
        with samples.open("a", buffering=1) as written:
            while not serving.done():
                await asyncio.sleep(_SAMPLE_SECONDS)
                written.write(json.dumps(vars(_sample(time.monotonic() - started))) + "\n")

    asyncio.run(work())


def _sample(at_seconds: float) -> Sample:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    opened = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            opened.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    sockets = sum(link.startswith("socket:") for link in opened)
    return Sample(
        at_seconds, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, sockets, len(opened) - sockets, len(asyncio.all_tasks())
    )


async def _order_for(seconds: int, url: str, key: str, database_url: str) -> tuple[dict[int, int], list[int]]:
    """Order at a steady rate whatever the answers do; how often each status came, and the connections to Postgres.

    A status is the picture's where there is one, and 0 where a connection broke.
    """
    statuses: dict[int, int] = {}
    connections: list[int] = []
    headers = {"authorization": f"Bearer {key}"}
    # A connection that is kept open could be closed by the service at the moment a request goes out over it.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(url, headers=headers, connector=connector) as client:

        async def order() -> None:
            status = 0
            try:
                async with client.post("/images", json={"prompt": "a fox"}) as answer:
                    told, status = await answer.json(content_type=None), answer.status
                if status == 200:
                    async with client.get(told["images"][0]["url"]) as picture:
                        await picture.read()
                        status = picture.status
            except aiohttp.ClientError:
                status = 0
            statuses[status] = statuses.get(status, 0) + 1

        started = time.monotonic()
        ordering: set[asyncio.Task[None]] = set()
        for number in range(seconds * ORDERS_PER_SECOND):
            await asyncio.sleep(max(0.0, started + number / ORDERS_PER_SECOND - time.monotonic()))
            task = asyncio.create_task(order())
            ordering.add(task)
            task.add_done_callback(ordering.discard)
            if number % (10 * ORDERS_PER_SECOND) == 0:
                (found,) = await asyncio.to_thread(
                    rows,
                    database_url,
                    "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'imagekeep'",
                )
                connections.append(found["n"])
        await asyncio.gather(*ordering)
    return statuses, connections


def _figures(piece: Piece, samples: list[Sample], statuses: dict[int, int], connections: list[int]) -> Figures:
    during = [sample for sample in samples if sample.at_seconds < piece.times]
    steady = during[int(len(during) * _WARM_UP_SHARE) :]
    early, late = steady[: len(steady) // 3], steady[-(len(steady) // 3) :]
    minutes = (late[0].at_seconds - early[0].at_seconds) / 60
    slope = (_middle(late) - _middle(early)) / minutes * 10
    idle_before, idle_after = samples[0], samples[-1]
    broken = []
    if set(statuses) != {200}:
        broken.append(f"answers were {statuses}")
    # A short run has no slope to speak of: the allocator's steps are larger than a minute's leak.
    if minutes > 5 and slope > _MIB_PER_10_MINUTES_MAX:
        broken.append(f"memory grew by {slope:.2f} MiB in 10 minutes")
    if idle_after.tasks > idle_before.tasks:
        broken.append(f"{idle_after.tasks} tasks are left when idle, {idle_before.tasks} were there before")
    if idle_after.sockets > idle_before.sockets + _IDLE_SOCKETS_MORE_MAX:
        broken.append(f"{idle_after.sockets} sockets are left when idle, {idle_before.sockets} were there before")
    if idle_after.files > idle_before.files + 2:
        broken.append(f"{idle_after.files} files are left open when idle, {idle_before.files} were before")
    measured = {
        "RSS MiB early": _middle(early),
        "RSS MiB late": _middle(late),
        "RSS MiB in 10 minutes": slope,
        "sockets": max(sample.sockets for sample in steady),
        "files": max(sample.files for sample in steady),
        "tasks": max(sample.tasks for sample in steady),
        "tasks when idle": idle_after.tasks,
        "sockets when idle": idle_after.sockets,
        "database connections": max(connections),
    }
    return Figures({"seconds": piece.times, "orders": sum(statuses.values())}, measured, tuple(broken))


def _middle(samples: list[Sample]) -> float:
    return statistics.median(sample.rss_mib for sample in samples)
