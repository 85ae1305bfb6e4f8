"""Are repeats one generation across processes, kills, restarts and a changed catalog?"""

import asyncio
import http.client
import json
import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.installation import Installation, beside, eventually, processes_in, running_installation
from tests.sandbox_server import RunningSandbox, running_sandbox
from tests.service import rows

pytestmark = pytest.mark.anyio

REPEATS, REPEATS_AROUND_A_KILL = 200, 40
KEY = {"idempotency-key": "order-1"}
CATALOG = Path(__file__).parents[1] / "app" / "upstream" / "catalog.toml"


async def test_two_hundred_orders_with_one_key_over_two_workers_are_one_order_and_equal_answers(
    database_url: str, tmp_path: Path
) -> None:
    with running_sandbox(draw=False, delay_seconds=2) as sandbox:
        env = beside(database_url, sandbox, DATABASE_TIMEOUT_SECONDS="30")
        with running_installation(tmp_path, env=env, workers=2) as installation:
            # Enough for one order in every way, so that a second hold would show as a refusal.
            installation.ask("users", "add", "racer", "--images-total", "1", "--in-flight", "1")
            installation.client.headers["authorization"] = key_of(installation, "racer")

            answers = await asyncio.gather(*order_at_once(installation, "a fox", REPEATS))

            assert {answer.status_code for answer in answers if isinstance(answer, httpx.Response)} == {200}
            assert len({answer.content for answer in answers if isinstance(answer, httpx.Response)}) == 1
            assert not [answer for answer in answers if not isinstance(answer, httpx.Response)]
            assert (sandbox.witness()["asked"], sandbox.witness()["billed"]) == (1, 1)
            (used,) = rows(database_url, "SELECT images_total, in_flight FROM budgets WHERE images_total_max = 1")
            assert used == {"images_total": 1, "in_flight": 0}
            assert installation.ask("reconcile") == []


async def test_a_worker_that_is_killed_takes_no_repeat_to_another_generation(database_url: str, tmp_path: Path) -> None:
    with running_sandbox(draw=False) as sandbox:
        env = beside(database_url, sandbox, GENERATED_LEASE_SECONDS="3", DATABASE_TIMEOUT_SECONDS="30")
        with running_installation(tmp_path, env=env, workers=2) as installation:
            prompt = "a fox [[picture slow 1]]"
            asking = asyncio.gather(*order_at_once(installation, prompt, REPEATS_AROUND_A_KILL))
            await asyncio.to_thread(eventually, lambda: rows(database_url, "SELECT id FROM generations"))
            await asyncio.to_thread(eventually, lambda: sandbox.witness()["pictures"]["asked"])

            os.kill(workers_of(installation)[0], signal.SIGKILL)

            answers = [answer for answer in await asking if isinstance(answer, httpx.Response)]
            again = await asyncio.gather(*order_at_once(installation, prompt, REPEATS_AROUND_A_KILL))
            told = [answer for answer in (*answers, *again) if isinstance(answer, httpx.Response)]
            # 202 for those whose runner was killed, until recovery has the image.
            assert {answer.status_code for answer in told} <= {200, 202}
            (row,) = rows(database_url, "SELECT id FROM generations")
            assert {answer.json()["id"] for answer in told} == {str(row["id"])}
            installation.reaches(str(row["id"]), "completed")
            assert (sandbox.witness()["asked"], sandbox.witness()["billed"]) == (1, 1)
            assert installation.ask("reconcile") == []


def test_a_client_that_leaves_while_the_service_stops_is_answered_by_the_next_start(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    with running_installation(tmp_path, env=beside(database_url, sandbox)) as installation:
        connection = http.client.HTTPConnection("127.0.0.1", installation.port)
        body = json.dumps({"prompt": "a fox [[delay 1.5]]"})
        connection.request("POST", "/images", body, {"authorization": f"Bearer {installation.key}"})
        eventually(lambda: sandbox.witness()["asked"])
        installation.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in installation.stderr.read_text() or refuses_orders(installation))
        connection.close()
        installation.process.wait(20)
        installation.start()

        answer = installation.order("a fox [[delay 1.5]]")

        (row,) = rows(database_url, "SELECT id, state, repeats FROM generations")
        assert (row["state"], row["repeats"]) == ("completed", 1)
        assert (answer.status_code, answer.json()["id"]) == (200, str(row["id"]))
        assert sandbox.witness()["asked"] == 1


def test_a_repeat_is_answered_whatever_the_catalog_says_now(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    with running_installation(tmp_path, env=beside(database_url, sandbox)) as installation:
        usual = installation.order("a fox", headers=KEY)
        named = installation.order("a fox", model="dall-e-3", headers={"idempotency-key": "order-2"})
        plain = installation.order("a hare", model="dall-e-3")
        installation.stop()
        other = tmp_path / "catalog.toml"
        changed = CATALOG.read_text().replace("dall-e-3", "dall-e-4")
        other.write_text(changed.replace('default_size = "1024x1024"', 'default_size = "1792x1024"', 1))
        installation.env["MODEL_CATALOG"] = str(other)
        installation.start()

        answers = [
            installation.order("a fox", headers=KEY),
            installation.order("a fox", model="dall-e-3", headers={"idempotency-key": "order-2"}),
            installation.order("a hare", model="dall-e-3", headers={"x-stainless-retry-count": "1"}),
        ]
        reused = installation.order("a hare", model="dall-e-3", headers=KEY)
        new = installation.order("a hare", model="dall-e-3")

        assert [answer.status_code for answer in answers] == [200] * 3
        assert [answer.json()["id"] for answer in answers] == [before.json()["id"] for before in (usual, named, plain)]
        assert reused.json()["code"] == "idempotency_key_reused"
        assert new.json()["code"] == "model_not_found"
        assert sandbox.witness()["asked"] == 3


def order_at_once(
    installation: Installation, prompt: str, orders: int
) -> list["asyncio.Future[httpx.Response | httpx.HTTPError]"]:
    """So many orders with KEY, each on a connection of its own; what broke off is its error."""
    limits = httpx.Limits(max_connections=orders, max_keepalive_connections=0)
    client = httpx.AsyncClient(
        base_url=installation.url,
        headers={"authorization": installation.client.headers["authorization"], **KEY},
        limits=limits,
        timeout=60,
        verify=False,
        trust_env=False,
    )

    async def order() -> httpx.Response | httpx.HTTPError:
        try:
            return await client.post("/images", json={"prompt": prompt})
        except httpx.HTTPError as error:
            return error

    return [asyncio.ensure_future(order()) for _ in range(orders)]


def key_of(installation: Installation, user: str) -> str:
    return f"Bearer {installation.ask('keys', 'create', user)['key']}"


def workers_of(installation: Installation) -> list[int]:
    return [pid for pid, line in processes_in(installation.folder).items() if "multiprocessing.spawn" in line]


def refuses_orders(installation: Installation) -> bool:
    try:
        return httpx.get(f"{installation.url}/readyz").status_code == 503
    except httpx.HTTPError:
        return True
