"""Is every answer of upstream read as pictures, a refusal that cost nothing, or unknown?"""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.upstream.outcome import BytesSource, Generated, Outcome, Refused, Unknown, UrlSource, Usage
from app.upstream.reply import read_reply, source_expires_at

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
URL = "https://pictures.example/private/a.png?se=2026-11-23T10%3A00%3A00Z&sig=a%2Bb%3D"
EXPIRES_AT = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
PICTURE = b"\x89PNG and so on\xff"
BASE64 = base64.b64encode(PICTURE).decode()


def read(status: int, reply: Any, content_type: str | None = "application/json") -> Outcome:
    body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    return read_reply(status, content_type, body, now=NOW)


def failed(message: str) -> dict[str, Any]:
    return {"status": "FAILED", "message": message, "data": None}


def openai_error(message: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


@pytest.mark.parametrize(
    "reply",
    [
        {"status": "SUCCESS", "message": "success", "data": {"created": 1, "data": [{"url": URL}]}},
        {"created": 1, "data": [{"url": URL}], "usage": {"total_tokens": 3}},
        {"status": "SUCCESS", "data": [{"url": URL}]},
        {"status": "SUCCESS", "data": {"url": URL}},
        {"data": {"data": [{"url": URL, "b64_json": None}]}},
        {"data": [{"url": URL, "b64_json": ""}]},
        {"data": [{"url": URL, "b64_json": "!!!"}]},
        {"data": [None, 7, {}, {"url": None}, {"url": URL}]},
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/html", None])
def test_a_url_is_found_in_every_shape(reply: Any, content_type: str | None) -> None:
    assert read(200, reply, content_type) == Generated((UrlSource(URL, EXPIRES_AT, None),), 200)


@pytest.mark.parametrize(
    "picture",
    [
        {"b64_json": BASE64},
        {"b64_json": BASE64, "url": URL},
        {"b64_json": BASE64, "url": ""},
        {"b64_json": BASE64.rstrip("=")},
        {"b64_json": BASE64.rstrip("=") + "===="},
        {"b64_json": "\n".join(BASE64[at : at + 5] for at in range(0, len(BASE64), 5))},
        {"b64_json": f"data:image/png;base64,{BASE64}"},
        {"url": f"data:image/png;base64,{BASE64}"},
    ],
)
@pytest.mark.parametrize("envelope", [True, False])
def test_base64_is_found_in_every_shape(picture: dict[str, str], envelope: bool) -> None:
    bare = {"created": 1, "data": [picture]}
    reply = {"status": "SUCCESS", "message": "success", "data": bare} if envelope else bare
    assert read(200, reply) == Generated((BytesSource(PICTURE, None),), 200)


def test_pictures_keep_their_order_and_an_unreadable_one_is_left_out() -> None:
    reply = {"data": [{"url": URL}, {"b64_json": "!"}, {"b64_json": BASE64}]}
    outcome = read(200, reply)
    assert outcome == Generated((UrlSource(URL, EXPIRES_AT, None), BytesSource(PICTURE, None)), 200)


def test_a_byte_order_mark_does_not_lose_a_picture() -> None:
    assert isinstance(read(200, b"\xef\xbb\xbf" + json.dumps({"data": [{"url": URL}]}).encode()), Generated)


def test_a_picture_counts_under_any_2xx_and_even_beside_failed() -> None:
    assert isinstance(read(201, {"data": [{"url": URL}]}), Generated)
    assert isinstance(read(200, {"status": "FAILED", "data": {"data": [{"url": URL}]}}), Generated)


@pytest.mark.parametrize(
    ("revised", "kept"),
    [
        ("a bird", "a bird"),
        ("", ""),
        ("nul \x00 and half a \ud83d pair", "nul  and half a ? pair"),
        (None, None),
        (7, None),
        ("x" * 40_000, "x" * 32_000),
    ],
)
def test_a_revised_prompt_is_kept_as_far_as_it_can_be_stored(revised: Any, kept: str | None) -> None:
    outcome = read(200, {"data": [{"url": URL, "revised_prompt": revised}]})
    assert outcome == Generated((UrlSource(URL, EXPIRES_AT, kept),), 200)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"<html>502</html>",
        b'{"data": [{"url": "https://pictu',
        b"null",
        b"[]",
        b'"SUCCESS"',
        b"1" * 10_000,
        b"[" * 100_000,
        b'{"data":' * 100_000,
        b'\xff\xfe{"data"',
        {},
        {"status": "SUCCESS", "message": "success"},
        {"status": "SUCCESS", "data": None},
        {"status": "SUCCESS", "data": {"created": 1, "data": []}},
        {"status": "ON_QUEUE", "data": {"job_id": "1"}},
        {"status": ["FAILED"]},
        {"data": {"data": {"data": [{"url": URL}]}}},
        {"data": [{"b64_json": "not base64 !"}]},
        {"data": [{"b64_json": "AAAAA"}]},
        {"data": [{"b64_json": ""}]},
        {"data": [{"b64_json": 7, "url": 7}]},
        {"data": [{"url": ""}]},
        {"data": [{"url": "/relative.png"}]},
        {"data": [{"url": "file:///etc/passwd"}]},
        {"data": [{"url": "https://pictures.example/\x00.png"}]},
        {"data": [{"url": "https://pictures.example/\ud800.png"}]},
        {"data": [{"url": "https://pictures.example/" + "a" * 9_000}]},
        openai_error("rejected by our safety system", "content_policy_violation"),
    ],
)
def test_a_200_without_a_picture_is_unknown(reply: Any) -> None:
    outcome = read(200, reply)
    assert isinstance(outcome, Unknown)
    assert outcome.upstream_status == 200


@pytest.mark.parametrize(
    "status", [100, 101, 199, 300, 301, 302, 304, 307, 308, 408, 500, 502, 503, 504, 520, 524, 599]
)
@pytest.mark.parametrize(
    "reply",
    [failed("rejected by our safety system"), failed("Insufficient balance"), {"data": [{"url": URL}]}, b"<html>", b""],
)
def test_such_a_status_is_unknown_whatever_the_body(status: int, reply: Any) -> None:
    outcome = read(status, reply)
    assert isinstance(outcome, Unknown)
    assert outcome.upstream_status == status


def test_failed_counts_as_unbilled_under_200_only_among_2xx() -> None:
    assert isinstance(read(200, failed("no")), Refused)
    assert isinstance(read(202, failed("no")), Unknown)


REJECTED = "Your request was rejected as a result of our safety system."


@pytest.mark.parametrize(
    ("status", "reply", "code"),
    [
        (200, failed(REJECTED), "content_rejected"),
        (200, failed("This violates our Content Policy"), "content_rejected"),
        (200, failed("Banned words in your prompt"), "content_rejected"),
        (200, failed("SENSITIVE text"), "content_rejected"),
        (200, failed("Wrong TT-API-KEY or email is not activated."), "upstream_auth_failed"),
        (200, {"status": "FAILED", "message": "Wrong TT-API-KEY"}, "upstream_auth_failed"),
        (200, failed("Your account has been banned"), "upstream_auth_failed"),
        (200, failed("Insufficient balance"), "upstream_balance_exhausted"),
        (200, failed("insufficient quota"), "upstream_balance_exhausted"),
        (200, failed("The model `dall-e-3` has been deprecated"), "upstream_model_gone"),
        (200, failed("The model dall-e-3 does not exist"), "upstream_model_gone"),
        (200, failed("Too many requests"), "upstream_busy"),
        (200, failed("server error"), "upstream_failed"),
        (200, {"status": "failed"}, "upstream_failed"),
        (200, {"status": "FAILED", "message": None}, "upstream_failed"),
        (200, {"status": "FAILED", "message": [[]], "data": []}, "upstream_failed"),
        (400, failed("size is wrong"), "invalid_value"),
        (400, failed("size is case sensitive"), "invalid_value"),
        (400, failed("the address does not exist"), "invalid_value"),
        (400, b"", "invalid_value"),
        (400, b"[" * 100_000, "invalid_value"),
        (400, b"<html>Bad Request</html>", "invalid_value"),
        (400, openai_error(REJECTED, "content_policy_violation"), "content_rejected"),
        (400, openai_error("rejected", "moderation_blocked"), "content_rejected"),
        (400, openai_error("limit", "billing_hard_limit_reached"), "upstream_balance_exhausted"),
        (400, openai_error("gone", "model_not_found"), "upstream_model_gone"),
        (400, {"error": REJECTED}, "content_rejected"),
        (400, b"blocked by content policy", "content_rejected"),
        (401, failed(REJECTED), "upstream_auth_failed"),
        (401, b"", "upstream_auth_failed"),
        (402, b"", "upstream_balance_exhausted"),
        (403, b"<html>", "upstream_auth_failed"),
        (403, failed("account banned"), "upstream_auth_failed"),
        (403, failed("Your account has been banned for sensitive prompts"), "upstream_auth_failed"),
        (403, failed(REJECTED), "content_rejected"),
        (404, b"<html>", "upstream_model_gone"),
        (404, openai_error("gone", "model_not_found"), "upstream_model_gone"),
        (405, b"", "upstream_failed"),
        (409, failed(REJECTED), "content_rejected"),
        (413, b"", "upstream_failed"),
        (422, {"detail": "bad"}, "invalid_value"),
        (422, failed("moderation"), "content_rejected"),
        (429, failed("slow"), "upstream_busy"),
        (429, openai_error("quota", "insufficient_quota"), "upstream_balance_exhausted"),
        (429, failed(REJECTED), "upstream_busy"),
        (499, failed("queue is full"), "upstream_busy"),
        (401, failed("insufficient quota"), "upstream_balance_exhausted"),
        (403, failed("The model dall-e-3 does not exist"), "upstream_model_gone"),
        (403, failed("insufficient balance"), "upstream_balance_exhausted"),
        (404, failed(REJECTED), "content_rejected"),
    ],
)
def test_a_refusal_that_cost_nothing_is_told_apart(status: int, reply: Any, code: str) -> None:
    outcome = read(status, reply)
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.upstream_status) == (code, status)


CODES = {
    "model_not_found": "upstream_model_gone",
    "moderation_blocked": "content_rejected",
    "content_policy_violation": "content_rejected",
    "billing_hard_limit_reached": "upstream_balance_exhausted",
    "insufficient_quota": "upstream_balance_exhausted",
    "invalid_api_key": "upstream_auth_failed",
    "rate_limit_exceeded": "upstream_busy",
}


@pytest.mark.parametrize("status", [200, 400, 401, 402, 403, 404, 409, 418, 422, 429, 499])
@pytest.mark.parametrize(("said", "code"), CODES.items())
@pytest.mark.parametrize("shape", ["openai", "envelope"])
def test_a_code_that_is_known_says_what_it_is_under_whatever_status(
    status: int, said: str, code: str, shape: str
) -> None:
    # The words speak of something else: of the two, the code is what its sender meant.
    words = "Banned words: your account is blocked, and the model was removed."
    reply = failed(words) | ({"code": said} if shape == "envelope" else openai_error(words, said))
    outcome = read(status, reply)
    assert isinstance(outcome, Refused)
    assert outcome.code == code


@pytest.mark.parametrize("said", [None, 7, [], {}, "", "not_a_code"])
def test_a_code_that_is_not_known_leaves_it_to_the_words(said: Any) -> None:
    outcome = read(400, {"error": {"message": REJECTED, "code": said, "type": said}})
    assert isinstance(outcome, Refused)
    assert outcome.code == "content_rejected"


@pytest.mark.parametrize("envelope", [True, False])
def test_the_tokens_of_an_answer_are_read_in_every_shape(envelope: bool) -> None:
    bare = {"created": 1, "data": [{"b64_json": BASE64}], "usage": {"input_tokens": 9, "output_tokens": 1_756}}
    outcome = read(200, {"status": "SUCCESS", "data": bare} if envelope else bare)
    assert outcome == Generated((BytesSource(PICTURE, None),), 200, Usage(9, 1_756))


HOSTILE_NUMBERS = ["-1", "1.5", "1e3", "1e999", "NaN", "-Infinity", "true", "null", '"9"', "[]", "{}", "9" * 5_000]


@pytest.mark.parametrize("number", HOSTILE_NUMBERS)
@pytest.mark.parametrize("name", ["input_tokens", "output_tokens"])
def test_tokens_that_are_no_count_are_none_and_lose_no_picture(name: str, number: str) -> None:
    counts = {"input_tokens": "9", "output_tokens": "9"} | {name: number}
    usage = ",".join(f'"{key}":{value}' for key, value in counts.items())
    outcome = read(200, f'{{"data":[{{"b64_json":"{BASE64}"}}],"usage":{{{usage}}}}}'.encode())
    assert outcome == Generated((BytesSource(PICTURE, None),), 200)


@pytest.mark.parametrize(
    "usage", [None, 7, [], "", {}, {"total_tokens": 9}, {"output_tokens": 9}, {"input_tokens": 0, "output_tokens": 0}]
)
def test_an_answer_that_counts_no_tokens_for_its_pictures_counts_none(usage: Any) -> None:
    outcome = read(200, {"data": [{"b64_json": BASE64}], "usage": usage})
    assert outcome == Generated((BytesSource(PICTURE, None),), 200)


@pytest.mark.parametrize("status", [200, 202, 400, 401, 404, 418, 500])
def test_nothing_of_the_body_is_in_a_detail_or_a_repr(status: int) -> None:
    canary = "canary-7f3a"
    said = {"status": "FAILED", "message": canary, "error": {"message": canary, "code": canary}}
    assert canary not in repr(read(status, said, canary))
    assert canary not in repr(read(status, canary.encode(), canary))
    delivered = {"data": [{"url": f"https://a.example/{canary}?sig={canary}", "revised_prompt": canary}]}
    assert canary not in repr(read(200, delivered))
    assert canary not in repr(read(200, {"data": [{"b64_json": BASE64, "revised_prompt": canary}]}))
    assert "PNG" not in repr(read(200, {"data": [{"b64_json": BASE64}]}))


KEYS = (
    "status",
    "message",
    "data",
    "error",
    "code",
    "usage",
    "input_tokens",
    "output_tokens",
    "url",
    "b64_json",
    "revised_prompt",
    "detail",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["FAILED", URL, BASE64]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=20,
)


@given(status=st.integers(100, 999), reply=JSON.map(lambda reply: json.dumps(reply).encode()) | st.binary())
@settings(max_examples=300, deadline=None, database=None)
def test_no_answer_makes_the_reader_fail_or_refund_a_5xx(status: int, reply: bytes) -> None:
    outcome = read_reply(status, None, reply, now=NOW)
    if isinstance(outcome, Refused):
        assert status == 200 or (400 <= status < 500 and status != 408)
    if isinstance(outcome, Generated):
        assert 200 <= status < 300
        assert outcome.sources


@pytest.mark.parametrize(
    ("query", "expires_at"),
    [
        ("se=2026-11-23T10%3A00%3A00Z&sig=x", EXPIRES_AT),
        ("se=2026-11-23T10:00:00Z", EXPIRES_AT),
        ("se=2026-11-23T10%3A00Z", EXPIRES_AT),
        ("se=2026-11-23T10%3A00%3A00.0000000Z", EXPIRES_AT),
        ("se=2026-11-23T12:00:00%2B02:00", EXPIRES_AT),
        ("se=2026-11-23T12:00:00+02:00", EXPIRES_AT),
        ("se=2026-11-23T10:00:00", EXPIRES_AT),
        ("se=2026-11-23", datetime(2026, 11, 23, tzinfo=UTC)),
        ("SE=2026-11-23T10:00:00Z", EXPIRES_AT),
        ("ske=2026-11-29T10%3A00%3A00Z&se=2026-11-23T10%3A00%3A00Z&skt=2026-11-20T10%3A00%3A00Z", EXPIRES_AT),
        ("ske=2026-11-29T10%3A00%3A00Z", None),
        ("st=2026-11-29T10%3A00%3A00Z", None),
        ("X-Amz-Date=20261123T090000Z&X-Amz-Expires=3600", EXPIRES_AT),
        ("x-amz-expires=3600&x-amz-date=20261123T090000Z", EXPIRES_AT),
        ("X-Amz-Date=20261123T090000Z", None),
        ("X-Amz-Expires=3600", None),
        ("X-Amz-Date=20261123T090000Z&X-Amz-Expires=" + "9" * 30, None),
        ("X-Amz-Date=20261123T090000Z&X-Amz-Expires=" + "9" * 5_000, None),
        ("X-Amz-Date=20261123T090000Z&X-Amz-Expires=soon", None),
        ("se=", None),
        ("se=tomorrow", None),
        ("se=0001-01-01T00:00:00%2B10:00", None),
        ("se=9999-12-31T23:59:59-10:00", None),
        ("se=2026-11-21T10:00:00Z", None),
        ("", None),
    ],
)
def test_the_expiry_is_read_from_the_signed_url(query: str, expires_at: datetime | None) -> None:
    assert source_expires_at(f"https://pictures.example/a.png?{query}", NOW) == expires_at


def test_a_url_that_cannot_be_taken_apart_has_no_expiry() -> None:
    assert source_expires_at("https://[pictures.example/a.png?se=2026-11-23", NOW) is None


@pytest.mark.parametrize("caption", ["a bird", "a \\ud83d bird", "a \\u0000 bird", "a 🐤"])
def test_a_large_answer_is_read_as_a_small_one_is(caption: str) -> None:
    for size in (300, 400_000):
        picture = bytes(index % 251 for index in range(size))
        encoded = base64.b64encode(picture).decode()
        body = f'{{"data": [{{"b64_json": "{encoded}", "revised_prompt": "{caption}"}}]}}'.encode()
        outcome = read_reply(200, "application/json", bytearray(body), now=datetime.now(UTC))

        assert isinstance(outcome, Generated)
        (source,) = outcome.sources
        assert isinstance(source, BytesSource)
        assert source.body == picture
        assert source.revised_prompt is not None
        assert source.revised_prompt.startswith("a ")


@pytest.mark.parametrize("spelling", ["{}", "data:image/png;base64,{}", " {}\\n", "{}=="])
def test_base64_in_any_usual_spelling_is_read(spelling: str) -> None:
    picture = bytes(range(256)) * 3 + b"\0"
    encoded = base64.b64encode(picture).decode().rstrip("=")
    lines = "\\n".join(encoded[start : start + 76] for start in range(0, len(encoded), 76))
    for text in (encoded, lines):
        body = f'{{"data": [{{"b64_json": "{spelling.format(text)}"}}]}}'.encode()
        outcome = read_reply(200, "application/json", body, now=datetime.now(UTC))

        assert isinstance(outcome, Generated)
        (source,) = outcome.sources
        assert isinstance(source, BytesSource)
        assert source.body == picture
