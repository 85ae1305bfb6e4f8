"""Does an answer ever invite a client to order again what was paid for already?"""

from pathlib import Path

import httpx

from tests.api.books import wait_until
from tests.sandbox_server import RunningSandbox
from tests.service import running_service


def test_a_picture_that_can_not_be_read_just_now_is_answered_by_its_url(
    database_url: str, sandbox: RunningSandbox, data_dir: Path
) -> None:
    with running_service(database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir) as service:
        headers = {"accept": "image/png", "idempotency-key": "k"}
        first = service.order("a red fox", headers=headers)
        (data_dir / "images").rename(data_dir / "away")

        again = service.order("a red fox", headers=headers)

        assert first.headers["content-type"] == "image/png"
        assert again.status_code == 200
        assert again.json()["images"][0]["url"].startswith(service.url)
        assert sandbox.witness()["asked"] == 1


def test_without_a_spool_nothing_is_bought_while_storage_is_down_and_what_was_bought_before_arrives_afterwards(
    database_url: str, sandbox: RunningSandbox, data_dir: Path
) -> None:
    with running_service(
        database_url=database_url,
        upstream_url=sandbox.url,
        data_dir=data_dir,
        generated_lease_seconds=1,
        image_timeout_seconds=0.5,
        spool_bytes_max=0,
    ) as service:
        (data_dir / "images").rename(data_dir / "away")
        bought = service.order("a red fox")
        refused = service.order("a second fox")
        (data_dir / "away").rename(data_dir / "images")

        def finished() -> httpx.Response | None:
            answer = service.client.get(bought.headers["location"])
            return answer if answer.json()["state"] == "completed" else None

        wait_until(finished)

        assert bought.status_code == 202
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
        assert refused.headers["retry-after"] == "10"
        assert sandbox.witness()["asked"] == 1
        assert service.order("a third fox").status_code == 200
