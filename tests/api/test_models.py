"""Can today's models be ordered, old names too, and one that an operator writes into a file?"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.upstream.catalog import load_catalog
from tests.api.books import figures, limit, used
from tests.api.surfaces import OPENAI, TTAPI, Surface
from tests.docs.pages import blocks
from tests.sandbox_server import RunningSandbox
from tests.service import Service, running_service

SHIPPED = Path(__file__).parents[2] / "app" / "upstream" / "catalog.toml"
ROUTE = "/v1/images/generations"
# An example of docs/models.md: one more model for a copy of the shipped file, and a whole file.
ONE_MORE, WHOLE = [block.text for block in blocks("docs/models.md") if block.language == "toml"]


@pytest.fixture
def mapped(database_url: str, sandbox: RunningSandbox, tmp_path: Path) -> Iterator[Service]:
    """A service whose catalog has a living model in the place of dall-e-3."""
    file = tmp_path / "models.toml"
    file.write_text(WHOLE)
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=tmp_path / "data", model_catalog=file
    ) as running:
        yield running


def prompt_micros(prompt: str) -> int:
    """What a prompt holds with the shipped gpt-image-2: 5 USD a million tokens, one for each byte and sixteen more."""
    return 5 * (len(prompt.encode()) + 16)


def used_micros(prompt: str, tokens: int) -> int:
    """What the sandbox's own count comes to: a quarter of the prompt's bytes, and the pictures at 30 USD a million."""
    return 5 * (7 + len(prompt.encode()) // 4) + 30 * tokens


@pytest.mark.parametrize(
    ("size", "quality", "micros", "tokens"),
    [
        ("1024x1024", "low", 5_880, 196),
        ("1536x1024", "low", 4_740, 158),
        ("1024x1536", "medium", 41_160, 1_372),
        ("1024x1024", "high", 210_720, 7_024),
        # The sandbox chooses a square of medium quality.
        ("auto", "low", 5_880, 196),
        ("1536x1024", "auto", 164_640, 1_372),
        ("auto", "auto", 210_720, 1_756),
    ],
)
def test_a_gpt_image_order_is_held_at_its_price_and_charged_what_was_used(
    service: Service, sandbox: RunningSandbox, size: str, quality: str, micros: int, tokens: int
) -> None:
    limit(service)
    prompt = "a red fox"

    answer = service.order(prompt, model="gpt-image-2", size=size, quality=quality)

    told = answer.json()
    assert (answer.status_code, told["state"]) == (200, "completed")
    assert (told["model"], told["size"], told["quality"]) == ("gpt-image-2", size, quality)
    assert "asked" not in told
    held, charged = micros + prompt_micros(prompt), used_micros(prompt, tokens)
    assert told["price"]["micros"] == charged < held
    assert figures(service.generation()) == (1, held, 1, charged)
    assert used(service)["micros_month"] == charged
    (order,) = sandbox.witness()["orders"]
    assert (order["path"], order["model"], order["size"], order["quality"]) == (ROUTE, "gpt-image-2", size, quality)


def test_each_of_several_pictures_is_made_kept_and_charged(service: Service) -> None:
    limit(service)

    answer = service.order("a fox", model="gpt-image-2.5-flare", quality="xhigh", n=3).json()

    assert len({image["url"] for image in answer["images"]}) == 3
    assert [service.client.get(image["url"]).status_code for image in answer["images"]] == [200] * 3
    charged = used_micros("a fox", 3 * 3_122)
    assert figures(service.generation()) == (3, 3 * (93_660 + prompt_micros("a fox")), 3, charged)
    assert (used(service)["images_day"], used(service)["micros_month"]) == (3, charged)


@pytest.mark.parametrize("counted", ["none", "0", "-7", "9" * 40])
def test_a_count_that_cannot_be_charges_what_was_held(service: Service, counted: str) -> None:
    prompt = f"a fox [[usage {counted}]]"

    answer = service.order(prompt, model="gpt-image-2", quality="auto")

    held = 210_720 + prompt_micros(prompt)
    assert answer.json()["price"]["micros"] == held
    assert figures(service.generation()) == (1, held, 1, held)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("refuse", 400, "content_rejected"),
        ("refuse-in-200", 400, "content_rejected"),
        ("model-gone", 502, "upstream_model_gone"),
        ("model-gone 400", 502, "upstream_model_gone"),
        ("status 400", 400, "invalid_value"),
        ("status 401", 502, "upstream_auth_failed"),
        ("status 402", 503, "upstream_balance_exhausted"),
        ("status 403", 502, "upstream_auth_failed"),
        ("status 404", 502, "upstream_model_gone"),
        ("status 429", 503, "upstream_busy"),
        ("status 499", 503, "upstream_busy"),
        ("status 500", 504, "upstream_outcome_unknown"),
        ("drop", 504, "upstream_outcome_unknown"),
        ("bad-b64", 504, "upstream_outcome_unknown"),
    ],
)
def test_what_the_newer_route_refuses_in_openais_words_is_told_as_ever(
    service: Service, fault: str, status: int, code: str
) -> None:
    answer = service.order(f"a fox [[{fault}]]", model="gpt-image-2")

    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("fields", "parameter", "words"),
    [
        ({"size": "512x512"}, "size", "1024x1024, 1536x1024, 1024x1536, auto"),
        ({"size": "1792x1024"}, "size", "1024x1024, 1536x1024, 1024x1536, auto"),
        ({"quality": "hd"}, "quality", "low, medium, high, auto"),
        ({"n": 11}, "n", "10 or less"),
        ({"prompt": "x" * 32_001}, "prompt", "32000 at most"),
    ],
)
def test_what_a_gpt_image_model_does_not_take_is_answered_with_what_there_is(
    service: Service, sandbox: RunningSandbox, fields: dict[str, object], parameter: str, words: str
) -> None:
    answer = service.client.post("/images", json={"prompt": "a fox", "model": "gpt-image-2", **fields})

    assert (answer.status_code, answer.json()["parameter"]) == (400, parameter)
    assert words in answer.json()["detail"]
    assert sandbox.witness()["asked"] == 0


def test_a_prompt_as_long_as_a_gpt_image_model_takes_is_sent_whole(service: Service, sandbox: RunningSandbox) -> None:
    answer = service.order("x" * 32_000, model="gpt-image-2", quality="low")

    assert (answer.status_code, len(answer.json()["prompt"])) == (200, 32_000)
    # The picture alone costs an eighth of what this prompt counts.
    assert answer.json()["price"]["micros"] == used_micros("x" * 32_000, 196) == 45_915


def test_the_longest_prompt_is_taken_however_its_characters_are_written(service: Service, surface: Surface) -> None:
    prompt = "🦊" * 32_000
    order = {"prompt": prompt, "model": "gpt-image-2", "quality": "low"}

    answers = [
        surface.post(service, content=json.dumps(order, ensure_ascii=ensure_ascii, indent=2).encode())
        for ensure_ascii in (True, False)
    ]

    assert [len(surface.images(answer)) for answer in answers] == [1, 1]
    assert {row["prompt"] for row in service.rows("SELECT prompt FROM generations")} == {prompt}


def test_what_was_asked_in_other_words_is_said_for_as_long_as_the_generation_is_there(service: Service) -> None:
    ordered = service.order("a fox", size="auto").json()

    asked = {"model": None, "size": "auto", "quality": None}
    assert (ordered["size"], ordered["asked"]) == ("1024x1024", asked)
    assert service.client.get(f"/images/{ordered['id']}").json()["asked"] == asked
    assert service.client.get("/images").json()["generations"][0]["asked"] == asked


def test_the_models_say_what_they_take_what_it_costs_and_when_they_go(service: Service) -> None:
    models = {model["name"]: model for model in service.client.get("/models").json()["models"]}

    assert list(models) == [model.name for model in load_catalog(None).models]
    newer, older = models["gpt-image-2"], models["dall-e-3"]
    prices = {(price["size"], price["quality"]): price["micros"] for price in newer["prices"]}
    assert (len(prices), prices["auto", "auto"], prices["auto", "low"]) == (16, 210_720, 5_880)
    assert newer["token_prices"] == {"input": 5_000_000, "output": 30_000_000}
    assert (newer["retires_on"], newer["retired"], older["retires_on"], older["retired"]) == (
        None,
        False,
        "2026-05-12",
        True,
    )
    assert older["token_prices"] is None
    assert older["also_takes"] == {"sizes": {"auto": "1024x1024"}, "qualities": {"auto": "standard"}}
    assert (newer["stands_in_for"], newer["price_date"]) == ([], "2026-11-22")


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_who_asked_in_the_models_own_words_is_told_nothing_of_others(service: Service, told_by: Surface) -> None:
    answer = told_by.order(service, "a fox", model="dall-e-3", size="1792x1024", quality="hd")

    assert len(told_by.images(answer)) == 1
    assert "imagekeep-made" not in answer.headers


# With a file of the operator's


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_a_living_model_that_is_made_for_an_old_name_is_said_to_old_clients_too(
    mapped: Service, sandbox: RunningSandbox, told_by: Surface, response_format: str
) -> None:
    wide: dict[str, Any] = {"model": "dall-e-3", "size": "1792x1024", "quality": "hd"}

    first = told_by.order(mapped, "a fox", response_format=response_format, **wide)
    again = told_by.order(
        mapped, "a fox", response_format=response_format, headers={"x-stainless-retry-count": "1"}, **wide
    )

    for answer in (first, again):
        (image,) = told_by.images(answer)
        assert response_format in image
        assert answer.headers["imagekeep-made"] == 'model="gpt-image-2", size="1536x1024", quality="high"'
    assert sandbox.witness()["asked"] == 1


@pytest.mark.parametrize("told_by", [OPENAI, TTAPI], ids=lambda surface: surface.name)
def test_callers_that_name_no_model_go_on_as_with_the_old_one(mapped: Service, told_by: Surface) -> None:
    answer = told_by.order(mapped, "a fox", size="1792x1024")

    (image,) = told_by.images(answer)
    assert "url" in image
    assert "b64_json" not in image
    row = mapped.generation()
    assert (row["model"], row["size"], row["quality"]) == ("gpt-image-2", "1536x1024", "medium")
    assert answer.headers["imagekeep-made"] == 'model="gpt-image-2", size="1536x1024", quality="medium"'
    assert int(answer.headers["imagekeep-price-micros"]) == row["settled_micros"] < row["held_micros"]
    assert mapped.client.get("/models").json()["default"] == "dall-e-3"


def test_a_picture_that_is_the_whole_answer_says_beside_it_what_was_made(mapped: Service) -> None:
    answer = mapped.order("a fox", model="dall-e-3", size="1024x1792", headers={"accept": "image/png"})

    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["imagekeep-made"] == 'model="gpt-image-2", size="1024x1536", quality="medium"'
    assert int(answer.headers["imagekeep-price-micros"]) == mapped.generation()["settled_micros"]


def test_a_model_that_was_added_in_a_file_is_ordered_made_and_charged(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(SHIPPED.read_text() + ONE_MORE)
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=tmp_path / "data", model_catalog=file
    ) as service:
        answer = service.order("a fox", model="newest", size="512x512", quality="hd")

        told = answer.json()
        assert (answer.status_code, told["state"]) == (200, "completed")
        assert (told["model"], told["size"], told["quality"]) == ("gpt-image-2.6", "1024x1024", "high")
        assert told["asked"] == {"model": "newest", "size": "512x512", "quality": "hd"}
        assert service.client.get(told["images"][0]["url"]).headers["content-type"] == "image/png"
        # The sandbox counts as many tokens as it does for gpt-image-2; a prompt of five letters counts eight.
        charged = -(-(8 * 1_250_000 + 7_024 * 7_500_000) // 1_000_000)
        assert told["price"]["micros"] == charged
        assert service.generation()["held_micros"] == 53_000 + -(-21 * 1_250_000 // 1_000_000)
        (order,) = sandbox.witness()["orders"]
        assert (order["model"], order["size"], order["quality"]) == ("gpt-image-2.6", "1024x1024", "high")
        assert service.order("a fox").json()["model"] == "dall-e-3"


def test_a_living_model_is_made_for_dall_e_3_and_that_is_said(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(WHOLE)
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=tmp_path / "data", model_catalog=file
    ) as service:
        headers = {"idempotency-key": "order-1"}
        wide = {"model": "dall-e-3", "size": "1792x1024", "quality": "hd"}

        answer = service.order("a fox", headers=headers, **wide)
        again = service.order("a fox", headers=headers, **wide)
        other = service.order("a fox", headers=headers, model="gpt-image-2", size="1536x1024", quality="high")

        told = answer.json()
        assert (told["model"], told["size"], told["quality"]) == ("gpt-image-2", "1536x1024", "high")
        assert told["asked"] == wide
        assert (told["images"][0]["width"], told["images"][0]["height"]) == (1536, 1024)
        row = service.generation()
        assert (row["model"], row["size"], row["quality"], row["asked"]) == ("gpt-image-2", "1536x1024", "high", wide)
        assert again.json() == told
        assert other.json()["code"] == "idempotency_key_reused", "an order is what was asked, not what is made of it"
        assert [order["path"] for order in sandbox.witness()["orders"]] == [ROUTE]
        names = [model["name"] for model in service.client.get("/models").json()["models"][0]["stands_in_for"]]
        assert names == ["dall-e-3", "dall-e-2", "gpt-image-2.5-flare"]
        listed = [model["id"] for model in service.client.get("/v1/models").json()["data"]]
        assert listed == ["gpt-image-2", *names]
