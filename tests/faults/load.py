"""Who orders while faults are played, how patiently, and what do they remember of the answers?

Clients over HTTP to whichever replica takes their connection. A connection that is refused had nothing sent over it,
so the next replica is asked; anything later is tried again only with an Idempotency-Key.
"""

import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

import httpx

from tests.faults.fleet import Fleet, Replica
from tests.faults.stage import Stage, expected_sha256
from tests.faults.told import FAULTS, Asked, Told, make_order, read_answer, warm_up

# Answers that say "not now" and cost nothing: the same keyed order is sent again.
_NOT_NOW = ("answer_unavailable", "database_unavailable", "overloaded", "storage_unavailable")
_PERSISTENCE_SECONDS = 60
# Longer than a database that crashed or a storage that hangs is away.
_URL_SECONDS_MAX = 15
_TRIES_UNTIL_TWICE = 4
_USER_WEIGHTS = {
    "free": 60,
    "daily": 6,
    "monthly": 6,
    "spender": 6,
    "ending": 3,
    "narrow": 8,
    "hurried": 5,
    "switched": 6,
}


class Load:
    """So many clients, each with one order at a time, from opening to `stop`. What they remember outlives it.

    `sent` counts every try of every order, `answered` those that had an answer in time.
    """

    def __init__(
        self,
        stage: Stage,
        fleet: Fleet,
        *,
        seed: int,
        clients: int,
        faults: Sequence[tuple[int, str, str]] = FAULTS,
        patience_seconds: tuple[float, float] = (0.2, 3.0),
        order_seconds_max: float = 0.5,
        users: Sequence[str] = tuple(_USER_WEIGHTS),
        first_keys_only: bool = False,
    ) -> None:
        self.asked: list[Asked] = [warm_up(stage.keys["free"][0])]
        self.broken: list[str] = []
        self.sent = 0
        self.answered = 0
        self.did: Counter[str] = Counter()
        self._fleet = fleet
        self._chance = random.Random(seed)
        self._clients = clients
        self._faults = faults
        self._patience_seconds = patience_seconds
        self._order_seconds_max = order_seconds_max
        self._users = users
        # The second keys have limits.
        self._keys = {name: keys[:1] if first_keys_only else keys for name, keys in stage.keys.items()}
        self._stopping = False
        # A connection that is kept open could be closed by a replica at the moment an order goes out over it.
        self._http = httpx.AsyncClient(
            verify=False, trust_env=False, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0)
        )

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._be_client()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopping = True
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Begin nothing new, and return once every client has finished what it was at."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _be_client(self) -> None:
        while not self._stopping:
            kind = self._chance.choices(("plain", "keyed", "twins", "followed"), weights=(35, 40, 15, 10))[0]
            asked = self._draw(keyed=kind in ("keyed", "twins"))
            if kind == "plain":
                await self._order_once(asked)
            elif kind == "followed":
                await self._order_and_follow(asked)
            elif kind == "keyed":
                await self._order_until_answered(asked)
            else:
                self.did["twins"] += 1
                await asyncio.gather(
                    *(self._order_until_answered(asked) for _ in range(self._chance.choice((2, 3, 4))))
                )
            await self._look_back(asked)

    def _draw(self, *, keyed: bool) -> Asked:
        user = self._chance.choices(self._users, weights=[_USER_WEIGHTS[name] for name in self._users])[0]
        asked = make_order(
            self._chance,
            len(self.asked),
            user=user,
            api_key=self._chance.choice(self._keys[user]),
            keyed=keyed,
            faults=self._faults,
            seconds_max=self._order_seconds_max,
        )
        self.asked.append(asked)
        return asked

    async def _order_once(self, asked: Asked, *, headers: dict[str, str] | None = None) -> Told | None:
        """Send it to the first replica that takes the connection; None when no answer came in time.

        Patience grows with the tries, so that a slow machine is not asked for ever for what it can't do in time.
        """
        seconds = self._chance.uniform(*self._patience_seconds) * (1 + len(asked.unanswered) / _TRIES_UNTIL_TWICE)
        self.sent += 1
        try:
            answer = await self._send(
                "POST",
                "/images",
                headers={**asked.headers, **(headers or {})},
                content=json.dumps({"prompt": asked.prompt}),
                seconds=seconds,
            )
        except (httpx.TransportError, TimeoutError) as error:
            asked.unanswered.append(repr(error))
            return None
        self.answered += 1
        told = read_answer(answer)
        asked.told.append(told)
        if told.status == 500:
            self.broken.append(f"{asked.tag}: answered 500 {told.code}")
        return told

    async def _order_until_answered(self, asked: Asked) -> None:
        deadline = time.monotonic() + _PERSISTENCE_SECONDS
        while time.monotonic() < deadline:
            told = await self._order_once(asked)
            if told is not None and told.code not in _NOT_NOW:
                return
            self.did["tries again"] += 1
            await asyncio.sleep(self._chance.uniform(0.1, 0.5))
        self.broken.append(
            f"{asked.tag}: no answer within {_PERSISTENCE_SECONDS} s, with its key {asked.unanswered[-3:]}"
        )

    async def _order_and_follow(self, asked: Asked) -> None:
        """Order without waiting, and ask for it by its id until it has ended."""
        told = await self._order_once(asked, headers={"prefer": "respond-async"})
        if told is None or told.status != 202:
            return
        deadline = time.monotonic() + _PERSISTENCE_SECONDS
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError, TimeoutError):
                answer = await self._send(
                    "GET", f"/images/{told.id}", headers={**asked.headers, "prefer": "wait=1"}, seconds=2
                )
                seen = read_answer(answer)
                if answer.status_code != 200 and seen.code not in _NOT_NOW and asked.user != "switched":
                    self.broken.append(f"{asked.tag}: {told.id} was taken, and GET answers {seen}")
                    return
                if seen.state not in ("pending", "generated", None):
                    asked.told.append(seen)
                    return
            await asyncio.sleep(0.1)
        self.broken.append(f"{asked.tag}: {told.id} did not end within {_PERSISTENCE_SECONDS} s")

    async def _look_back(self, asked: Asked) -> None:
        """Open the picture, perhaps, and now and then delete it."""
        done = next((told for told in asked.told if told.url), None)
        if done is None or done.url is None:
            return
        if self._chance.random() < 0.4:
            await self.check_url(asked, done.url)
        if done.id and self._chance.random() < 0.06:
            asked.deleted.append(done.id)
            with suppress(httpx.TransportError, TimeoutError):
                await self._send("DELETE", f"/images/{done.id}", headers=asked.headers, seconds=3)

    async def check_url(self, asked: Asked, url: str, *, seconds: float = _URL_SECONDS_MAX) -> None:
        """Fetch a permanent URL from any replica until one answers, and note when it is not the order's picture.

        A 503 is asked again for so many `seconds`: the database may be away.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError, TimeoutError):
                answer = await self._send("GET", urlsplit(url).path, seconds=3)
                if answer.status_code != 503:
                    self._judge(asked, url, answer)
                    return
            await asyncio.sleep(0.05)
        self.broken.append(f"{asked.tag}: {url} was not answered within {seconds} s")

    def _judge(self, asked: Asked, url: str, answer: httpx.Response) -> None:
        self.did["URLs opened"] += 1
        if answer.status_code == 410 and asked.deleted:
            return
        if answer.status_code != 200:
            self.broken.append(f"{asked.tag}: {url} answers {answer.status_code}")
        elif hashlib.sha256(answer.content).digest() != expected_sha256(asked.tag, asked.image_format):
            self.broken.append(f"{asked.tag}: {url} shows another picture ({len(answer.content)} bytes)")

    async def _send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        content: str | None = None,
        seconds: float,
    ) -> httpx.Response:
        """Send to one replica after another until one takes the connection. Raises as httpx does, or TimeoutError."""
        async with asyncio.timeout(seconds):
            while True:
                for replica in self._in_any_order():
                    with suppress(httpx.ConnectError):
                        return await self._http.request(
                            method, f"{replica.url}{path}", headers=headers, content=content, timeout=seconds
                        )
                await asyncio.sleep(0.02)

    def _in_any_order(self) -> list[Replica]:
        replicas = self._fleet.balanced
        self._chance.shuffle(replicas)
        return replicas
