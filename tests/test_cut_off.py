"""What does a client read whose order is cut off, because the process was told to stop now?"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.api.surfaces import OPENAI, SURFACES, TTAPI
from tests.installation import beside, eventually, running_installation
from tests.sandbox_server import RunningSandbox
from tests.service import rows

ORIGIN = "https://app.example.com"
LEFT_TO_RECOVERY = "SELECT count(*) AS n FROM generations WHERE state = 'generated' AND attempts > 0"
# Not to be had for as long as any test takes.
NEVER = "a fox [[picture flaky 999]]"


def test_who_waits_for_what_another_may_finish_holds_up_no_stop(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    # A process that waits for these to end is killed by the test.
    env = beside(database_url, sandbox, GENERATED_LEASE_SECONDS="0.5", DRAIN_SECONDS="120")
    with (
        running_installation(tmp_path, env=env) as installation,
        ThreadPoolExecutor() as threads,
    ):
        orders = [(surface, threads.submit(surface.order, installation, NEVER)) for surface in (OPENAI, TTAPI)]
        eventually(lambda: rows(database_url, LEFT_TO_RECOVERY)[0]["n"] == len(orders))
        installation.terminate()

        for surface, order in orders:
            answer = order.result()
            assert "could not be fetched yet" in surface.assert_refused(answer, "answer_unavailable")
            assert answer.headers["x-should-retry"] == "false"
        assert installation.ended() == 0
    assert sandbox.witness()["asked"] == len(orders)


def test_an_order_that_is_cut_off_is_told_so_in_its_own_form_and_to_pages_too(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    env = beside(database_url, sandbox, DRAIN_SECONDS="1", CORS_ORIGINS=ORIGIN)
    with (
        running_installation(tmp_path, env=env) as installation,
        ThreadPoolExecutor() as threads,
    ):
        orders = [
            (surface, threads.submit(surface.order, installation, "a fox [[hang]]", headers={"origin": ORIGIN}))
            for surface in SURFACES
        ]
        eventually(lambda: sandbox.witness()["asked"] == len(SURFACES))
        installation.terminate()

        for surface, order in orders:
            answer = order.result()
            assert "stopped" in surface.assert_refused(answer, "answer_unavailable")
            assert answer.headers["x-should-retry"] == "false"
            assert answer.headers["access-control-allow-origin"] == ORIGIN


def test_an_order_that_is_cut_off_is_known_to_the_next_process_when_its_client_comes_again(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    env = beside(database_url, sandbox, DRAIN_SECONDS="1")
    with (
        running_installation(tmp_path, env=env) as installation,
        ThreadPoolExecutor() as threads,
    ):
        order = threads.submit(OPENAI.order, installation, "a fox [[hang]]")
        eventually(lambda: sandbox.witness()["asked"] == 1)
        installation.terminate()

        OPENAI.assert_refused(order.result(), "answer_unavailable")
        assert installation.ended() == 0
    assert rows(database_url, "SELECT left_at IS NOT NULL AS left FROM generations") == [{"left": True}]
