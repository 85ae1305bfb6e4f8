"""Does anybody notice that storage is away for longer than upstream's URLs live, and is anything lost by it?

Two processes on one bucket, under load. The store goes away in the middle, refusing connections or hanging; orders go
on until the spool is full, and then the store comes back, and goes once more while the spool is being emptied.
"""

import asyncio
import hashlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from app.database.embedded import open_embedded
from tests.faults.frame import Figures, Piece
from tests.installation import Installation, beside, eventually, running_installation
from tests.s3_server import S3Server, running_s3
from tests.sandbox_server import RunningSandbox, running_sandbox
from tests.service import TT_API_KEY, rows

_CLIENTS = 12
_REFUSED_IN_A_ROW = 5
# Long enough to be fetched on a busy machine behind others that wait for a store that hangs, shorter than the outage.
_SOURCE_SECONDS = 10
_SECOND_OUTAGE_SECONDS = 1
# Both ways in which an answer brings its picture: behind a URL that is soon dead, and as bytes in hand.
_PROMPTS = (f"a fox [[expires {_SOURCE_SECONDS}]]", "a fox [[b64]]")

_GONE = """
SELECT i.id FROM images i WHERE i.storage = 'spool' AND NOT EXISTS (
    SELECT FROM spool s WHERE s.storage_key = i.storage_key)"""


@dataclass(frozen=True)
class Outage:
    """What became of one outage. The first six are counted; `broken` has a sentence for each promise not held."""

    orders: int
    answered: int
    spooled: int
    refused: int
    objects: int
    outages: int
    seconds: float
    emptied_within_seconds: float
    broken: tuple[str, ...]


def outage(piece: Piece) -> Figures:
    """Have one outage with `times` orders in it."""
    with open_embedded(piece.folder / "postgres", role="serve", durable=False) as postgres:
        had = storage_outage(
            orders=piece.times, seed=piece.seed, folder=piece.folder / "outage", database_url=postgres.url
        )
    figures = asdict(had)
    seconds = {name: figures.pop(name) for name in ("seconds", "emptied_within_seconds")}
    broken = figures.pop("broken")
    return Figures(figures, {name.replace("_", " "): value for name, value in seconds.items()}, broken)


def storage_outage(*, orders: int, seed: int, folder: Path, database_url: str) -> Outage:
    """Order `orders` pictures while the store goes away, more until the spool is full, and let the store come back.

    `database_url` is an empty database. The same seed orders the same, and takes the store away at the same order.
    """
    chance = random.Random(seed)
    with (
        running_s3(folder) as store,
        running_sandbox(draw=False) as sandbox,
        running_installation(
            folder / "service", env=_environment(database_url, sandbox, store, orders=orders), workers=2
        ) as service,
    ):
        service.ask("users", "limits", "first", "--images-per-day", "none", "--images-total", str(10**6))
        return _Outage(service, store, sandbox, database_url).happen(orders, chance)


def _environment(database_url: str, sandbox: RunningSandbox, store: S3Server, *, orders: int) -> dict[str, str]:
    # Of the spool's size depends when it is full, of a picture's size that of the spool.
    picture_bytes = _picture_bytes(sandbox)
    return beside(
        database_url,
        sandbox,
        S3_BUCKET=store.bucket,
        S3_ENDPOINT_URL=store.url,
        S3_REGION="us-east-1",
        S3_PATH_STYLE="true",
        STORAGE_PATIENCE_SECONDS="1",
        IMAGE_BYTES_MAX=str(2 * picture_bytes),
        SPOOL_BYTES_MAX=str((orders + 2 * _CLIENTS) * picture_bytes),
        **store.credentials,
    )


def _picture_bytes(sandbox: RunningSandbox) -> int:
    """How large the sandbox's blank pictures are; it is asked for one, and forgets it."""
    order = {"prompt": "a fox", "model": "dall-e-3", "size": "1024x1024"}
    with httpx.Client(headers={"TT-API-KEY": TT_API_KEY}, trust_env=False) as client:
        answer = client.post(f"{sandbox.url}/openai/v1/images/generations", json=order).raise_for_status()
        picture = client.get(answer.json()["data"]["data"][0]["url"]).raise_for_status().content
    sandbox.reset()
    return len(picture)


class _Outage:
    """One outage as it goes on."""

    def __init__(self, service: Installation, store: S3Server, sandbox: RunningSandbox, database_url: str) -> None:
        self._service = service
        self._store = store
        self._sandbox = sandbox
        self._database_url = database_url
        self._broken: list[str] = []

    def happen(self, orders: int, chance: random.Random) -> Outage:
        hangs = chance.random() < 0.5
        prompts = [chance.choice(_PROMPTS) for _ in range(orders)]
        answers = asyncio.run(self._order(prompts, away_at=chance.randrange(orders // 4, orders // 2), hangs=hangs))
        told = Counter(answer.get("state", answer.get("code")) for answer in answers)
        self._expect(told == {"completed": orders}, f"callers were told {dict(told)}")
        # The store is away for longer than any source lives.
        away_from = time.monotonic()
        spooled = rows(self._database_url, "SELECT * FROM images WHERE storage = 'spool'")
        self._expect(len(spooled) >= orders // 4, f"only {len(spooled)} of {orders} pictures went into the spool")
        self._expect_served(spooled, "during the outage")
        filling = self._fill()
        refused = self._refusals()
        time.sleep(max(0.0, _SOURCE_SECONDS + 1 - (time.monotonic() - away_from)))
        in_spool = self._left_in_spool()
        back_at = time.monotonic()
        self._come_back(in_spool, hangs=hangs)
        seconds = time.monotonic() - back_at
        objects = self._look_at_all(orders + filling)
        return Outage(
            orders=orders,
            answered=orders + filling,
            spooled=in_spool,
            refused=refused,
            objects=objects,
            outages=1,
            seconds=back_at - away_from,
            emptied_within_seconds=seconds,
            broken=tuple(self._broken),
        )

    async def _order(self, prompts: Sequence[str], *, away_at: int, hangs: bool) -> list[dict[str, Any]]:
        """Order from several clients at once; the store goes away when so many were answered."""
        left, answers = iter(prompts), list[dict[str, Any]]()
        headers = {"authorization": f"Bearer {self._service.key}"}
        async with aiohttp.ClientSession(self._service.url, headers=headers) as client:

            async def order_on(prompts: Iterable[str]) -> None:
                for prompt in prompts:
                    async with client.post("/images", json={"prompt": prompt}) as answer:
                        answers.append(await answer.json(content_type=None))
                    if len(answers) == away_at:
                        self._store.freeze() if hangs else self._store.stop()

            await asyncio.gather(*(order_on(left) for _ in range(_CLIENTS)))
        return answers

    def _fill(self) -> int:
        """Order until an order is refused; returns how many were answered."""
        for number in itertools.count():
            answer = self._service.order(_PROMPTS[number % 2])
            if answer.status_code != 200:
                told = (answer.status_code, answer.json()["code"])
                self._expect(told == (503, "storage_unavailable"), f"with a full spool a caller was told {told}")
                return number
        raise AssertionError("counting does not end")

    def _refusals(self) -> int:
        """Order on; returns how many were refused."""
        before = self._account()
        statuses = [self._service.order("a fox").status_code for _ in range(_REFUSED_IN_A_ROW)]
        self._expect(set(statuses) == {503}, f"with a full spool callers were told {statuses}")
        after = self._account()
        self._expect(before == after, f"a refusal was not free: {before}, then {after}")
        ready = self._service.client.get("/readyz")
        self._expect(ready.status_code == 503, f"with a full spool readiness said {ready.text}")
        return len(statuses)

    def _account(self) -> Mapping[str, Any]:
        """What upstream was asked, and what the books hold."""
        (generations,) = rows(self._database_url, "SELECT count(*) AS n FROM generations")
        budgets = rows(self._database_url, "SELECT * FROM budgets ORDER BY scope")
        return {"asked": self._sandbox.witness()["asked"], "generations": generations["n"], "budgets": budgets}

    def _come_back(self, in_spool: int, *, hangs: bool) -> None:
        """Let the store come back, go away once more when the first pictures have gone home, and come back for good."""
        self._store.thaw() if hangs else self._store.start()
        try:
            eventually(lambda: self._left_in_spool() < in_spool, seconds=60)
            self._store.stop()
            time.sleep(_SECOND_OUTAGE_SECONDS)
            gone = rows(self._database_url, _GONE)
            self._expect(not gone, f"{len(gone)} pictures left the spool before they were home, such as {gone[:1]}")
            self._store.start()
            if gone:
                return
            eventually(lambda: self._left_in_spool() == 0, seconds=60 + in_spool / 2)
        except AssertionError:
            self._broken.append(f"{self._left_in_spool()} pictures or images that live there stayed in the spool")

    def _left_in_spool(self) -> int:
        """How many images live in the spool, or how many pictures are in it: the larger."""
        left = "SELECT greatest((SELECT count(*) FROM spool), count(*)) AS n FROM images WHERE storage = 'spool'"
        return int(rows(self._database_url, left)[0]["n"])

    def _look_at_all(self, ordered: int) -> int:
        """After the outage: everything delivered, everything in place, the books right. Returns how many are."""
        states = rows(self._database_url, "SELECT state, count(*) AS n FROM generations GROUP BY state")
        self._expect(
            [(row["state"], row["n"]) for row in states] == [("completed", ordered)], f"generations ended as {states}"
        )
        asked = self._sandbox.witness()["asked"]
        self._expect(asked == ordered, f"upstream was asked {asked} times for {ordered} orders")
        images = rows(self._database_url, "SELECT * FROM images")
        objects = {key: hashlib.sha256(body).digest() for key, body in self._store.objects().items()}
        wrong = [image["id"] for image in images if objects.get(image["storage_key"]) != image["sha256"]]
        self._expect(not wrong, f"{len(wrong)} objects are missing or hold other bytes, such as that of {wrong[:1]}")
        self._expect_served(images, "after the outage")
        difference = self._service.ask("reconcile")
        self._expect(not difference, f"reconcile found {difference}")
        return len(images) - len(wrong)

    def _expect_served(self, images: Sequence[Mapping[str, Any]], when: str) -> None:
        for image in images:
            answer = self._service.client.get(f"/i/{image['id']}.{image['extension']}")
            right = answer.status_code == 200 and hashlib.sha256(answer.content).digest() == image["sha256"]
            self._expect(right, f"{when} the URL of {image['id']} answered {answer.status_code}")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._broken.append(otherwise)
