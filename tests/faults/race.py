"""Does each kind of limit hold to the last image when a thousand orders come at once, over two processes?"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from app.database.embedded import open_embedded
from tests.faults.frame import Figures, Piece
from tests.installation import Installation, beside, running_installation
from tests.sandbox_server import RunningSandbox, running_sandbox
from tests.service import differences, rows
from tests.tcp_proxy import TcpProxy

ORDERS = 1_000
QUOTA = 100
# So many come first. What is plainly broken they tell in seconds, where a thousand would be stuck in it for minutes.
FORERUNNERS = 200
PATIENCE_SECONDS, PATIENCE_OF_FORERUNNERS_SECONDS = 60, 15
PRICE_USD = 0.01

# What `users add` is told, by the kind of limit.
LIMITS = {
    "images-per-day": str(QUOTA),
    "images-per-month": str(QUOTA),
    "images-total": str(QUOTA),
    "usd-per-month": f"{QUOTA * PRICE_USD:.2f}",
    "in-flight": str(QUOTA),
    "requests-per-minute": str(QUOTA),
}
REFUSALS = {"in-flight": "too_many_in_flight", "requests-per-minute": "rate_limit_exceeded"}


def race(piece: Piece) -> Figures:
    """Race `times` rounds; each has one race for each kind of limit."""
    with (
        open_embedded(piece.folder / "postgres", role="serve", durable=False) as postgres,
        running_sandbox(draw=False, delay_seconds=0.2) as quick,
        TcpProxy("127.0.0.1", quick.port) as way,
    ):
        # No slot is wanting in either process, so that only the budget refuses.
        roomy = {"UPSTREAM_IN_FLIGHT_MAX": str(ORDERS), "DATABASE_TIMEOUT_SECONDS": "60"}
        env = beside(postgres.url, quick, TT_API_BASE_URL=f"http://127.0.0.1:{way.port}", **roomy)
        with running_installation(piece.folder / "service", env=env, workers=2) as installation:
            raced = Raced()
            # Far off, but rows that every order has to lock too: taken crosswise, they would deadlock.
            installation.ask("limits", "--images-total", "1000000")
            track = Track(installation, quick, way, postgres.url)
            _race_for("images-per-day", "forerunners", FORERUNNERS, track, raced)
            for number, limit in [(number, limit) for number in range(piece.times) for limit in LIMITS]:
                if raced.broken:
                    break
                _race_for(limit, f"{limit}-{number}", ORDERS, track, raced)
    did = {"races": raced.races, "orders": raced.orders, "taken": raced.taken}
    return Figures(did, {"seconds of one race": raced.seconds_max}, tuple(raced.broken))


@dataclass(frozen=True)
class Track:
    """Where races are run: `way` is the service's way to upstream, `sandbox` its witness."""

    installation: Installation
    sandbox: RunningSandbox
    way: TcpProxy
    database_url: str


class Raced:
    """What the races so far came to."""

    def __init__(self) -> None:
        self.races = 0
        self.orders = 0
        self.taken = 0
        self.seconds_max = 0.0
        self.broken: list[str] = []


def _race_for(limit: str, user: str, orders: int, track: Track, raced: Raced) -> None:
    installation = track.installation
    installation.ask("users", "add", user, f"--{limit}", LIMITS[limit])
    made = installation.ask("keys", "create", user)
    installation.ask("keys", "limits", made["id"], "--images-total", "1000000")
    asked_before = track.sandbox.witness()["asked"]
    if limit == "in-flight":
        # What is in flight stays in flight until the others were refused, however long they take to arrive.
        track.way.blackhole()
    patience_seconds = PATIENCE_SECONDS if orders == ORDERS else PATIENCE_OF_FORERUNNERS_SECONDS
    started = time.monotonic()
    answers = asyncio.run(_all_at_once(installation.url, made["key"], orders, patience_seconds, track.way.pass_through))
    seconds = time.monotonic() - started
    taken = track.sandbox.witness()["asked"] - asked_before
    raced.races += 1
    raced.orders += orders
    raced.taken += taken
    raced.seconds_max = max(raced.seconds_max, seconds)
    refusal = REFUSALS.get(limit, "budget_spent")
    # The rate refills while the orders come in.
    refilled = math.ceil(seconds * QUOTA / 60) if limit == "requests-per-minute" else 0
    if not QUOTA <= taken <= QUOTA + refilled or answers != Counter({"completed": taken, refusal: orders - taken}):
        raced.broken.append(f"{limit}: {taken} were sent upstream, clients were told {dict(answers)}")
    else:
        raced.broken += _unsettled(track.database_url)


async def _all_at_once(
    url: str, key: str, orders: int, patience_seconds: float, when_the_rest_is_refused: Callable[[], None]
) -> Counter[str]:
    """What so many clients, each on a connection of its own, were told: `completed`, the code of a refusal, or
    `nothing` in time.
    """
    answers: Counter[str] = Counter()
    headers = {"authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    patience = aiohttp.ClientTimeout(total=patience_seconds)
    async with aiohttp.ClientSession(url, headers=headers, connector=connector, timeout=patience) as client:

        async def order() -> None:
            try:
                async with client.post("/images", json={"prompt": "a fox"}) as answer:
                    told = await answer.json(content_type=None)
                    answers[str(told["state"] if answer.status == 200 else told["code"])] += 1
            except TimeoutError:
                answers["nothing"] += 1
            if answers.total() == orders - QUOTA:
                await asyncio.to_thread(when_the_rest_is_refused)

        await asyncio.gather(*(order() for _ in range(orders)))
    return answers


def _unsettled(database_url: str) -> list[str]:
    """What is wrong once everything has ended, or has had the time to."""
    deadline = time.monotonic() + 30
    while running := rows(database_url, "SELECT 1 FROM generations WHERE lease_until IS NOT NULL LIMIT 1"):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    (counted,) = rows(database_url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    wrong = ["some generations do not end"] if running else []
    wrong += [f"{counted['deadlocks']} deadlocks"] if counted["deadlocks"] else []
    return wrong + [f"the recount differs: {difference}" for difference in differences(database_url)]
