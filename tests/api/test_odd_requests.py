"""Is an odd request the caller's fault, or ignored: wrong methods, paths, queries and headers of junk?

Each carries the word CANARY where it can, and no answer may repeat it.
"""

import pytest

from tests.api.test_malformed_input import CANARY, assert_refused, order
from tests.api.wire import send_raw
from tests.sandbox_server import RunningSandbox
from tests.service import Service


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "/images"),
        ("PATCH", "/images"),
        ("DELETE", "/images"),
        ("OPTIONS", "/images"),
        ("TRACE", "/images"),
        ("PROPFIND", "/images"),
        ("POST", "/me"),
        ("POST", "/models"),
        ("POST", "/images/01a203a9-e328-7544-bd32-c7df6c57ca37"),
        ("POST", "/i/0123456789abcdef0123456789abcdef.png"),
    ],
)
def test_a_wrong_method_is_told_so(service: Service, sandbox: RunningSandbox, method: str, target: str) -> None:
    answer = send_raw(service, method, target, body=order())

    assert_refused(service, sandbox, answer, "method_not_allowed", status=405)
    assert method not in answer.headers["allow"].split(", ")


@pytest.mark.parametrize(
    "target",
    [
        "/CANARY",
        "/images/",
        "/images//",
        "/Images",
        "/images/CANARY",
        "/images/%00",
        "/images/%ff%fe",
        "/images/%2e%2e%2fetc%2fpasswd",
        "/images/../../etc/passwd",
        "/images/1",
        "/images/00000000-0000-0000-0000-000000000000",
        "/images/" + "9" * 5_000,
        "/images/CANARY%0d%0aset-cookie:%20a=b",
        "/i",
        "/i/",
        "/i/CANARY",
        "/i/CANARY.png",
        "/i/%00",
        "/i/0123456789abcdef0123456789abcdef",
        "/i/0123456789ABCDEF0123456789ABCDEF.png",
        "/i/0123456789abcdef0123456789abcdef.svg",
        "/i/0123456789abcdef0123456789abcdef.png%0a",
        "/i/..%2f..%2fetc%2fpasswd",
        "/i/" + "a" * 10_000 + ".png",
        "/docs/files/../../pyproject.toml",
        "/docs/files/CANARY",
    ],
)
def test_a_path_that_leads_nowhere_is_told_so(service: Service, sandbox: RunningSandbox, target: str) -> None:
    answer = send_raw(service, "GET", target)

    assert_refused(service, sandbox, answer, "not_found", status=404)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=101", "limit"),
        ("limit=CANARY", "limit"),
        ("limit=", "limit"),
        ("limit=1.5", "limit"),
        ("limit=NaN", "limit"),
        ("limit=" + "9" * 5_000, "limit"),
        ("limit=%00", "limit"),
        ("before=CANARY", "before"),
        ("before=", "before"),
        ("before=%00", "before"),
        ("before=" + "CANARY" * 5_000, "before"),
    ],
)
def test_a_wrong_page_is_told_so(service: Service, sandbox: RunningSandbox, query: str, parameter: str) -> None:
    answer = send_raw(service, "GET", f"/images?{query}")

    assert_refused(service, sandbox, answer, "invalid_value")
    assert answer.json()["parameter"] == parameter


@pytest.mark.parametrize(
    "query", ["x=CANARY", "x=" + "y" * 30_000, "&&&===", "%", "%zz", "%ff=%ff", "before", "a=1&a=2"]
)
def test_a_query_that_nobody_asked_for_is_ignored(service: Service, query: str) -> None:
    answer = send_raw(service, "GET", f"/me?{query}")

    assert answer.status == 200


@pytest.mark.parametrize(
    "prefer",
    [
        b"",
        b",,,;;;===",
        b"wait=",
        b"wait=-1",
        b"wait=1.5",
        b"wait=CANARY",
        b"wait=" + b"9" * 5_000,
        b"wait=\xb2",
        b"wait",
        b"respond-sync",
        b"handling=strict",
        b'return="minimal',
        b"\xff\xfe",
        b"a" * 10_000,
    ],
)
def test_a_preference_that_means_nothing_is_ignored(service: Service, prefer: bytes) -> None:
    answer = send_raw(service, "POST", "/images", headers=[(b"prefer", prefer)], body=order())

    assert (answer.status, answer.json()["state"]) == (200, "completed")
    assert "preference-applied" not in answer.headers


@pytest.mark.parametrize(
    "header",
    [
        (b"accept", b"\xff\xfe"),
        (b"accept", b";;;,,,q=q=q"),
        (b"accept", b"image/" + b"x" * 10_000 + b",application/json"),
        (b"accept-encoding", b"CANARY;q=NaN"),
        (b"content-type", b"multipart/form-data"),
        (b"content-type", b"application/json; charset=CANARY"),
        (b"content-encoding", b"gzip"),
        (b"cookie", b"\xff=\xff; CANARY"),
        (b"host", b"CANARY.example.com"),
        (b"x-forwarded-host", b"CANARY.example.com"),
        (b"x-forwarded-proto", b"CANARY"),
        (b"x-forwarded-for", b"CANARY"),
        (b"forwarded", b"host=CANARY.example.com"),
        (b"x-stainless-retry-count", b"CANARY"),
        (b"expect", b"CANARY"),
        (b"x-" + b"y" * 1_000, b"\x80\x81"),
    ],
)
def test_a_header_of_junk_changes_nothing(service: Service, header: tuple[bytes, bytes]) -> None:
    answer = send_raw(service, "POST", "/images", headers=[header], body=b'{"prompt": "a fox"}')

    assert answer.status == 200
    assert answer.json()["images"][0]["url"].startswith(f"{service.url}/i/")
    assert CANARY.encode() not in answer.body
    assert not any(CANARY in value for value in answer.headers.values())


@pytest.mark.parametrize("given", [b"a", b"A-z_0.9", b"x" * 64])
def test_a_sane_request_id_is_kept(service: Service, given: bytes) -> None:
    answer = send_raw(service, "GET", "/nothing", headers=[(b"x-request-id", given)])

    assert answer.headers["x-request-id"] == answer.json()["request_id"] == given.decode()


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"x" * 65,
        b"CANARY two",
        b"CANARY\tone",
        b'"CANARY"',
        b"CANARY\xff",
        b"<CANARY>",
        b"CANARY;a=b",
        b"{CANARY}",
    ],
)
def test_a_request_id_that_could_do_harm_is_replaced(service: Service, given: bytes) -> None:
    answer = send_raw(service, "GET", "/nothing", headers=[(b"x-request-id", given)])

    assert CANARY.encode() not in answer.body
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
def test_a_body_where_none_belongs_is_ignored(service: Service, method: str) -> None:
    answer = send_raw(service, method, "/me", body=b"CANARY" * 1_000)

    assert answer.status in (200, 405)
    assert CANARY.encode() not in answer.body
