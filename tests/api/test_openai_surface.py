"""Does a client that was written for OpenAI's Images API get what it reads?"""

import json
import time
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.api.books import ONE_USED, count, limit, used
from tests.api.surfaces import OPENAI, TTAPI, Surface
from tests.api.test_malformed_input import NASTY_FIELDS, NO_OBJECT, NOT_JSON, WRONG_FIELDS
from tests.api.wire import ask, send_raw
from tests.sandbox_server import RunningSandbox
from tests.service import Service, add_user, running_service

# What is taken on this surface and refused on the native one, which has no such fields or guesses less.
_TAKEN_HERE = {"n = null"}

CATALOG = """
default_model = "gpt-image-2"

[[models]]
name = "gpt-image-2"
aliases = ["painter/v1"]
path = "/v1/images/generations"
sizes = ["auto", "1024x1024", "1536x1024"]
qualities = ["auto", "low", "high"]
default_size = "auto"
default_quality = "auto"
prompt_characters_max = 32000
images_max = 4
price_source = "a test"
price_date = 2026-11-22

[models.prices.auto]
"auto" = 30_000

[models.prices.low]
"1536x1024" = 20_000

[[models]]
name = "dall-e-3"
aliases = []
path = "/openai/v1/images/generations"
sizes = ["1024x1024", "1792x1024"]
qualities = ["standard", "hd"]
default_size = "1024x1024"
default_quality = "standard"
prompt_characters_max = 4000
images_max = 1
price_source = "a test"
price_date = 2026-11-20

[models.prices.standard]
"1024x1024" = 10_000
"""


@pytest.fixture
def newer(database_url: str, sandbox: RunningSandbox, data_dir: Path, tmp_path: Path) -> Iterator[Service]:
    """A service whose catalog has one of OpenAI's newer models, which it takes when none is named."""
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CATALOG)
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, model_catalog=catalog
    ) as running:
        yield running


def picture_of(encoded: str) -> Image.Image:
    """The picture in an answer, whole."""
    picture = Image.open(BytesIO(b64decode(encoded, validate=True)))
    picture.load()
    return picture


def test_a_prompt_alone_is_answered_with_a_permanent_url(service: Service, sandbox: RunningSandbox) -> None:
    limit(service)
    before = int(time.time())

    answer = OPENAI.order(service, "a red fox")

    content = answer.json()
    assert answer.status_code == 200
    assert content.keys() == {"created", "data"}
    assert before <= content["created"] <= time.time()
    assert content["data"] == [{"revised_prompt": "a red fox, drawn in the sandbox.", "url": content["data"][0]["url"]}]
    assert content["data"][0]["url"].startswith(f"{service.url}/i/")
    assert Image.open(BytesIO(ask("GET", content["data"][0]["url"]).content)).size == (1024, 1024)
    assert used(service) == ONE_USED
    assert sandbox.witness()["billed"] == 1


def test_an_answer_has_the_headers_that_clients_look_for(service: Service) -> None:
    answer = OPENAI.order(service, "a red fox", headers={"x-request-id": "my-id"})

    assert answer.headers["x-request-id"] == "my-id"
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    generation = service.client.get(answer.headers["location"]).json()
    assert generation["images"][0]["url"] == OPENAI.images(answer)[0]["url"]


def test_pictures_in_base64_are_the_very_bytes_and_have_no_url(service: Service) -> None:
    answer = OPENAI.order(service, "a red fox", response_format="b64_json", size="1792x1024", quality="hd")

    (item,) = OPENAI.images(answer)
    assert item.keys() == {"revised_prompt", "b64_json"}
    assert picture_of(item["b64_json"]).size == (1792, 1024)
    (image,) = service.client.get(answer.headers["location"]).json()["images"]
    assert b64decode(item["b64_json"]) == ask("GET", image["url"]).content
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("response_format", ["url", "b64_json", None])
@pytest.mark.parametrize("fault", ["", "[[b64]]"])
def test_the_form_is_the_callers_whatever_upstream_gave(
    service: Service, sandbox: RunningSandbox, fault: str, response_format: str | None
) -> None:
    answer = OPENAI.order(service, f"a red fox {fault}", response_format=response_format)

    (item,) = OPENAI.images(answer)
    assert ("b64_json" in item, "url" in item) == (response_format == "b64_json", response_format != "b64_json")
    assert "response_format" not in json.dumps(sandbox.witness()["orders"])


@pytest.mark.parametrize("asked", [{}, {"model": "gpt-image-2"}])
def test_a_newer_models_picture_comes_in_base64_unasked(newer: Service, asked: dict[str, Any]) -> None:
    answer = OPENAI.order(newer, "a red fox", **asked)

    content = answer.json()
    assert content.keys() == {"created", "data", "size", "output_format"}
    (item,) = content["data"]
    assert "url" not in item
    assert content["size"] == "x".join(map(str, picture_of(item["b64_json"]).size))
    assert content["output_format"] == "png"


def test_a_newer_models_picture_comes_as_a_url_when_it_is_asked_for(newer: Service) -> None:
    answer = OPENAI.order(newer, "a red fox", response_format="url", size="1536x1024", quality="low")

    content = answer.json()
    assert (content["size"], content["quality"]) == ("1536x1024", "low")
    assert ask("GET", content["data"][0]["url"]).status_code == 200


def test_another_name_for_a_newer_model_is_answered_as_any(newer: Service) -> None:
    (item,) = OPENAI.images(OPENAI.order(newer, "a red fox", model="painter/v1"))

    assert "url" in item


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_several_pictures_are_several_and_each_is_charged(newer: Service, response_format: str) -> None:
    limit(newer)

    answer = OPENAI.order(newer, "three foxes", n=3, response_format=response_format)

    items = OPENAI.images(answer)
    assert len(items) == 3
    assert all("revised_prompt" not in item for item in items), "one revised prompt is kept for the order"
    if response_format == "b64_json":
        assert len([picture_of(item["b64_json"]) for item in items]) == 3
    assert used(newer)["images_day"] == 3
    assert used(newer)["micros_month"] == 90_000


# Fields


@pytest.mark.parametrize(
    "field",
    [
        {"user": "user-1"},
        {"safety_identifier": "someone"},
        {"moderation": "low"},
        {"moderation": "auto"},
        {"style": "vivid"},
        {"background": "auto"},
        {"output_format": "png"},
        {"output_compression": 100},
        {"partial_images": 0},
        {"stream": False},
        {"n": None},
        {"style": None, "response_format": None, "user": None, "stream": None},
        {"size": "auto"},
        {"quality": "auto"},
    ],
    ids=str,
)
def test_a_field_that_changes_nothing_is_taken(
    service: Service, sandbox: RunningSandbox, field: dict[str, Any]
) -> None:
    answer = OPENAI.order(service, "a red fox", **field)

    assert len(OPENAI.images(answer)) == 1
    (ordered,) = sandbox.witness()["orders"]
    assert (ordered["size"], ordered["quality"], ordered["n"]) == ("1024x1024", "standard", 1)


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ({"style": "natural"}, "unsupported_parameter"),
        ({"background": "transparent"}, "unsupported_parameter"),
        ({"output_format": "webp"}, "unsupported_parameter"),
        ({"output_compression": 50}, "unsupported_parameter"),
        ({"partial_images": 2}, "unsupported_parameter"),
        ({"stream": True}, "unsupported_parameter"),
        ({"stream": "true"}, "unsupported_parameter"),
        ({"svg": {}}, "unsupported_parameter"),
        ({"nonsense": [1]}, "unsupported_parameter"),
        ({"response_format": "png"}, "invalid_value"),
        ({"response_format": True}, "invalid_value"),
        ({"size": "512x512"}, "invalid_value"),
        ({"size": "256x256"}, "invalid_value"),
        ({"quality": "ultra"}, "invalid_value"),
        ({"n": 2}, "unsupported_parameter"),
        ({"n": 0}, "invalid_value"),
        ({"n": "1"}, "invalid_value"),
        ({"n": 1.5}, "invalid_value"),
        ({"model": "dall-e-2"}, "model_not_found"),
    ],
    ids=str,
)
def test_a_field_that_can_not_be_honoured_is_named_and_costs_nothing(
    service: Service, sandbox: RunningSandbox, field: dict[str, Any], code: str
) -> None:
    answer = OPENAI.order(service, "a red fox", **field)

    message = OPENAI.assert_refused(answer, code)
    (name,) = field
    assert answer.json()["error"]["param"] == name
    assert f"`{name}`" in message or code == "model_not_found"
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


def test_a_size_that_a_model_lacks_is_refused_with_those_it_has(service: Service) -> None:
    message = OPENAI.assert_refused(OPENAI.order(service, "a red fox", size="512x512"), "invalid_value")

    assert message == "`size` must be one of 1024x1024, 1792x1024, 1024x1792, auto for dall-e-3."


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_whatever_is_sent_is_told_in_the_clients_own_form(
    service: Service, sandbox: RunningSandbox, told_by: Surface
) -> None:
    wrong = {name: body for name, (_, body) in WRONG_FIELDS.items() if name not in _TAKEN_HERE}
    nasty = {f"a field: {what}": json.dumps({"prompt": "a", name: 1}).encode() for what, name in NASTY_FIELDS.items()}

    answers = {
        name: send_raw(service, "POST", told_by.path, body=body)
        for name, body in {**NOT_JSON, **NO_OBJECT, **wrong, **nasty}.items()
    }

    assert {name: answer.status for name, answer in answers.items() if answer.status != 400} == {}
    keys = {"error"} if told_by is OPENAI else {"status", "message", "data"}
    assert [name for name, answer in answers.items() if answer.json().keys() != keys] == []
    assert [name for name, answer in answers.items() if b"canary" in answer.body.lower()] == []
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_json_is_taken_whatever_the_content_type_says(service: Service, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}

    answer = OPENAI.post(service, content=b'{"prompt": "a red fox"}', headers=headers)

    assert answer.status_code == 200


# Keys


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
@pytest.mark.parametrize("form", ["authorization", "tt-api-key", "both"])
def test_the_key_is_taken_from_either_header(service: Service, told_by: Surface, form: str) -> None:
    headers = {"authorization": f"Bearer {service.key}", "tt-api-key": service.key}
    chosen = headers if form == "both" else {form: headers[form]}

    answer = ask("POST", service.url + told_by.path, headers=chosen, content=b'{"prompt": "a red fox"}')

    assert len(told_by.images(answer)) == 1


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_two_different_keys_are_refused_instead_of_guessing_who_pays(
    service: Service, sandbox: RunningSandbox, told_by: Surface
) -> None:
    other = add_user(service.database_url, "other")
    headers = {"authorization": f"Bearer {service.key}", "tt-api-key": other}

    answer = ask("POST", service.url + told_by.path, headers=headers, content=b'{"prompt": "a red fox"}')

    assert "two different keys" in told_by.assert_refused(answer, "api_key_mistyped")
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


def test_another_scheme_of_authorization_is_no_key(service: Service) -> None:
    headers = {"authorization": "Basic dXNlcjpwYXNz", "tt-api-key": service.key}

    answer = ask("POST", service.url + OPENAI.path, headers=headers, content=b'{"prompt": "a red fox"}')

    assert answer.status_code == 200


# Limits


@pytest.mark.parametrize("maximum", [1, 3, 7])
def test_orders_a_minute_are_told_as_openai_does(service: Service, maximum: int) -> None:
    limit(service, requests_per_minute_max=maximum)

    allowed = [OPENAI.order(service, "a red fox") for _ in range(maximum)]
    refused = OPENAI.order(service, "a red fox")

    remaining = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in allowed]
    assert remaining == list(reversed(range(maximum)))
    for answer in [*allowed, refused]:
        assert answer.headers["x-ratelimit-limit-requests"] == str(maximum)
        assert 1 <= int(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"] == f"{refused.headers['retry-after']}s"
    assert allowed[0].headers["ratelimit"].startswith(f'"requests-per-minute";r={maximum - 1};t=')


def test_of_two_limits_a_minute_the_tighter_one_is_told(service: Service) -> None:
    limit(service, requests_per_minute_max=30)
    limit(service, "key", requests_per_minute_max=10)

    answer = OPENAI.order(service, "a red fox")

    assert answer.headers["x-ratelimit-limit-requests"] == "10"
    assert answer.headers["x-ratelimit-remaining-requests"] == "9"


def test_the_installations_limit_a_minute_is_nobodys_business(service: Service) -> None:
    limit(service, "all", requests_per_minute_max=10)

    answer = OPENAI.order(service, "a red fox")

    assert "x-ratelimit-limit-requests" not in answer.headers
    assert "ratelimit" not in answer.headers


# Models, and what is not offered


def test_the_models_are_listed_under_every_name_that_can_be_ordered(newer: Service) -> None:
    answer = newer.client.get("/v1/models")

    assert answer.json()["object"] == "list"
    models = {model["id"]: model for model in answer.json()["data"]}
    assert list(models) == ["gpt-image-2", "painter/v1", "dall-e-3"]
    assert models["dall-e-3"] == {
        "id": "dall-e-3",
        "object": "model",
        "created": 1_795_132_800,
        "owned_by": "imagekeep",
    }
    for name, model in models.items():
        assert newer.client.get(f"/v1/models/{name}").json() == model
    assert newer.client.get("/v1/models/painter%2Fv1").json() == models["painter/v1"]


@pytest.mark.parametrize("name", ["gpt-4o", "DALL-E-3", "", "a/b/c", "%00", "..%2f.."])
def test_a_model_that_is_not_there_is_not_found(service: Service, name: str) -> None:
    answer = service.client.get(f"/v1/models/{name}")

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (404, "invalid_request_error")
    assert error["code"] in ("model_not_found", "not_found")
    assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
def test_what_is_not_offered_is_said_to_be_not_offered(service: Service, sandbox: RunningSandbox, path: str) -> None:
    upload = service.client.build_request("POST", path, files={"image": b"x" * 300_000}, data={"prompt": "a hat"})

    answer = service.client.send(upload)

    assert "not edited" in OPENAI.assert_refused(answer, "not_found")
    assert sandbox.witness()["asked"] == 0


@pytest.mark.parametrize(
    "target", ["/v1/", "/v1/images", "/v1/images/generations/", "/v1/chat/completions", "/v1/%0a", "/v1//models"]
)
def test_a_path_that_leads_nowhere_is_told_in_openais_form(service: Service, target: str) -> None:
    answer = httpx.post(service.url + target, headers=service.client.headers, content=b"{}")

    OPENAI.assert_refused(answer, "not_found" if answer.status_code == 404 else "method_not_allowed")
