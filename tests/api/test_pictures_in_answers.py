"""Is a picture that comes inside the answer paid for once, wherever it lives, and whatever happens on its way?"""

import os
import socket
from base64 import b64decode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.api.books import count, wait_until
from tests.api.surfaces import OPENAI, TTAPI, Surface
from tests.sandbox_server import RunningSandbox
from tests.service import Service, running_service

KEY = {"idempotency-key": "order-1"}
IN_BASE64: dict[str, Any] = {"response_format": "b64_json"}
# More than the buffers of a connection hold.
LARGE_BYTES = 12 * 1024 * 1024 + 1


@pytest.fixture
def own(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service of the test's own, whose storage it may take away."""
    with running_service(database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir) as running:
        yield running


def bytes_of(surface: Surface, answer: httpx.Response) -> bytes:
    """The one picture in an answer."""
    (item,) = surface.images(answer)
    return b64decode(item["b64_json"], validate=True)


def stored(data_dir: Path) -> list[Path]:
    return list((data_dir / "images").rglob("*.png"))


def order_unreadable(
    surface: Surface, service: Service, data_dir: Path, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """Order a picture in base64 whose storage goes away after it was put there, and before it is read again."""
    with psycopg.connect(service.database_url.replace("+psycopg", "")) as books, ThreadPoolExecutor(1) as thread:
        # Between the two stands the row of the image.
        books.execute("LOCK TABLE images IN EXCLUSIVE MODE")
        order = thread.submit(surface.order, service, "a red fox", headers=headers, **IN_BASE64)
        wait_until(lambda: stored(data_dir))
        (data_dir / "images").rename(data_dir / "away")
        books.commit()
        return order.result()


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_while_storage_is_away_it_comes_from_the_spool(
    own: Service, sandbox: RunningSandbox, data_dir: Path, told_by: Surface
) -> None:
    (data_dir / "images").rename(data_dir / "away")

    answer = told_by.order(own, "a red fox", **IN_BASE64)

    assert bytes_of(told_by, answer).startswith(b"\x89PNG")
    assert own.rows("SELECT storage FROM images") == [{"storage": "spool"}]
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize(
    ("first", "then"),
    [({}, {}), ({"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}), (KEY, KEY)],
    ids=["ai sdk", "openai sdk", "key"],
)
@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_what_was_bought_and_can_not_be_read_just_now_is_had_by_the_next_try(
    own: Service,
    sandbox: RunningSandbox,
    data_dir: Path,
    told_by: Surface,
    first: dict[str, str],
    then: dict[str, str],
) -> None:
    refused = order_unreadable(told_by, own, data_dir, first)
    if "idempotency-key" not in first:
        wait_until(lambda: own.generation()["left_at"])
    (data_dir / "away").rename(data_dir / "images")

    again = told_by.order(own, "a red fox", headers=then, **IN_BASE64)

    assert "The image is safe" in told_by.assert_refused(refused, "storage_unavailable")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "x-should-retry" not in refused.headers
    assert told_by.generation_id(refused) == told_by.generation_id(again)
    assert bytes_of(told_by, again).startswith(b"\x89PNG")
    assert sandbox.witness()["asked"] == 1


def test_a_storage_that_stays_away_is_told_to_every_try_and_costs_nothing_more(
    own: Service, sandbox: RunningSandbox, data_dir: Path
) -> None:
    order_unreadable(OPENAI, own, data_dir)

    for count_of_retries in ("1", "2"):
        headers = {"x-stainless-retry-count": count_of_retries}
        answer = OPENAI.order(own, "a red fox", headers=headers, **IN_BASE64)
        OPENAI.assert_refused(answer, "storage_unavailable")

    assert sandbox.witness()["asked"] == 1


def test_where_no_repeat_would_be_known_for_one_nobody_is_invited_to_send_it(
    database_url: str, sandbox: RunningSandbox, data_dir: Path
) -> None:
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, join_within_seconds=0
    ) as service:
        refused = order_unreadable(OPENAI, service, data_dir)

        OPENAI.assert_refused(refused, "answer_unavailable")
        assert refused.headers["x-should-retry"] == "false"
        assert "retry-after" not in refused.headers
        assert refused.headers["location"] == f"/images/{service.generation()['id']}"


def enlarge(service: Service, data_dir: Path) -> bytes:
    """Put something much larger where the one picture is."""
    (file,) = stored(data_dir)
    body = os.urandom(LARGE_BYTES)
    file.write_bytes(body)
    service.rows("UPDATE images SET size_bytes = %s", LARGE_BYTES)
    return body


def test_a_large_picture_comes_whole(own: Service, sandbox: RunningSandbox, data_dir: Path) -> None:
    OPENAI.order(own, "a red fox", headers=KEY)
    body = enlarge(own, data_dir)

    answer = OPENAI.order(own, "a red fox", headers=KEY, **IN_BASE64)

    assert bytes_of(OPENAI, answer) == body
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert sandbox.witness()["asked"] == 1


def test_a_client_that_leaves_in_the_middle_of_the_picture_gets_it_the_next_time(
    own: Service, sandbox: RunningSandbox, data_dir: Path
) -> None:
    OPENAI.order(own, "a red fox")
    whole = enlarge(own, data_dir)
    url = httpx.URL(own.url)
    body = b'{"prompt": "a red fox", "response_format": "b64_json"}'
    head = [
        f"POST {OPENAI.path} HTTP/1.1",
        "host: imagekeep",
        f"authorization: Bearer {own.key}",
        "x-stainless-retry-count: 1",
        f"content-length: {len(body)}",
    ]
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    wait_until(lambda: own.generation()["left_at"])

    again = OPENAI.order(own, "a red fox", **IN_BASE64)

    assert bytes_of(OPENAI, again) == whole
    assert (count(own), sandbox.witness()["asked"]) == (1, 1)


def test_a_picture_that_breaks_off_is_no_whole_answer_and_is_had_by_the_next_try(
    own: Service, sandbox: RunningSandbox, data_dir: Path
) -> None:
    OPENAI.order(own, "a red fox")
    whole = enlarge(own, data_dir)
    (file,) = stored(data_dir)
    file.write_bytes(whole[: LARGE_BYTES // 2])

    with pytest.raises(httpx.RemoteProtocolError):
        OPENAI.order(own, "a red fox", headers={"x-stainless-retry-count": "1"}, **IN_BASE64)
    wait_until(lambda: own.generation()["left_at"])
    file.write_bytes(whole)
    again = OPENAI.order(own, "a red fox", **IN_BASE64)

    assert bytes_of(OPENAI, again) == whole
    assert sandbox.witness()["asked"] == 1
