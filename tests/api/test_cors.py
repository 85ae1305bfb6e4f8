"""May a page in a browser call the API, and which page?"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.books import limit
from tests.api.surfaces import Surface
from tests.api.wire import ask
from tests.sandbox_server import RunningSandbox
from tests.service import Service, running_service

ORIGIN = "https://app.example.com"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,idempotency-key,prefer",
}


@pytest.fixture
def open_service(database_url: str, sandbox: RunningSandbox, data_dir: Path) -> Iterator[Service]:
    """A service that lets pages of two origins in."""
    with running_service(
        database_url=database_url,
        upstream_url=sandbox.url,
        data_dir=data_dir,
        cors_origins=f"{ORIGIN}, http://localhost:5173",
    ) as running:
        yield running


# What openai-node 7.57.0 and the Vercel AI SDK add to an order, and what TTAPI's own snippet brings.
SDK_HEADERS = (
    "authorization,content-type,idempotency-key,openai-organization,openai-project,user-agent,x-stainless-arch,"
    "x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)


def assert_readable(answer: httpx.Response) -> None:
    """The page may read the answer, and the headers that it needs to act on it."""
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "origin" in answer.headers["vary"].lower()
    exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].lower().split(",")}
    assert exposed >= {
        "imagekeep-made",
        "imagekeep-price-micros",
        "location",
        "openai-processing-ms",
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "x-request-id",
        "x-should-retry",
    }


def test_a_page_of_a_named_origin_may_order_and_read_every_answer(open_service: Service) -> None:
    service = open_service
    headers = {"origin": ORIGIN}

    preflight = ask("OPTIONS", f"{service.url}/images", headers={**headers, **PREFLIGHT})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "content-type", "idempotency-key", "prefer"))

    answers = {
        200: service.order("a red fox", headers=headers),
        202: service.order("a red fox", headers={**headers, "prefer": "respond-async"}),
        400: service.client.post("/images", content=b"no json", headers=headers),
        401: service.client.get("/me", headers={**headers, "authorization": "Bearer nonsense"}),
        404: service.client.get("/nothing", headers=headers),
        405: service.client.put("/images", headers=headers),
        413: service.client.post("/images", content=b"x" * 600_000, headers=headers),
        502: service.order("a red fox [[status 401]]", headers=headers),
        504: service.order("a red fox [[drop]]", headers=headers),
    }
    limit(service, images_total_max=0)
    answers[429] = service.order("a red fox", headers=headers)

    for status, answer in answers.items():
        assert answer.status_code == status
        assert_readable(answer)


@pytest.mark.parametrize("asked", [SDK_HEADERS, "content-type,tt-api-key", "x-of-tomorrow"])
def test_a_page_may_send_whatever_headers_its_sdk_adds(open_service: Service, surface: Surface, asked: str) -> None:
    headers = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": asked}

    preflight = ask("OPTIONS", open_service.url + surface.path, headers=headers)

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert set(preflight.headers["access-control-allow-headers"].split(",")) >= set(asked.split(","))
    assert int(preflight.headers["access-control-max-age"]) >= 600
    assert "access-control-request-headers" in preflight.headers["vary"].lower()


def test_a_page_reads_every_answer_on_every_surface(open_service: Service, surface: Surface) -> None:
    service, origin = open_service, {"origin": ORIGIN}
    orders = {
        "a red fox": None,
        "a red fox [[refuse]]": "content_rejected",
        "a red fox [[status 429]]": "upstream_busy",
        "a red fox [[status 401]]": "upstream_auth_failed",
        "a red fox [[drop]]": "upstream_outcome_unknown",
    }
    answers = [(surface.order(service, prompt, headers=origin), code) for prompt, code in orders.items()]
    answers += [
        (surface.post(service, content=b"no json", headers=origin), "invalid_json"),
        (surface.post(service, content=b"x" * 600_000, headers=origin), "body_too_large"),
        (surface.order(service, "a fox", headers={**origin, **surface.key_headers("nonsense")}), "api_key_mistyped"),
        (surface.post(service, path=f"{surface.path}/nothing", headers=origin), None),
        (surface.post(service, method="PUT", headers=origin), "method_not_allowed"),
    ]
    limit(service, images_total_max=0)
    answers.append((surface.order(service, "a red fox", headers=origin), "budget_spent"))
    service.rows("UPDATE generations SET created_at = 'infinity', idempotency_key = 'k' WHERE state = 'completed'")
    crash = surface.order(service, "a red fox", headers={**origin, "idempotency-key": "k"})
    answers.append((crash, "internal_error"))

    for answer, code in answers:
        assert_readable(answer)
        if code is not None:
            surface.assert_refused(answer, code)


def test_a_page_of_another_origin_may_not(open_service: Service) -> None:
    headers = {"origin": "https://evil.example.com"}

    preflight = ask("OPTIONS", f"{open_service.url}/images", headers={**headers, **PREFLIGHT})
    answer = open_service.client.get("/me", headers=headers)
    error = open_service.client.get("/nothing", headers=headers)

    assert preflight.status_code == 400
    for told in (preflight, answer, error):
        assert "access-control-allow-origin" not in told.headers


@pytest.mark.parametrize(
    "origin", ["null", "https://app.example.com.evil.com", "http://app.example.com", "https://APP.example.com:443"]
)
def test_an_origin_that_only_looks_like_a_named_one_may_not(open_service: Service, origin: str) -> None:
    answer = open_service.client.get("/me", headers={"origin": origin})

    assert "access-control-allow-origin" not in answer.headers


def test_images_are_open_to_every_page_whatever_is_named(open_service: Service) -> None:
    (image,) = open_service.order("a red fox").json()["images"]

    answer = ask("GET", image["url"], headers={"origin": "https://evil.example.com"})

    assert answer.headers["access-control-allow-origin"] == "*"


def test_cookies_are_never_asked_for(open_service: Service) -> None:
    answer = open_service.client.get("/me", headers={"origin": ORIGIN})

    assert "access-control-allow-credentials" not in answer.headers


def test_without_the_setting_no_page_may(service: Service) -> None:
    headers = {"origin": ORIGIN}

    answers = [
        ask("OPTIONS", f"{service.url}/images", headers={**headers, **PREFLIGHT}),
        service.client.get("/me", headers=headers),
        service.client.get("/nothing", headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [405, 200, 404]
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)
