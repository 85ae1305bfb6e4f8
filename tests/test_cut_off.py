"""What does a client read whose order is cut off, because the process was told to stop now?"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.api.surfaces import SURFACES
from tests.installation import beside, eventually, running_installation
from tests.sandbox_server import RunningSandbox

ORIGIN = "https://app.example.com"


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
