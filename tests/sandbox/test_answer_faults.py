"""Does the answer to an order fail as its prompt orders?"""

import time
from datetime import datetime

import httpx
import pytest

from app.sandbox.faults import read_faults
from tests.sandbox.conftest import BARE_ROUTE, Customer
from tests.sandbox_server import API_KEY, RunningSandbox, running_sandbox


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("refuse", 400, "content policy"),
        ("refuse-in-200", 200, "content policy"),
        ("failed-in-200", 200, "Generation failed"),
        ("model-gone", 404, "has been deprecated"),
        ("model-gone 400", 400, "has been deprecated"),
    ],
)
def test_a_refusal_is_failed_and_not_billed(
    sandbox: RunningSandbox, customer: Customer, fault: str, status: int, words: str
) -> None:
    reply = customer.order(f"a cat [[{fault}]]")
    assert reply.status_code == status
    assert set(reply.json()) == {"status", "message", "data"}
    assert (reply.json()["status"], reply.json()["data"]) == ("FAILED", None)
    assert words in reply.json()["message"]
    assert sandbox.witness()["billed"] == 0


def test_only_the_refusals_for_content_speak_of_content(customer: Customer) -> None:
    suspicious = ("content", "policy", "safety", "moderation", "banned", "sensitive")
    for fault in ("failed-in-200", "model-gone", "status 400", "status 403", "status 500"):
        message = customer.order(f"a cat [[{fault}]]").json()["message"].lower()
        assert not [word for word in suspicious if word in message]


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 422, 429, 499, 500, 502, 503, 504, 599])
def test_a_status_comes_in_the_failed_envelope_and_is_billed_from_500_on(
    sandbox: RunningSandbox, customer: Customer, code: int
) -> None:
    reply = customer.order(f"a cat [[status {code}]]")
    assert reply.status_code == code
    assert reply.json()["status"] == "FAILED"
    assert ("data" in reply.json()) == (code != 401)
    assert sandbox.witness()["billed"] == (1 if code >= 500 else 0)


@pytest.mark.parametrize("code", [403, 502, 504, 520, 524])
def test_an_html_page_comes_with_its_status(customer: Customer, code: int) -> None:
    reply = customer.order(f"a cat [[html {code}]]")
    assert reply.status_code == code
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.text.startswith("<!DOCTYPE html>")


def test_a_redirect_leads_back_so_that_following_it_is_seen(sandbox: RunningSandbox, customer: Customer) -> None:
    reply = customer.order("a cat [[redirect]]")
    assert reply.status_code == 307
    assert reply.headers["location"] == str(reply.request.url)
    assert sandbox.witness()["billed"] == 0


def test_a_redirect_leads_where_it_is_told(customer: Customer) -> None:
    reply = customer.order("a cat [[redirect http://[::1]:9/elsewhere]]")
    assert reply.headers["location"] == "http://[::1]:9/elsewhere"


def test_drop_closes_without_a_byte_and_is_billed(sandbox: RunningSandbox, customer: Customer) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        customer.order("a cat [[drop]]")
    assert sandbox.witness()["billed"] == 1


def test_reset_breaks_the_connection_off_and_is_billed(sandbox: RunningSandbox, customer: Customer) -> None:
    with pytest.raises(httpx.ReadError, match="reset"):
        customer.order("a cat [[reset]]")
    assert sandbox.witness()["billed"] == 1


def test_cut_ends_in_the_middle_of_the_body_and_is_billed(sandbox: RunningSandbox, customer: Customer) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
        customer.order("a cat [[cut]]")
    assert sandbox.witness()["billed"] == 1


def test_hang_never_answers_and_is_billed(sandbox: RunningSandbox, customer: Customer) -> None:
    for hang in ("hang", "hang 0"):
        with pytest.raises(httpx.ReadTimeout):
            customer.client.post(BARE_ROUTE, json={"prompt": f"a cat [[{hang}]]"}, timeout=httpx.Timeout(5, read=0.2))
    assert sandbox.witness()["billed"] == 2


@pytest.mark.parametrize("fault", ["delay 0.3", "hang 0.3", "delay 0.1]] [[hang 0.2"])
def test_a_late_answer_is_late_and_well(customer: Customer, fault: str) -> None:
    began = time.monotonic()
    reply = customer.order(f"a cat [[{fault}]]")
    assert reply.status_code == 200
    assert time.monotonic() - began >= 0.3


def test_a_fault_can_be_late_too(customer: Customer) -> None:
    began = time.monotonic()
    assert customer.order("a cat [[status 504]] [[delay 0.2]]").status_code == 504
    assert time.monotonic() - began >= 0.2


def test_a_client_that_leaves_a_late_answer_has_bought_it(sandbox: RunningSandbox, customer: Customer) -> None:
    with pytest.raises(httpx.ReadTimeout):
        customer.client.post(BARE_ROUTE, json={"prompt": "a cat [[delay 30]]"}, timeout=httpx.Timeout(5, read=0.1))
    assert sandbox.witness()["billed"] == 1


def test_a_late_answers_picture_lives_its_whole_time(customer: Customer) -> None:
    began = time.time()
    url = httpx.URL(customer.picture_url("a cat [[delay 1.2]] [[expires 100]]"))
    assert datetime.fromisoformat(url.params["se"]).timestamp() >= began + 1.2 + 100


def test_every_answer_waits_for_the_sandboxs_own_delay() -> None:
    with running_sandbox(delay_seconds=0.2) as sandbox:
        began = time.monotonic()
        httpx.post(sandbox.url + BARE_ROUTE, json={"prompt": "a cat"}, headers={"TT-API-KEY": API_KEY})
        assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("fault", ["broken-json", "garbage", "empty"])
def test_a_success_that_cannot_be_read_is_billed(sandbox: RunningSandbox, customer: Customer, fault: str) -> None:
    reply = customer.order(f"a cat [[{fault}]]")
    assert reply.status_code == 200
    with pytest.raises(ValueError):  # noqa: PT011 - both of json's own errors are meant
        reply.json()
    assert (reply.content == b"") == (fault == "empty")
    assert sandbox.witness()["billed"] == 1


def test_no_url_is_a_success_without_a_picture(sandbox: RunningSandbox, customer: Customer) -> None:
    body = customer.order("a cat [[no-url]]").json()
    assert body["status"] == "SUCCESS"
    assert [set(item) for item in body["data"]["data"]] == [{"revised_prompt"}]
    assert sandbox.witness()["billed"] == 1


def test_no_url_is_no_picture_in_base64_either(sandbox: RunningSandbox, customer: Customer) -> None:
    body = customer.order("a cat [[no-url]] [[b64]]").json()
    assert [set(item) for item in body["data"]["data"]] == [{"revised_prompt"}]
    assert sandbox.witness()["billed"] == 1


def test_b64_is_ordered_on_any_route(customer: Customer) -> None:
    (item,) = customer.order("a cat [[b64]]").json()["data"]["data"]
    assert set(item) == {"revised_prompt", "b64_json"}


def test_bad_b64_is_not_base64(sandbox: RunningSandbox, customer: Customer) -> None:
    (item,) = customer.order("a cat [[bad-b64]]", route=BARE_ROUTE).json()["data"]
    assert set(item) == {"revised_prompt", "b64_json"}
    assert "*" in item["b64_json"]
    assert sandbox.witness()["billed"] == 1


def test_a_huge_answer_is_valid_json_of_more_than_two_mebibytes(customer: Customer) -> None:
    reply = customer.order("a cat [[huge-answer]]")
    assert len(reply.content) > 2 * 1024 * 1024
    assert reply.json()["status"] == "SUCCESS"


def test_a_gzip_bomb_is_small_on_the_wire_and_huge_unpacked(customer: Customer) -> None:
    with customer.client.stream(
        "POST", BARE_ROUTE, json={"prompt": "a cat [[gzip-bomb]]"}, headers={"accept-encoding": "gzip"}
    ) as reply:
        unpacked = sum(len(block) for block in reply.iter_bytes())
        assert unpacked > 64 * 1024 * 1024
        assert reply.num_bytes_downloaded < 128 * 1024


def test_drip_sends_byte_by_byte(customer: Customer) -> None:
    began = time.monotonic()
    reply = customer.order("a cat [[drip 0.001]]")
    assert reply.json()["status"] == "SUCCESS"
    assert time.monotonic() - began >= 0.001 * len(reply.content)


def test_unbilled_makes_any_fault_free(sandbox: RunningSandbox, customer: Customer) -> None:
    customer.order("a cat [[status 500]] [[UNBILLED]]")
    assert sandbox.witness()["billed"] == 0


def test_orders_are_read_in_any_case_and_left_off_the_prompt() -> None:
    faults = read_faults("a [[Delay 2]] cat [[ PICTURE  Flaky 3 ]][[ID Order-7]]")
    assert faults.prompt == "a cat"
    assert faults.delay_seconds == 2
    assert faults.picture is not None
    assert faults.picture.of_picture == "flaky 3"
    assert faults.tag == "Order-7"


@pytest.mark.parametrize(
    "prompt",
    [
        "a [[nice]] cat",
        "a [[]] cat",
        "a [[ ]] cat",
        "[[picture]]",
        "[[status 700]]",
        "[[delay soon]]",
        "[[drop it]]",
        "]][",
    ],
)
def test_brackets_that_order_nothing_are_a_part_of_the_prompt(prompt: str) -> None:
    faults = read_faults(prompt)
    assert faults.prompt == prompt
    assert (faults.answer, faults.picture, faults.delay_seconds) == (None, None, 0)
    assert faults.billed


def test_an_order_is_found_behind_brackets_that_order_nothing() -> None:
    for brackets in ("[[ ]]", "[[nice]]", "[[", "[[[["):
        answer = read_faults(f"a {brackets} cat [[drop]]").answer
        assert answer is not None
        assert answer.name == "drop"


@pytest.mark.parametrize("piece", ["[", "[[", "[[ ", " ", "[[ x ]", "]]]", "[[id "])
def test_no_prompt_takes_long_to_read(piece: str) -> None:
    began = time.process_time()
    read_faults("[[" + piece * (32_000 // len(piece)))
    assert time.process_time() - began < 1


def test_the_first_of_two_faults_counts() -> None:
    answer = read_faults("[[status 404]] [[drop]]").answer
    assert answer is not None
    assert (answer.name, answer.argument) == ("status", "404")
