"""Does a quota hold to the last image when everybody wants it at once, and some don't wait for the answer?"""

import asyncio
import json
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.installation import Installation, beside, eventually, running_installation
from tests.sandbox_server import RunningSandbox, running_sandbox
from tests.service import rows

pytestmark = pytest.mark.anyio

ORDERS = 400
QUOTA = 100
# Clients that close their socket while upstream works on their order, and as soon as they have sent it.
LEAVE_LATER, LEAVE_AT_ONCE = 40, 40

_HANDLED = 'imagekeep_http_requests_total{method="POST",route="/images",'


async def test_four_hundred_orders_on_a_quota_of_one_hundred_make_exactly_one_hundred_images(
    database_url: str, tmp_path: Path
) -> None:
    with running_sandbox(draw=False, delay_seconds=3) as sandbox:
        # No slot is wanting in either worker, so that only the budget refuses.
        env = beside(database_url, sandbox, UPSTREAM_IN_FLIGHT_MAX=str(ORDERS), DATABASE_TIMEOUT_SECONDS="30")
        with running_installation(tmp_path, env=env, workers=2) as installation:
            installation.ask("users", "add", "racer", "--images-per-day", str(QUOTA))
            key = installation.ask("keys", "create", "racer")["key"]

            answers = await race(installation, key, sandbox)
            eventually(lambda: figure(installation, _HANDLED) == ORDERS, seconds=30)
            eventually(lambda: not states(database_url).keys() & {"pending", "generated"}, seconds=30)

            assert states(database_url) == {"completed": QUOTA}
            assert len(rows(database_url, "SELECT id FROM images")) == QUOTA
            assert (sandbox.witness()["asked"], sandbox.witness()["billed"]) == (QUOTA, QUOTA)
            statuses = Counter(answer.status_code for answer in answers)
            assert statuses.keys() == {200, 429}
            assert statuses[200] <= QUOTA - LEAVE_LATER, "the images of those who left are made and charged"
            for answer in answers:
                if answer.status_code == 429:
                    assert answer.json()["code"] == "budget_spent"
                    assert answer.headers["ratelimit"].startswith('"images-per-day";r=0;t=')
                    assert answer.headers["ratelimit-policy"] == f'"images-per-day";q={QUOTA};w=86400'
                    assert 0 < int(answer.headers["retry-after"]) <= 86_400
            # Also for those who left: an image, a refusal, or a body that its client did not stay to send; no crash.
            assert figure(installation, _HANDLED + 'status="2') == QUOTA
            assert figure(installation, _HANDLED + 'status="4') == ORDERS - QUOTA
            assert installation.ask("reconcile") == []


async def race(installation: Installation, key: str, sandbox: RunningSandbox) -> list[httpx.Response]:
    """All orders on connections of their own, nearly all of them at once; the answers of the clients that waited."""
    at_work = asyncio.Event()
    leavers = [order_and_leave(installation.port, key, at_work, number) for number in range(LEAVE_LATER)]
    leaving = asyncio.gather(*leavers)
    await until_asked(sandbox, LEAVE_LATER)
    limits = httpx.Limits(max_connections=ORDERS, max_keepalive_connections=0)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=installation.url, headers=headers, limits=limits, timeout=60, verify=False, trust_env=False
    ) as client:
        staying = [
            client.post("/images", json={"prompt": "a fox"}) for _ in range(ORDERS - LEAVE_LATER - LEAVE_AT_ONCE)
        ]
        at_once = [
            order_and_leave(installation.port, key, None, LEAVE_LATER + number) for number in range(LEAVE_AT_ONCE)
        ]
        racing = asyncio.gather(asyncio.gather(*staying), asyncio.gather(*at_once))
        at_work.set()
        answers, _ = await racing
    await leaving
    return answers


async def order_and_leave(port: int, key: str, leave: asyncio.Event | None, number: int) -> None:
    """Send a whole order and close the socket, at once or when told to, as a browser does whose tab is closed."""
    # One that orders the same as somebody who has left would be answered with that one's image.
    body = json.dumps({"prompt": f"hare {number}"})
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST /images HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    await writer.drain()
    if leave is not None:
        await leave.wait()
    writer.close()
    await writer.wait_closed()


async def until_asked(sandbox: RunningSandbox, orders: int) -> None:
    await asyncio.to_thread(eventually, lambda: sandbox.witness()["asked"] == orders, seconds=30)


def states(database_url: str) -> dict[str, int]:
    found = rows(database_url, "SELECT state, count(*) AS count FROM generations GROUP BY state")
    return {row["state"]: row["count"] for row in found}


def figure(installation: Installation, start: str) -> float:
    """The sum of the figures of all workers whose name and labels begin so."""
    lines = httpx.get(f"{installation.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))
