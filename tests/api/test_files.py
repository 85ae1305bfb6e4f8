"""Is an image served at its permanent URL as a browser, a CDN and a download tool expect it, and for ever?"""

import random
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.api.books import wait_until
from tests.api.wire import ask
from tests.s3_server import S3Server, running_s3
from tests.sandbox_server import RunningSandbox
from tests.service import Service, rows, running_service


def url_of(answer: httpx.Response) -> str:
    """The permanent URL of the one image that an order made."""
    (image,) = answer.json()["images"]
    return str(image["url"])


@pytest.fixture
def url(service: Service) -> str:
    """The permanent URL of a PNG of some hundred bytes."""
    return url_of(service.order("a red fox"))


@pytest.fixture
def body(url: str) -> bytes:
    """That image's bytes."""
    return ask("GET", url).content


@pytest.fixture
def etag(url: str) -> str:
    return str(ask("HEAD", url).headers["etag"])


def assert_open(answer: httpx.Response) -> None:
    """Any page may read it, and no browser takes it for anything but a picture."""
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert_open(answer)


def test_a_get_answers_with_the_picture_and_all_that_a_cache_needs(url: str) -> None:
    answer = ask("GET", url)

    assert answer.status_code == 200
    assert Image.open(BytesIO(answer.content)).size == (1024, 1024)
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["cache-control"] == "public, max-age=86400"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"].startswith('"')
    assert "set-cookie" not in answer.headers
    assert_open(answer)


@pytest.mark.parametrize(
    ("ordered", "content_type", "extension"),
    [("png", "image/png", "png"), ("jpeg", "image/jpeg", "jpg"), ("webp", "image/webp", "webp")],
)
def test_the_content_type_and_the_extension_are_the_pictures_own(
    service: Service, ordered: str, content_type: str, extension: str
) -> None:
    url = url_of(service.order(f"a red fox [[format {ordered}]]"))

    answer = ask("GET", url)

    assert url.endswith(f".{extension}")
    assert answer.headers["content-type"] == content_type
    assert Image.open(BytesIO(answer.content)).format == ordered.upper()


def test_a_head_answers_as_a_get_would_without_the_picture(url: str) -> None:
    get, head = ask("GET", url), ask("HEAD", url)

    assert (head.status_code, head.content) == (200, b"")
    passing = ("date", "x-request-id")
    assert {name: value for name, value in head.headers.items() if name not in passing} == {
        name: value for name, value in get.headers.items() if name not in passing
    }


def test_the_url_asks_for_no_key_and_minds_none(url: str) -> None:
    answers = [ask("GET", url, headers={"authorization": given}) for given in ("Bearer nonsense", "Basic eDp5", "")]

    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_the_url_is_not_guessed_from_the_generation(service: Service) -> None:
    answer = service.order("a red fox")

    name = url_of(answer).rpartition("/")[2].partition(".")[0]
    assert len(name) == 32
    assert name not in answer.json()["id"].replace("-", "")


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=5-", 5, None),
        ("bytes=0-", 0, None),
        ("bytes=-7", -7, None),
        ("bytes=100-999999", 100, None),
        ("bytes=-999999", 0, None),
        ("bytes=0-999999999999999999", 0, None),
    ],
)
def test_a_range_is_answered_with_that_part(url: str, body: bytes, header: str, start: int, end: int | None) -> None:
    answer = ask("GET", url, headers={"range": header})

    part = body[start:end]
    first = body.index(part) if start < 0 else start
    assert (answer.status_code, answer.content) == (206, part)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(part) - 1}/{len(body)}"
    assert answer.headers["content-length"] == str(len(part))
    assert answer.headers["content-type"] == "image/png"
    assert_open(answer)


def test_an_interrupted_download_is_resumed(url: str, body: bytes, etag: str) -> None:
    cut_at = random.Random(7).randrange(1, len(body))
    first = ask("GET", url, headers={"range": f"bytes=0-{cut_at - 1}"})
    second = ask("GET", url, headers={"range": f"bytes={cut_at}-", "if-range": etag})

    assert first.content + second.content == body


@pytest.mark.parametrize("header", ["bytes=999999-", "bytes=999999-1000000", "bytes=-0"])
def test_a_range_outside_the_picture_is_refused_with_its_length(url: str, body: bytes, header: str) -> None:
    answer = ask("GET", url, headers={"range": header})

    assert_problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(body)}"
    assert answer.json()["bytes"] == len(body)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"bytes",
        b"bytes=",
        b"bytes=-",
        b"bytes=a-b",
        b"bytes=10-5",
        b"bytes=1.5-2",
        b"bytes=--5",
        b"bytes=0x0-0x1",
        b"pixels=0-1",
        b"bytes=0-1,5-6",
        b"bytes=0-1, -5",
        b"bytes=" + b"9" * 5_000 + b"-",
        b"bytes=\xb2-\xb3",
        b"\xff",
    ],
)
def test_a_range_that_can_not_be_read_or_is_several_is_ignored(url: str, body: bytes, header: bytes) -> None:
    answer = ask("GET", url, headers=httpx.Headers([(b"range", header)]))

    assert (answer.status_code, answer.content) == (200, body)


@pytest.mark.parametrize("header", ["bytes=0-0", "bytes=999999-"])
def test_a_head_minds_no_range(url: str, body: bytes, header: str) -> None:
    answer = ask("HEAD", url, headers={"range": header})

    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(body)))


@pytest.mark.parametrize("given", ["{etag}", "W/{etag}", '"other", {etag}', '"other",W/{etag}', "*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_copy_that_is_still_right_is_not_sent_again(url: str, etag: str, given: str, method: str) -> None:
    answer = ask(method, url, headers={"if-none-match": given.format(etag=etag)})

    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == etag
    assert answer.headers["cache-control"] == "public, max-age=86400"
    assert_open(answer)


@pytest.mark.parametrize("given", ['"other"', "", "nonsense", 'W/"other"'])
def test_another_copy_is_replaced(url: str, body: bytes, given: str) -> None:
    answer = ask("GET", url, headers={"if-none-match": given})

    assert (answer.status_code, answer.content) == (200, body)


def test_a_right_copy_outranks_a_range(url: str, etag: str) -> None:
    answer = ask("GET", url, headers={"if-none-match": etag, "range": "bytes=0-0"})

    assert answer.status_code == 304


@pytest.mark.parametrize("given", ['"other"', "W/{etag}", "Sun, 22 Nov 2026 00:00:00 GMT"])
def test_a_part_of_another_copy_is_the_whole(url: str, body: bytes, etag: str, given: str) -> None:
    headers = {"range": "bytes=0-0", "if-range": given.format(etag=etag)}

    answer = ask("GET", url, headers=headers)

    assert (answer.status_code, answer.content) == (200, body)


def test_a_preflight_lets_any_page_send_any_header(url: str) -> None:
    headers = {
        "origin": "https://app.example.com",
        "access-control-request-method": "GET",
        "access-control-request-headers": "authorization,x-odd",
    }

    answer = ask("OPTIONS", url, headers=headers)

    assert answer.status_code == 204
    assert answer.headers["access-control-allow-headers"] == "authorization,x-odd"
    assert "GET" in answer.headers["access-control-allow-methods"]
    assert_open(answer)


@pytest.mark.parametrize("origin", [None, "https://app.example.com", "null"])
def test_every_origin_may_read_and_none_is_written_into_the_answer(url: str, origin: str | None) -> None:
    answer = ask("GET", url, headers={"origin": origin} if origin else {})

    assert_open(answer)
    assert "etag" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("extension", ["jpg", "webp", "svg", "png.html", "PNG", ""])
def test_another_extension_is_not_there(url: str, extension: str) -> None:
    answer = ask("GET", f"{url.removesuffix('.png')}.{extension}")

    assert_problem(answer, 404, "not_found")


def test_an_image_that_never_was_is_not_there(service: Service) -> None:
    answer = ask("GET", f"{service.url}/i/{'0' * 32}.png")

    assert_problem(answer, 404, "not_found")


def test_a_wrong_method_is_refused_openly(url: str) -> None:
    answer = ask("POST", url)

    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("headers", [{}, {"range": "bytes=0-0"}, {"if-none-match": "*"}])
def test_a_deleted_image_is_gone_whatever_is_asked(service: Service, headers: dict[str, str]) -> None:
    order = service.order("a red fox")
    service.client.delete(order.headers["location"])

    answer = ask("GET", url_of(order), headers=headers)

    assert_problem(answer, 410, "image_deleted")


def test_the_url_works_when_upstreams_has_long_expired(service: Service) -> None:
    url = url_of(service.order("a red fox [[expires 1]]"))
    wait_until(lambda: service.rows("SELECT id FROM generations WHERE source_expires_at < now()"))

    answer = ask("GET", url)

    assert answer.status_code == 200


def test_an_image_whose_file_is_lost_is_the_operators_fault(service: Service, url: str) -> None:
    service.rows("UPDATE images SET storage_key = 'nowhere/' || storage_key")

    answer = ask("GET", url)

    assert_problem(answer, 503, "storage_unavailable")
    assert answer.headers["retry-after"]
    assert "nowhere" not in answer.text


def test_an_image_in_a_storage_that_is_not_configured_is_the_operators_fault(service: Service, url: str) -> None:
    service.rows("UPDATE images SET storage = 's3:elsewhere'")

    answer = ask("GET", url)

    assert_problem(answer, 503, "storage_unavailable")


# --- In a bucket


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server whose credentials are where boto3 looks for them."""
    with running_s3(tmp_path) as server:
        for name, value in server.credentials.items():
            monkeypatch.setenv(name, value)
        yield server


def settings_of(s3: S3Server, **more: str) -> dict[str, Any]:
    return {
        "s3_bucket": s3.bucket,
        "s3_endpoint_url": s3.url,
        "s3_region": "us-east-1",
        "s3_path_style": True,
        "s3_prefix": "team/",
        **more,
    }


def test_an_image_in_a_bucket_is_streamed_and_can_be_had_in_parts(
    database_url: str, sandbox: RunningSandbox, data_dir: Path, s3: S3Server
) -> None:
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, **settings_of(s3)
    ) as service:
        order = service.order("a red fox")
        ((key, stored),) = s3.objects().items()

        whole = ask("GET", url_of(order))
        part = ask("GET", url_of(order), headers={"range": "bytes=3-9"})
        service.client.delete(order.headers["location"])

        assert key.startswith("team/")
        assert whole.content == stored
        assert (part.status_code, part.content) == (206, stored[3:10])
        assert part.headers["content-range"] == f"bytes 3-9/{len(stored)}"
        assert ask("GET", url_of(order)).status_code == 410
        assert s3.objects() == {}


def test_with_a_public_bucket_a_get_is_sent_there_and_a_head_is_answered_here(
    database_url: str, sandbox: RunningSandbox, data_dir: Path, s3: S3Server
) -> None:
    settings = settings_of(s3, s3_public_base_url="https://cdn.example.com/pictures")
    with running_service(database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, **settings) as service:
        order = service.order("a red fox")
        ((key, stored),) = s3.objects().items()

        get, head = ask("GET", url_of(order)), ask("HEAD", url_of(order))
        service.client.delete(order.headers["location"])

        assert get.status_code == 302
        assert get.headers["location"] == f"https://cdn.example.com/pictures/{key}"
        assert get.headers["cache-control"] == "no-store"
        assert_open(get)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(stored)))
        assert url_of(order).startswith(service.url)
        assert ask("GET", url_of(order)).status_code == 410


def test_an_image_from_before_the_bucket_is_still_served_from_the_folder(
    database_url: str, sandbox: RunningSandbox, data_dir: Path, s3: S3Server
) -> None:
    with running_service(database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir) as service:
        url = url_of(service.order("a red fox"))
    path, body = httpx.URL(url).path, (next((data_dir / "images").rglob("*.png"))).read_bytes()
    rows(database_url, "UPDATE users SET name = 'before the bucket'")

    settings = settings_of(s3, s3_public_base_url="https://cdn.example.com")
    with running_service(database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, **settings) as service:
        answer = ask("GET", f"{service.url}{path}")

    assert (answer.status_code, answer.content) == (200, body)


def test_a_bucket_that_is_away_is_told_as_such_and_the_url_works_when_it_is_back(
    database_url: str, sandbox: RunningSandbox, data_dir: Path, s3: S3Server
) -> None:
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, **settings_of(s3)
    ) as service:
        url = url_of(service.order("a red fox"))
        s3.stop()
        away, head = ask("GET", url), ask("HEAD", url)
        s3.start()
        back = ask("GET", url)

    assert_problem(away, 503, "storage_unavailable")
    assert (head.status_code, back.status_code) == (200, 200)
