"""Does a picture that storage did not take behave like any other?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.books import wait_until
from tests.api.wire import ask
from tests.s3_server import S3Server, running_s3
from tests.sandbox_server import RunningSandbox
from tests.service import Service, running_service


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server whose credentials are where boto3 looks for them."""
    with running_s3(tmp_path) as server:
        for name, value in server.credentials.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def cut_off(database_url: str, sandbox: RunningSandbox, data_dir: Path, s3: S3Server) -> Iterator[Service]:
    """A service whose bucket refuses connections, and had a redirect to a CDN while it did not."""
    s3.stop()
    with running_service(
        database_url=database_url,
        upstream_url=sandbox.url,
        data_dir=data_dir,
        s3_bucket=s3.bucket,
        s3_endpoint_url=s3.url,
        s3_region="us-east-1",
        s3_path_style=True,
        s3_public_base_url="https://cdn.example.com",
    ) as service:
        yield service


def url_of(order: httpx.Response) -> str:
    assert order.status_code == 200, order.text
    url: str = order.json()["images"][0]["url"]
    return url


def spooled(service: Service) -> list[dict[str, Any]]:
    return service.rows("SELECT * FROM spool")


def test_a_picture_in_the_spool_is_served_like_any_other(cut_off: Service) -> None:
    url = url_of(cut_off.order("a red fox"))
    ((body,),) = [[bytes(row["body"])] for row in spooled(cut_off)]

    whole, head, part = ask("GET", url), ask("HEAD", url), ask("GET", url, headers={"range": "bytes=3-9"})
    known = ask("GET", url, headers={"if-none-match": whole.headers["etag"]})

    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, body, "image/png")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(body)))
    assert (part.status_code, part.content) == (206, body[3:10])
    assert known.status_code == 304


def test_a_deleted_picture_leaves_the_spool_at_once(cut_off: Service) -> None:
    order = cut_off.order("a red fox")

    deleted = cut_off.client.delete(order.headers["location"])

    assert deleted.status_code == 204
    assert spooled(cut_off) == []
    assert ask("GET", url_of(order)).status_code == 410


def test_what_home_may_hold_of_a_deleted_picture_is_erased_when_home_answers(cut_off: Service, s3: S3Server) -> None:
    order = cut_off.order("a red fox")
    (row,) = spooled(cut_off)
    # The answer to a put was lost, so the picture went into the spool as well.
    late = s3.root / s3.bucket / row["storage_key"]
    late.parent.mkdir(parents=True)
    late.write_bytes(row["body"])
    cut_off.client.delete(order.headers["location"])

    s3.start()

    wait_until(lambda: cut_off.rows("SELECT id FROM images WHERE erased_at IS NOT NULL"))
    assert row["storage_key"] not in s3.objects()


def test_the_url_works_when_the_picture_has_gone_home_and_leads_to_the_cdn_then(cut_off: Service, s3: S3Server) -> None:
    url = url_of(cut_off.order("a red fox"))
    body = ask("GET", url).content

    s3.start()

    wait_until(lambda: not spooled(cut_off))
    ((key, stored),) = [(key, body) for key, body in s3.objects().items() if key.endswith(".png")]
    assert stored == body
    assert ask("GET", url).headers["location"] == f"https://cdn.example.com/{key}"


def test_readiness_stays_green_while_the_spool_has_room_and_says_so(cut_off: Service) -> None:
    ready = ask("GET", f"{cut_off.url}/readyz")

    assert (ready.status_code, ready.json()["storage"]) == (200, "unavailable, spooling")


def test_what_is_in_the_spool_and_what_is_at_risk_are_figures(cut_off: Service) -> None:
    cut_off.order("a red fox")
    (row,) = spooled(cut_off)

    expected = {
        f"imagekeep_spool_bytes {float(row['size_bytes'])}",
        "imagekeep_spool_images 1.0",
        "imagekeep_at_risk_generations 0.0",
        "imagekeep_at_risk_seconds +Inf",
    }

    # In one look: another service of this test process sets the same figures, by turns.
    wait_until(lambda: expected <= set(ask("GET", f"{cut_off.url}/metrics").text.splitlines()))


def test_a_storage_that_hangs_holds_up_the_first_orders_only(
    database_url: str, sandbox: RunningSandbox, data_dir: Path, s3: S3Server
) -> None:
    s3.freeze()
    with running_service(
        database_url=database_url,
        upstream_url=sandbox.url,
        data_dir=data_dir,
        s3_bucket=s3.bucket,
        s3_endpoint_url=s3.url,
        s3_region="us-east-1",
        s3_path_style=True,
        storage_patience_seconds=1,
    ) as service:
        first = service.order("a red fox")
        with ThreadPoolExecutor(8) as threads:
            later = list(threads.map(service.order, ["a red fox [[b64]]"] * 8))

        assert first.elapsed.total_seconds() >= 1
        assert {answer.status_code for answer in [first, *later]} == {200}
        assert len(spooled(service)) == 9

        s3.thaw()
        wait_until(lambda: not spooled(service), seconds=60)
        assert len([key for key in s3.objects() if key.endswith(".png")]) == 9


def test_an_order_that_might_not_fit_into_the_spool_is_refused_before_it_is_paid(
    database_url: str, sandbox: RunningSandbox, data_dir: Path
) -> None:
    with running_service(
        database_url=database_url,
        upstream_url=sandbox.url,
        data_dir=data_dir,
        image_bytes_max=10_000_000,
        spool_bytes_max=10_000_000,
    ) as service:
        (data_dir / "images").rename(data_dir / "away")

        taken, refused = service.order("a red fox"), service.order("a second fox")
        ready = ask("GET", f"{service.url}/readyz")

        assert taken.status_code == 200
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
        assert (ready.status_code, ready.json()["storage"]) == (503, "unavailable")
        assert sandbox.witness()["asked"] == 1
        assert len(service.rows("SELECT id FROM generations")) == 1


def test_an_order_for_which_the_spool_is_held_already_is_told_of_overload(
    database_url: str, sandbox: RunningSandbox, data_dir: Path
) -> None:
    with (
        running_service(
            database_url=database_url,
            upstream_url=sandbox.url,
            data_dir=data_dir,
            image_bytes_max=10_000_000,
            spool_bytes_max=10_000_000,
        ) as service,
        ThreadPoolExecutor(1) as thread,
    ):
        running = thread.submit(service.order, "a slow fox [[delay 1]]")
        wait_until(lambda: sandbox.witness()["asked"] == 1)

        refused = service.order("a second fox")

        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert running.result().status_code == 200
        assert service.order("a third fox").status_code == 200


def test_a_client_whose_picture_nothing_takes_waits_for_a_lease_and_the_picture_for_storage(
    database_url: str, sandbox: RunningSandbox, data_dir: Path, s3: S3Server
) -> None:
    with running_service(
        database_url=database_url,
        upstream_url=sandbox.url,
        data_dir=data_dir,
        s3_bucket=s3.bucket,
        s3_endpoint_url=s3.url,
        s3_region="us-east-1",
        s3_path_style=True,
        spool_bytes_max=0,
        upstream_timeout_seconds=1,
        pending_lease_seconds=3,
    ) as service:
        s3.stop()

        answer = service.order("a red fox [[b64]]")

        assert (answer.status_code, answer.json()["state"]) == (202, "pending")
        s3.start()
        wait_until(lambda: service.rows("SELECT id FROM generations WHERE state = 'completed'"))
        assert ask("GET", service.client.get(answer.headers["location"]).json()["images"][0]["url"]).status_code == 200
