"""Does the sandbox take and answer orders as TTAPI documents it?"""

import base64
import io
from typing import Any

import httpx
import pytest
from PIL import Image

from app.upstream.catalog import load_catalog
from tests.sandbox.conftest import BARE_ROUTE, SEED_ROUTE, Customer
from tests.sandbox_server import API_KEY, RunningSandbox, running_sandbox

WRONG_KEY = {"status": "FAILED", "message": "Wrong TT-API-KEY or email is not activated."}


def test_the_seed_route_answers_the_envelope_as_compact_json(customer: Customer) -> None:
    reply = customer.order("a cat")
    assert reply.status_code == 200
    body = reply.json()
    assert set(body) == {"status", "message", "data"}
    assert (body["status"], body["message"]) == ("SUCCESS", "success")
    assert isinstance(body["data"]["created"], int)
    (item,) = body["data"]["data"]
    assert set(item) == {"revised_prompt", "url"}
    assert f'"url":"{item["url"]}"' in reply.text


def test_the_newer_route_answers_the_bare_shape(customer: Customer) -> None:
    body = customer.order("a cat", route=BARE_ROUTE).json()
    assert set(body) == {"created", "data"}
    assert set(body["data"][0]) == {"revised_prompt", "url"}


def test_a_gpt_image_model_answers_base64_only_and_its_usage(customer: Customer) -> None:
    body = customer.order("a cat", route=BARE_ROUTE, model="gpt-image-2", size="1536x1024", quality="low").json()
    (item,) = body["data"]
    assert set(item) == {"revised_prompt", "b64_json"}
    assert body["usage"] == {
        "input_tokens": 8,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 8},
        "output_tokens": 158,
        "total_tokens": 166,
    }
    assert (body["size"], body["quality"], body["output_format"]) == ("1536x1024", "low", "png")
    with Image.open(io.BytesIO(base64.b64decode(item["b64_json"], validate=True))) as image:
        assert image.size == (1536, 1024)


@pytest.mark.parametrize(
    ("model", "size", "quality", "tokens"),
    [
        ("gpt-image-2", "auto", "auto", 1_756),
        ("gpt-image-2", "1024x1024", "high", 7_024),
        ("gpt-image-2.5-flare", "1024x1024", "medium", 439),
        ("gpt-image-2.5-sunburst", "1024x1536", "max", 5_488),
        ("gpt-image-1.5", "1536x1024", "high", 6_208),
        ("gpt-image-1-mini", "1024x1024", "low", 272),
    ],
)
def test_the_tokens_that_are_counted_cost_no_more_than_the_catalog_holds(
    customer: Customer, model: str, size: str, quality: str, tokens: int
) -> None:
    body = customer.client.post(
        BARE_ROUTE, json={"prompt": "a cat", "model": model, "size": size, "quality": quality}
    ).json()
    sold = load_catalog(None).find(model)
    assert sold is not None
    assert sold.token_prices is not None
    price = sold.price_micros(size, quality)
    assert body["usage"]["output_tokens"] == tokens
    assert price is not None
    assert sold.token_prices.cost_micros(input_tokens=0, output_tokens=tokens) <= price


def test_each_of_several_pictures_is_counted(customer: Customer) -> None:
    body = customer.order("a cat", route=BARE_ROUTE, model="gpt-image-2", quality="low", n=3).json()
    assert (len(body["data"]), body["usage"]["output_tokens"]) == (3, 3 * 196)


@pytest.mark.parametrize(("fault", "tokens"), [("usage 0", 0), ("usage -5", -5), ("usage " + "9" * 40, int("9" * 40))])
def test_a_wrong_count_can_be_ordered(customer: Customer, fault: str, tokens: int) -> None:
    body = customer.order(f"a cat [[{fault}]]", route=BARE_ROUTE, model="gpt-image-2").json()
    assert body["usage"]["output_tokens"] == tokens


def test_no_count_can_be_ordered(customer: Customer) -> None:
    assert "usage" not in customer.order("a cat [[usage none]]", route=BARE_ROUTE, model="gpt-image-2").json()


def test_base64_comes_when_response_format_asks_for_it(customer: Customer) -> None:
    (item,) = customer.order("a cat", response_format="b64_json").json()["data"]["data"]
    assert set(item) == {"revised_prompt", "b64_json"}


def test_n_pictures_come_with_n_urls_and_differ(customer: Customer) -> None:
    items = customer.order("a cat", n=3).json()["data"]["data"]
    pictures = {customer.client.get(item["url"]).content for item in items}
    assert len(items) == len(pictures) == 3


def test_the_newer_route_needs_only_a_prompt(customer: Customer) -> None:
    assert customer.client.post(BARE_ROUTE, json={"prompt": "a cat"}).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"size": None},
        {"size": "640x480"},
        {"size": ["1024x1024"]},
        {"quality": "low"},
        {"n": 0},
        {"n": 11},
        {"n": "1"},
        {"n": True},
        {"response_format": "file"},
        {"style": "grim"},
        {"model": 3},
        {"prompt": ""},
        {"prompt": 7},
        {"prompt": "x" * 4001},
        {"user": "u1"},
        {"size": "1024x1024", "metadata": {}},
        {"model": "gpt-image-2", "size": "1792x1024"},
        {"model": "dall-e-2", "quality": "hd"},
    ],
)
def test_a_field_outside_the_documented_ones_is_refused(
    sandbox: RunningSandbox, customer: Customer, fields: dict[str, Any]
) -> None:
    reply = customer.client.post(SEED_ROUTE, json={"prompt": "a cat", "size": "1024x1024", **fields})
    assert reply.status_code == 400
    assert reply.json()["status"] == "FAILED"
    assert reply.json()["data"] is None
    assert sandbox.witness()["billed"] == 0


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"response_format": "url"}, 400, "unknown_parameter"),
        ({"style": "vivid"}, 400, "unknown_parameter"),
        ({"seed": 7}, 400, "unknown_parameter"),
        ({"size": "1792x1024"}, 400, "invalid_value"),
        ({"quality": "hd"}, 400, "invalid_value"),
        ({"quality": "max"}, 400, "invalid_value"),
        ({"n": 0}, 400, "invalid_value"),
        ({"prompt": ""}, 400, "invalid_value"),
        ({"prompt": "x" * 32_001}, 400, "string_too_long"),
        ({"model": "gpt-image-1"}, 404, "model_not_found"),
        ({"model": "dream-9"}, 404, "model_not_found"),
        ({"prompt": "[[refuse]]"}, 400, "moderation_blocked"),
        ({"prompt": "[[refuse]]", "model": "dall-e-3"}, 400, "content_policy_violation"),
        ({"prompt": "[[model-gone]]"}, 404, "model_not_found"),
        ({"prompt": "[[status 401]]"}, 401, "invalid_api_key"),
        ({"prompt": "[[status 402]]"}, 402, "billing_hard_limit_reached"),
        ({"prompt": "[[status 429]]"}, 429, "rate_limit_exceeded"),
        ({"prompt": "[[status 500]]"}, 500, None),
    ],
)
def test_the_newer_route_refuses_in_openais_error_object(
    sandbox: RunningSandbox, customer: Customer, fields: dict[str, Any], status: int, code: str | None
) -> None:
    reply = customer.client.post(BARE_ROUTE, json={"prompt": "a cat", "model": "gpt-image-2", **fields})
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    assert sandbox.witness()["billed"] == (1 if status >= 500 else 0)


def test_the_seed_route_demands_a_size(customer: Customer) -> None:
    assert customer.client.post(SEED_ROUTE, json={"prompt": "a cat"}).status_code == 400


def test_an_unknown_model_is_not_found(customer: Customer) -> None:
    reply = customer.order("a cat", model="dream-9")
    assert reply.status_code == 404
    assert "dream-9" in reply.json()["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"n":' + b"9" * 5_000 + b"}",
        b'{"prompt":NaN}',
        b'{"prompt":"' + b"x" * 1_100_000 + b'"}',
        b'{"\\ud800":1}',
        b'{"prompt":"a","size":"1024x1024","model":"\\ud800"}',
    ],
)
def test_a_body_that_is_no_order_is_refused_and_harms_nothing(customer: Customer, raw: bytes) -> None:
    reply = customer.client.post(SEED_ROUTE, content=raw)
    assert reply.status_code in (400, 404)
    assert reply.json()["status"] == "FAILED"
    assert customer.order("still there").status_code == 200


def test_half_a_surrogate_pair_in_the_prompt_is_drawn(sandbox: RunningSandbox, customer: Customer) -> None:
    reply = customer.client.post(SEED_ROUTE, content=b'{"prompt":"a \\ud83d cat","size":"1024x1024"}')
    assert customer.client.get(reply.json()["data"]["data"][0]["url"]).status_code == 200
    assert sandbox.witness()["orders"][0]["prompt"] == "a \ufffd cat"


@pytest.mark.parametrize("route", [SEED_ROUTE, BARE_ROUTE])
@pytest.mark.parametrize(
    "headers", [{}, {"TT-API-KEY": ""}, {"TT-API-KEY": "wrong"}, {"Authorization": "Bearer wrong"}]
)
def test_a_wrong_key_is_refused_without_data(route: str, headers: dict[str, str]) -> None:
    with running_sandbox(api_keys=frozenset({API_KEY})) as sandbox:
        reply = httpx.post(sandbox.url + route, json={"prompt": "a cat", "size": "1024x1024"}, headers=headers)
        assert reply.status_code == 401
        if route == SEED_ROUTE:
            assert reply.json() == WRONG_KEY
        else:
            assert reply.json()["error"]["code"] == "invalid_api_key"
        assert sandbox.witness()["billed"] == 0


def test_only_the_newer_route_takes_a_bearer_key() -> None:
    with running_sandbox(api_keys=frozenset({API_KEY})) as sandbox:
        order = {"prompt": "a cat", "size": "1024x1024"}
        headers = {"Authorization": f"Bearer {API_KEY}"}
        statuses = [
            httpx.post(sandbox.url + route, json=order, headers=headers).status_code
            for route in (SEED_ROUTE, BARE_ROUTE)
        ]
        assert statuses == [401, 200]


def test_any_key_but_an_empty_one_will_do_when_none_is_named(sandbox: RunningSandbox) -> None:
    order = {"prompt": "a cat", "size": "1024x1024"}
    statuses = [
        httpx.post(sandbox.url + SEED_ROUTE, json=order, headers={"TT-API-KEY": key}).status_code
        for key in ("anything", "")
    ]
    assert statuses == [200, 401]


def test_the_balance_needs_the_key(sandbox: RunningSandbox, customer: Customer) -> None:
    account = customer.client.get("/midjourney/v1/info").json()
    assert account["status"] == "SUCCESS"
    assert set(account["data"]) == {"email", "balance", "freeze_balance", "max_queue"}
    assert httpx.get(sandbox.url + "/midjourney/v1/info").json() == WRONG_KEY


@pytest.mark.parametrize(("method", "path", "status"), [("GET", SEED_ROUTE, 405), ("POST", "/nowhere", 404)])
def test_a_wrong_path_or_method_answers_the_envelope(customer: Customer, method: str, path: str, status: int) -> None:
    reply = customer.client.request(method, path)
    assert reply.status_code == status
    assert reply.json()["status"] == "FAILED"
