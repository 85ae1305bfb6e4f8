"""What does a caller get for an order, and how do they wait for it?"""

import json
import socket
import time
from io import BytesIO
from typing import Any
from uuid import UUID

import httpx
import pytest
from PIL import Image

from tests.api.books import ONE_USED, count, figures, in_flight, limit, used, wait_until
from tests.api.wire import ask
from tests.sandbox_server import RunningSandbox
from tests.service import Service

PRICES_MICROS = {
    ("1024x1024", "standard"): 10_000,
    ("1792x1024", "standard"): 20_000,
    ("1024x1792", "standard"): 20_000,
    ("1024x1024", "hd"): 20_000,
    ("1792x1024", "hd"): 30_000,
    ("1024x1792", "hd"): 30_000,
}


def listed(service: Service) -> list[dict[str, Any]]:
    """Every generation on the first page."""
    found: list[dict[str, Any]] = service.client.get("/images").json()["generations"]
    return found


def test_an_order_answers_with_a_permanent_url_of_a_picture_of_the_asked_size(
    service: Service, sandbox: RunningSandbox
) -> None:
    answer = service.order("a red fox", size="1792x1024")

    assert answer.status_code == 200
    (image,) = answer.json()["images"]
    assert image["url"].startswith(f"{service.url}/i/")
    picture = Image.open(BytesIO(ask("GET", image["url"]).content))
    assert picture.size == (1792, 1024) == (image["width"], image["height"])
    assert sandbox.witness()["billed"] == 1


def test_an_order_with_nothing_but_a_prompt_gets_what_is_usual(service: Service, sandbox: RunningSandbox) -> None:
    answer = service.order("a red fox")

    generation = answer.json()
    assert (generation["model"], generation["size"], generation["quality"]) == ("dall-e-3", "1024x1024", "standard")
    assert (generation["n"], generation["state"], generation["prompt"]) == (1, "completed", "a red fox")
    assert generation["price"] == {"micros": 10_000, "usd": "0.010000"}
    assert generation["revised_prompt"] == "a red fox, drawn in the sandbox."
    assert generation["created_at"] < generation["finished_at"]
    assert "failure" not in generation
    (ordered,) = sandbox.witness()["orders"]
    assert (ordered["model"], ordered["size"], ordered["quality"], ordered["n"]) == (
        "dall-e-3",
        "1024x1024",
        "standard",
        1,
    )


def test_an_answer_says_where_the_generation_is_and_that_nobody_may_cache_it(service: Service) -> None:
    answer = service.order("a red fox")

    assert answer.headers["location"] == f"/images/{answer.json()['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    assert "preference-applied" not in answer.headers
    assert UUID(answer.json()["id"]).version == 7


def test_an_image_is_told_with_its_true_bytes_and_type(service: Service) -> None:
    (image,) = service.order("a red fox [[format webp]]").json()["images"]

    served = ask("GET", image["url"])
    assert image["bytes"] == len(served.content)
    assert image["content_type"] == served.headers["content-type"] == "image/webp"
    assert image["url"].endswith(".webp")


def test_nothing_of_upstream_is_in_the_answer(service: Service, sandbox: RunningSandbox) -> None:
    answer = service.order("a red fox")

    assert sandbox.url not in answer.text
    assert "sig=" not in answer.text
    assert service.generation()["source_urls"] is None


@pytest.mark.parametrize(("size", "quality"), PRICES_MICROS)
def test_every_size_and_quality_has_the_price_that_was_told(service: Service, size: str, quality: str) -> None:
    limit(service)
    model = service.client.get("/models").json()["models"][0]
    (told,) = [price for price in model["prices"] if (price["size"], price["quality"]) == (size, quality)]

    answer = service.order("a red fox", size=size, quality=quality)

    micros = PRICES_MICROS[size, quality]
    assert told["micros"] == answer.json()["price"]["micros"] == micros
    assert answer.json()["price"]["usd"] == told["usd"] == f"{micros / 1_000_000:.6f}"
    assert figures(service.generation()) == (1, micros, 1, micros)
    assert used(service)["micros_month"] == micros


@pytest.mark.parametrize("accept", ["image/*", "image/png", "image/webp,image/png;q=0.9", "IMAGE/PNG"])
def test_who_accepts_only_pictures_gets_the_picture_itself(service: Service, accept: str) -> None:
    answer = service.order("a red fox", headers={"accept": accept})

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert Image.open(BytesIO(answer.content)).size == (1024, 1024)
    generation = service.client.get(answer.headers["location"]).json()
    assert ask("GET", generation["images"][0]["url"]).content == answer.content


@pytest.mark.parametrize("accept", ["*/*", "application/json", "image/png, application/json", "text/html,image/avif"])
def test_who_accepts_json_or_a_page_gets_json(service: Service, accept: str) -> None:
    answer = service.order("a red fox", headers={"accept": accept})

    assert answer.json()["state"] == "completed"


def test_who_accepts_only_pictures_gets_an_error_as_a_problem(service: Service) -> None:
    answer = service.order("a red fox [[refuse]]", headers={"accept": "image/*"})

    assert answer.json()["code"] == "content_rejected"


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain", "nonsense"])
def test_json_is_taken_whatever_the_content_type_says(service: Service, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}

    answer = service.client.post("/images", content=b'{"prompt": "a red fox"}', headers=headers)

    assert answer.status_code == 200


@pytest.mark.parametrize("name", ["model", "size", "quality"])
def test_null_asks_for_what_is_usual(service: Service, name: str) -> None:
    answer = service.order("a red fox", **{name: None})

    assert answer.status_code == 200
    assert answer.json()["model"] == "dall-e-3"


def test_an_order_that_is_not_waited_for_is_told_where_to_look(service: Service) -> None:
    answer = service.order("a red fox [[delay 0.3]]", headers={"prefer": "respond-async"})

    assert answer.status_code == 202
    assert answer.headers["location"] == f"/images/{answer.json()['id']}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert (answer.json()["state"], answer.json()["images"]) == ("pending", [])
    ended = service.client.get(answer.headers["location"], headers={"prefer": "wait=30"})
    assert (ended.status_code, ended.json()["state"]) == (200, "completed")
    assert ended.headers["preference-applied"] == "wait=30"
    assert ended.json()["images"][0]["url"].startswith(f"{service.url}/i/")


def test_an_order_that_is_waited_for_too_short_goes_on(service: Service, sandbox: RunningSandbox) -> None:
    answer = service.order("a red fox [[delay 1.3]]", headers={"prefer": "respond-async, wait=1"})

    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    assert answer.headers["preference-applied"] == "respond-async, wait=1"
    ended = service.client.get(answer.headers["location"], headers={"prefer": "wait=30"})
    assert ended.json()["state"] == "completed"
    assert sandbox.witness()["asked"] == 1


def test_waiting_ends_when_the_generation_does(service: Service) -> None:
    started = time.monotonic()

    answer = service.order("a red fox", headers={"prefer": "wait=30"})

    assert answer.status_code == 200
    assert time.monotonic() - started < 15


def test_without_a_preference_a_look_does_not_wait(service: Service, sandbox: RunningSandbox) -> None:
    with in_flight(service, sandbox):
        (running,) = listed(service)
        answer = service.client.get(f"/images/{running['id']}")

    assert (answer.status_code, answer.json()["state"]) == (200, "pending")


def test_a_client_that_leaves_changes_nothing(service: Service, sandbox: RunningSandbox) -> None:
    limit(service)
    body = json.dumps({"prompt": "a red fox [[delay 0.5]]"}).encode()
    head = f"POST /images HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\ncontent-length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", httpx.URL(service.url).port or 80)) as connection:
        connection.sendall(head.encode() + b"\r\n" + body)
        wait_until(lambda: sandbox.witness()["asked"])

    wait_until(lambda: listed(service)[0]["state"] == "completed")
    (image,) = listed(service)[0]["images"]
    assert ask("GET", image["url"]).status_code == 200
    assert used(service) == ONE_USED
    assert sandbox.witness()["asked"] == 1


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_crash(service: Service) -> None:
    head = f"POST /images HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\ncontent-length: 100\r\n\r\n"
    crashes = crashes_of(service)
    answered = answered_of(service)
    with socket.create_connection(("127.0.0.1", httpx.URL(service.url).port or 80)) as connection:
        connection.sendall(head.encode() + b'{"prompt": "a red')

    wait_until(lambda: answered_of(service) > answered)
    assert crashes_of(service) == crashes
    assert count(service) == 0


def crashes_of(service: Service) -> float:
    """How often an order was answered with 500, by the service's own figures."""
    return sum(figure for labels, figure in orders_answered(service) if 'status="500"' in labels)


def answered_of(service: Service) -> float:
    return sum(figure for _, figure in orders_answered(service))


def orders_answered(service: Service) -> list[tuple[str, float]]:
    lines = ask("GET", f"{service.url}/metrics").text.splitlines()
    answers = [line.rpartition(" ") for line in lines if line.startswith("imagekeep_http_requests_total{")]
    return [(labels, float(figure)) for labels, _, figure in answers if 'method="POST"' in labels]
