"""What do clients see, and what does the service hold, when far more orders come than it has slots for?

The service, the clients and this process are three: what the clients cost is not the service's, and is told beside it.
"""

import asyncio
import json
import math
import multiprocessing
import os
import random
import resource
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from app.database.embedded import open_embedded
from tests.faults.frame import Figures, Piece
from tests.installation import Installation, beside, running_installation
from tests.sandbox_server import running_sandbox
from tests.service import rows

CLIENTS, SLOTS = 1_000, 64
REFUSED_P99_MS_MAX = 100
RSS_AFTER_MAX = 1.1

# What upstream takes, at the least and at the most: slots come free all the time, and never for everybody.
UPSTREAM_SECONDS = (1.0, 3.0)
# What an idle process still does (sweeping, giving memory back) is over by then.
_SETTLING_SECONDS = 3
_LAG_SECONDS = 0.05


@dataclass(frozen=True)
class Overload:
    """The figures of one run. Times of refusals are from the request to the end of its answer.

    `refused_p99_ms` is what clients saw, and holds what their own process was late (`clients_late_p99_ms`);
    `service_p99_ms` is what the service wrote into its log.
    """

    asked: int
    refused: int
    completed: int
    # Anything but a picture or `overloaded`, by what it was. Nothing belongs here.
    surprises: dict[str, int]
    refused_p50_ms: float
    refused_p99_ms: float
    service_p99_ms: float
    clients_late_p99_ms: float
    service_cpu_seconds: float
    clients_cpu_seconds: float
    rss_before_mib: float
    rss_highest_mib: float
    rss_after_mib: float
    # Generations that did not end `completed`, and differences between books and budgets. Both should be 0.
    unfinished: int
    differences: int


@dataclass(frozen=True)
class _Seen:
    """What the clients saw."""

    answers: dict[str, int]
    refused_seconds: list[float]
    late_seconds: list[float]
    cpu_seconds: float


def crowd(piece: Piece) -> Figures:
    """1,000 clients on 64 slots, for `times` seconds."""
    seen = overload(clients=CLIENTS, slots=SLOTS, seconds=piece.times, seed=piece.seed, folder=piece.folder)
    broken = [f"{count} answers were {surprise}" for surprise, count in seen.surprises.items()]
    if seen.refused_p99_ms > REFUSED_P99_MS_MAX:
        broken.append(f"the p99 of the refusals is {seen.refused_p99_ms:.0f} ms")
    if seen.rss_after_mib > seen.rss_before_mib * RSS_AFTER_MAX:
        broken.append(f"memory was {seen.rss_before_mib:.0f} MiB before and is {seen.rss_after_mib:.0f} MiB after")
    if seen.unfinished or seen.differences:
        broken.append(f"{seen.unfinished} orders that were taken did not complete, {seen.differences} budgets differ")
    measured = {
        "p50 ms of a refusal": seen.refused_p50_ms,
        "p99 ms of a refusal": seen.refused_p99_ms,
        "p99 ms as the service saw it": seen.service_p99_ms,
        "p99 ms the clients were late": seen.clients_late_p99_ms,
        "RSS MiB before": seen.rss_before_mib,
        "RSS MiB at most": seen.rss_highest_mib,
        "RSS MiB after": seen.rss_after_mib,
    }
    return Figures({"asked": seen.asked, "refused": seen.refused, "completed": seen.completed}, measured, tuple(broken))


def overload(*, clients: int, slots: int, seconds: float, seed: int, folder: Path) -> Overload:
    """Let `clients` order from one process with so many `slots` for `seconds`, all on connections of their own.

    They arrive one by one over the first half; a refused one comes back when it was told to, and a served one orders
    again.
    """
    with (
        open_embedded(folder / "postgres", role="serve", durable=False) as postgres,
        running_sandbox(draw=False) as sandbox,
        running_installation(
            folder / "service", env=beside(postgres.url, sandbox, UPSTREAM_IN_FLIGHT_MAX=str(slots))
        ) as installation,
    ):
        installation.ask("users", "add", "crowd")
        key = installation.ask("keys", "create", "crowd")["key"]
        # As many as it runs at once: what a process needs for that is no growth.
        _run_clients(folder, installation.url, key, min(slots, clients), 2, seed)
        before, cpu_before = _rss_mib(installation), _cpu_seconds(installation)
        logged_before = installation.stderr.stat().st_size
        seen, highest = _run_clients(folder, installation.url, key, clients, seconds, seed, watched=installation)
        cpu = _cpu_seconds(installation) - cpu_before
        time.sleep(_SETTLING_SECONDS)
        after = _rss_mib(installation)
        service_ms = _refusals_logged(installation, logged_before)
        (unfinished,) = rows(postgres.url, "SELECT count(*) AS n FROM generations WHERE state <> 'completed'")
        differences = len(installation.ask("reconcile"))
    counted = Counter(seen.answers)
    completed, refused = counted.pop("completed", 0), counted.pop("overloaded", 0)
    return Overload(
        asked=sum(seen.answers.values()),
        refused=refused,
        completed=completed,
        surprises=dict(counted),
        refused_p50_ms=_percentile(seen.refused_seconds, 50) * 1000,
        refused_p99_ms=_percentile(seen.refused_seconds, 99) * 1000,
        service_p99_ms=_percentile(service_ms, 99),
        clients_late_p99_ms=_percentile(seen.late_seconds, 99) * 1000,
        service_cpu_seconds=cpu,
        clients_cpu_seconds=seen.cpu_seconds,
        rss_before_mib=before,
        rss_highest_mib=max(highest, before),
        rss_after_mib=after,
        unfinished=unfinished["n"],
        differences=differences,
    )


def _run_clients(
    folder: Path, url: str, key: str, clients: int, seconds: float, seed: int, *, watched: Installation | None = None
) -> tuple[_Seen, float]:
    """What the clients saw, and the most memory that the watched service held meanwhile."""
    said = folder / "clients.json"
    said.unlink(missing_ok=True)
    process = multiprocessing.get_context("spawn").Process(
        target=be_clients, args=(url, key, clients, seconds, seed, said), daemon=True
    )
    process.start()
    highest = 0.0
    while process.is_alive():
        if watched is not None:
            highest = max(highest, _rss_mib(watched))
        process.join(0.2)
    assert process.exitcode == 0, f"the clients ended with {process.exitcode}"
    return _Seen(**json.loads(said.read_text())), highest


def be_clients(url: str, key: str, clients: int, seconds: float, seed: int, said: Path) -> None:
    """Be all the clients, in a process of their own, and write down what they saw."""
    seen = asyncio.run(_order_for(url, key, clients, seconds, random.Random(seed)))
    said.write_text(json.dumps(asdict(seen)))


async def _order_for(url: str, key: str, clients: int, seconds: float, chance: random.Random) -> _Seen:
    answers: Counter[str] = Counter()
    refused_seconds: list[float] = []
    until = time.monotonic() + seconds
    headers = {"authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=60)

    async def order(client: aiohttp.ClientSession) -> float:
        """Order once, and return how long to wait before the next."""
        prompt = f"a fox [[delay {chance.uniform(*UPSTREAM_SECONDS):.2f}]]"
        started = time.monotonic()
        async with client.post("/images", json={"prompt": prompt}) as answer:
            told: dict[str, Any] = await answer.json(content_type=None)
        said = told["state"] if answer.status == 200 else told["code"]
        answers[said] += 1
        if said == "overloaded":
            refused_seconds.append(time.monotonic() - started)
        if answer.status != 503:
            return 0
        # Not on the second: those who were refused together would come back together.
        return int(answer.headers["retry-after"]) + chance.random()

    async def be_one(client: aiohttp.ClientSession, begins_in_seconds: float) -> None:
        pause = begins_in_seconds
        while time.monotonic() + pause < until:
            await asyncio.sleep(pause)
            try:
                pause = await order(client)
            except (aiohttp.ClientError, TimeoutError) as error:
                answers[type(error).__name__] += 1
                pause = 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, headers=headers, connector=connector, timeout=timeout) as client:
        lateness = asyncio.create_task(_lateness())
        await asyncio.gather(*(be_one(client, chance.uniform(0, seconds / 2)) for _ in range(clients)))
        lateness.cancel()
        late_seconds = (await asyncio.gather(lateness, return_exceptions=True))[0]
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert isinstance(late_seconds, list)
    return _Seen(dict(answers), refused_seconds, late_seconds, used.ru_utime + used.ru_stime)


async def _lateness() -> list[float]:
    """How much later than asked for this process woke up, again and again until cancelled."""
    late: list[float] = []
    try:
        while True:
            began = time.monotonic()
            await asyncio.sleep(_LAG_SECONDS)
            late.append(time.monotonic() - began - _LAG_SECONDS)
    except asyncio.CancelledError:
        return late


def _percentile(figures: Iterable[float], percent: int) -> float:
    """The smallest figure that so many percent do not exceed; 0 without any."""
    ordered = sorted(figures)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else 0.0


def _refusals_logged(installation: Installation, logged_before: int) -> list[float]:
    """Milliseconds that the service says it took for each 503, after so many bytes of its log."""
    with installation.stderr.open("rb") as log:
        log.seek(logged_before)
        lines = [json.loads(line) for line in log if line.startswith(b"{") and b'"event":"request"' in line]
    return [line["ms"] for line in lines if line["status"] == 503]


def _rss_mib(installation: Installation) -> float:
    pages = int(Path(f"/proc/{installation.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_seconds(installation: Installation) -> float:
    fields = Path(f"/proc/{installation.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
