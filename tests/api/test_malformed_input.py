"""Is every bad input the caller's fault: told in words, and neither a crash nor an order?

Each carries the word CANARY where it can, and no answer may repeat it.
"""

import codecs
import json
from typing import Any

import pytest

from tests.api.books import count
from tests.api.wire import Answer, send_raw
from tests.sandbox_server import RunningSandbox
from tests.service import Service

CANARY = "CANARY"


def order(**fields: Any) -> bytes:
    return json.dumps({"prompt": f"a fox {CANARY}", **fields}).encode()


def raw(field: str) -> bytes:
    """An order with one more field, as it is written: `"n": NaN`."""
    return b'{"prompt": "a fox CANARY", ' + field.encode() + b"}"


NOT_JSON = {
    "nothing": b"",
    "spaces": b"   ",
    "words": b"a fox CANARY",
    "a form": b"prompt=a+fox+CANARY&n=1",
    "HTML": b"<prompt>CANARY</prompt>",
    "a single quote": b"{'prompt': 'CANARY'}",
    "a trailing comma": b'{"prompt": "CANARY",}',
    "a comment": b'{"prompt": "CANARY"} // please',
    "two documents": b'{"prompt": "CANARY"}{"prompt": "CANARY"}',
    "cut in the middle": b'{"prompt": "CANARY',
    "cut in an escape": b'{"prompt": "CANARY\\u00',
    "a bad escape": b'{"prompt": "CANARY\\x41"}',
    "a bare line break": b'{"prompt": "CANARY\n"}',
    "a bare NUL": b'{"prompt": "CANARY\x00"}',
    "NUL bytes": b"\x00" * 64,
    "a byte order mark": codecs.BOM_UTF8 + order(),
    "UTF-16": order().decode().encode("utf-16"),
    "UTF-32": order().decode().encode("utf-32"),
    "Latin-1": '{"prompt": "CANARY für"}'.encode("latin-1"),
    "an overlong encoding": b'{"prompt": "CANARY \xc0\xaf"}',
    "a surrogate in UTF-8": b'{"prompt": "CANARY \xed\xa0\x80"}',
    "a lone surrogate": b'{"prompt": "CANARY \\ud800"}',
    "a lone low surrogate": b'{"prompt": "CANARY \\udc00 fox"}',
    "swapped surrogates": b'{"prompt": "CANARY \\udc00\\ud800"}',
    "gzip": b"\x1f\x8b\x08\x00CANARY",
    "a number with a leading zero": raw('"n": 01'),
    "a hexadecimal number": raw('"n": 0x1'),
    "a number of 5,000 digits": raw('"n": ' + "9" * 5_000),
    "a list opened 10,000 times": b"[" * 10_000,
    "an object opened 10,000 times": b'{"prompt":' * 6_000,
    "a deep value that nobody asked for": raw('"x": ' + "[" * 10_000 + "]" * 10_000),
}

NO_OBJECT = {
    "a list": b'["CANARY"]',
    "a list of orders": b"[" + order() + b"]",
    "an empty list": b"[]",
    "a string": b'"CANARY"',
    "a number": b"42",
    "null": b"null",
    "true": b"true",
}

# The field that is named in the answer, and the body.
WRONG_FIELDS = {
    "no prompt": ("prompt", b"{}"),
    "null prompt": ("prompt", order(prompt=None)),
    "a number as prompt": ("prompt", order(prompt=5)),
    "a list as prompt": ("prompt", order(prompt=[CANARY])),
    "an object as prompt": ("prompt", order(prompt={CANARY: CANARY})),
    "true as prompt": ("prompt", order(prompt=True)),
    "an empty prompt": ("prompt", order(prompt="")),
    "a prompt of spaces": ("prompt", order(prompt=" \t\r\n\u3000")),
    "NUL in the prompt": ("prompt", order(prompt=f"{CANARY}\x00")),
    "an escape code in the prompt": ("prompt", order(prompt=f"\x1b[31m{CANARY}")),
    "a bell in the prompt": ("prompt", order(prompt=f"{CANARY}\x07")),
    "DEL in the prompt": ("prompt", order(prompt=f"{CANARY}\x7f")),
    "4,001 characters": ("prompt", order(prompt=CANARY + "x" * 3_995)),
    "4,001 emoji": ("prompt", json.dumps({"prompt": "🦊" * 4_001}, ensure_ascii=False).encode()),
    "n = 0": ("n", order(n=0)),
    "n = -1": ("n", order(n=-1)),
    "n = 2": ("n", order(n=2)),
    "n = 1,000,000,000": ("n", order(n=1_000_000_000)),
    "n = 1e9": ("n", raw('"n": 1e9')),
    "n = 1e999": ("n", raw('"n": 1e999')),
    "n = -1e999": ("n", raw('"n": -1e999')),
    "n = NaN": ("n", raw('"n": NaN')),
    "n = Infinity": ("n", raw('"n": Infinity')),
    "n = -Infinity": ("n", raw('"n": -Infinity')),
    "n = 1.5": ("n", order(n=1.5)),
    "n = true": ("n", order(n=True)),
    'n = "1"': ("n", order(n="1")),
    "n = null": ("n", order(n=None)),
    "n = [1]": ("n", order(n=[1])),
    "n of 300 digits": ("n", raw('"n": ' + "9" * 300)),
    "an unknown size": ("size", order(size=f"1x1{CANARY}")),
    "a size in capitals": ("size", order(size="1024X1024")),
    "an empty size": ("size", order(size="")),
    "a number as size": ("size", order(size=1024)),
    "a list as size": ("size", order(size=[1024, 1024])),
    "NaN as size": ("size", raw('"size": NaN')),
    "a size of 10,000 characters": ("size", order(size=CANARY * 2_000)),
    "an unknown quality": ("quality", order(quality=CANARY)),
    "an empty quality": ("quality", order(quality="")),
    "true as quality": ("quality", order(quality=True)),
    "an unknown model": ("model", order(model=CANARY)),
    "an empty model": ("model", order(model="")),
    "a model with NUL": ("model", order(model=f"dall-e-3\x00{CANARY}")),
    "a model that is a path": ("model", order(model=f"../../{CANARY}")),
    "a number as model": ("model", order(model=3)),
    "stream": ("stream", order(stream=True)),
    "response_format": ("response_format", order(response_format=CANARY)),
    "a field with a capital": ("Size", order(Size="1024x1024")),
}

# Names that are not repeated.
NASTY_FIELDS = {
    "an empty name": "",
    "markup": f"<script>{CANARY}</script>",
    "a line break": f"{CANARY}\r\nset-cookie: a=b",
    "NUL": f"{CANARY}\x00",
    "an escape code": f"\x1b[31m{CANARY}",
    "not ASCII": f"größe {CANARY}",
    "right to left": f"\u202e{CANARY}",
    "10,000 characters": CANARY * 2_000,
    "a template": "{CANARY.__class__}",
    "__proto__ and more": f"__proto__ {CANARY}",
}


def assert_refused(service: Service, sandbox: RunningSandbox, answer: Answer, code: str, status: int = 400) -> None:
    problem = answer.json()
    assert (answer.status, problem["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(problem["detail"]) < 300
    assert CANARY.lower().encode() not in answer.body.lower()
    assert not any(CANARY in value for value in answer.headers.values())
    assert count(service) == 0
    assert sandbox.witness()["asked"] == 0


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_no_json_is_told_so(service: Service, sandbox: RunningSandbox, body: bytes) -> None:
    answer = send_raw(service, "POST", "/images", body=body)

    assert_refused(service, sandbox, answer, "invalid_json")


@pytest.mark.parametrize("body", NO_OBJECT.values(), ids=NO_OBJECT)
def test_json_that_is_no_object_is_told_so(service: Service, sandbox: RunningSandbox, body: bytes) -> None:
    answer = send_raw(service, "POST", "/images", body=body)

    assert_refused(service, sandbox, answer, "invalid_json")
    assert answer.json()["detail"] == "The body must be a JSON object."


@pytest.mark.parametrize(("parameter", "body"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_a_wrong_field_is_named(service: Service, sandbox: RunningSandbox, parameter: str, body: bytes) -> None:
    answer = send_raw(service, "POST", "/images", body=body)

    problem = answer.json()
    assert_refused(service, sandbox, answer, problem["code"])
    assert problem["code"] in (
        "invalid_value",
        "missing_required_parameter",
        "unsupported_parameter",
        "model_not_found",
    )
    assert problem["parameter"] == parameter
    assert f"`{parameter}`" in problem["detail"] or problem["code"] == "model_not_found"


@pytest.mark.parametrize("name", NASTY_FIELDS.values(), ids=NASTY_FIELDS)
def test_a_field_with_a_nasty_name_is_refused_without_repeating_it(
    service: Service, sandbox: RunningSandbox, name: str
) -> None:
    answer = send_raw(service, "POST", "/images", body=order(**{name: 1}))

    assert_refused(service, sandbox, answer, "unsupported_parameter")


@pytest.mark.parametrize("size_bytes", [524_289, 10_000_000])
def test_a_body_that_is_too_large_is_told_so(service: Service, sandbox: RunningSandbox, size_bytes: int) -> None:
    answer = send_raw(service, "POST", "/images", body=order().ljust(size_bytes))

    assert_refused(service, sandbox, answer, "body_too_large", status=413)


def test_the_largest_body_is_read(service: Service) -> None:
    answer = send_raw(service, "POST", "/images", body=order().ljust(524_288))

    assert answer.status == 200


@pytest.mark.parametrize(
    "prompt",
    ["🦊" * 4_000, "x" * 4_000, "first line\nsecond\tline\r\n", "שועל אדום", "'; DROP TABLE users; --", "%s {0} $1"],
    ids=["4,000 emoji", "4,000 characters", "lines", "right to left", "SQL", "templates"],
)
def test_an_odd_prompt_is_a_prompt(service: Service, sandbox: RunningSandbox, prompt: str) -> None:
    answer = send_raw(service, "POST", "/images", body=json.dumps({"prompt": prompt}, ensure_ascii=False).encode())

    assert (answer.status, answer.json()["prompt"]) == (200, prompt)
    assert sandbox.witness()["orders"][0]["prompt"] == prompt


def test_of_a_field_that_comes_twice_the_last_counts(service: Service) -> None:
    answer = send_raw(service, "POST", "/images", body=b'{"prompt": "a fox", "prompt": "a wolf"}')

    assert (answer.status, answer.json()["prompt"]) == (200, "a wolf")
