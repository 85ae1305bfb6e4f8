"""Is a caller known by their key, and told what is wrong with it?"""

import httpx
import pytest

from app.accounts.keys import make_key
from tests.api.books import count, database_away, in_flight
from tests.api.wire import Answer, ask, send_raw
from tests.sandbox_server import RunningSandbox
from tests.service import Service, add_user


def assert_unauthorized(answer: Answer | httpx.Response, code: str) -> None:
    status = answer.status if isinstance(answer, Answer) else answer.status_code
    assert (status, answer.json()["code"]) == (401, code)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert "x-should-retry" not in answer.headers


def get_me(service: Service, authorization: bytes) -> Answer:
    return send_raw(service, "GET", "/me", headers=[(b"authorization", authorization)])


def mistyped(key: str) -> str:
    """The key with one character changed."""
    return key[:20] + ("a" if key[20] != "a" else "b") + key[21:]


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
def test_the_scheme_is_read_however_it_is_written(service: Service, scheme: str) -> None:
    answer = get_me(service, f"{scheme}{service.key}".encode())

    assert (answer.status, answer.json()["user"]) == (200, "first")


def test_the_headers_name_is_read_however_it_is_written(service: Service) -> None:
    answer = ask("GET", f"{service.url}/me", headers={"AUTHORIZATION": f"Bearer {service.key}"})

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b" ",
        b"Bearer",
        b"Bearer ",
        b"Bearer  ",
        b"Basic dXNlcjpwYXNz",
        b"Token {key}",
        b"{key}",
        b"Bearer{key}",
    ],
)
def test_without_a_bearer_key_the_key_is_missing(service: Service, authorization: bytes) -> None:
    given = authorization.replace(b"{key}", service.key.encode())

    answer = get_me(service, given)

    assert_unauthorized(answer, "api_key_missing")
    assert "Authorization: Bearer" in answer.json()["detail"]


@pytest.mark.parametrize(
    "form",
    [
        "{key}x",
        "x{key}",
        "{key} {key}",
        "{key},{key}",
        '"{key}"',
        "{cut}",
        "{upper}",
        "{mistyped}",
        "ik_user_",
        "sk-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "x",
        "x" * 10_000,
    ],
)
def test_a_key_that_can_not_be_one_is_told_as_mistyped(service: Service, form: str) -> None:
    key = service.key
    given = form.format(key=key, cut=key[:-1], upper=key.upper(), mistyped=mistyped(key))

    answer = get_me(service, f"Bearer {given}".encode())

    assert_unauthorized(answer, "api_key_mistyped")
    assert key.encode() not in answer.body


@pytest.mark.parametrize("key", [b"ik_user_\xff\xfe", "ik_user_schlüssel".encode(), b"ik_user_\t"])
def test_a_key_of_odd_bytes_is_told_as_mistyped(service: Service, key: bytes) -> None:
    answer = get_me(service, b"Bearer " + key)

    assert_unauthorized(answer, "api_key_mistyped")


def test_a_well_formed_key_that_was_never_made_here_is_invalid(service: Service) -> None:
    answer = get_me(service, f"Bearer {make_key()}".encode())

    assert_unauthorized(answer, "api_key_invalid")


def test_a_revoked_key_is_invalid_from_the_next_request_on(service: Service, sandbox: RunningSandbox) -> None:
    before = service.client.get("/me")
    service.rows("UPDATE api_keys SET revoked_at = now()")

    answer = service.order("a red fox")

    assert before.status_code == 200
    assert_unauthorized(answer, "api_key_invalid")
    assert (count(service), sandbox.witness()["asked"]) == (0, 0)


def test_a_user_who_was_disabled_after_an_order_starts_none(service: Service, sandbox: RunningSandbox) -> None:
    before = service.order("a red fox")
    service.rows("UPDATE users SET disabled_at = now()")

    answer = service.order("a white hare")

    assert before.status_code == 200
    assert (answer.status_code, answer.json()["code"]) == (403, "user_disabled")
    assert (count(service), sandbox.witness()["asked"]) == (1, 1)


@pytest.mark.parametrize("mark", [{"idempotency-key": "k"}, {"x-stainless-retry-count": "1"}], ids=["key", "retry"])
def test_a_revoked_key_does_not_get_what_it_ordered_before_by_ordering_again(
    service: Service, sandbox: RunningSandbox, mark: dict[str, str]
) -> None:
    before = service.order("a red fox", headers=mark)
    service.rows("UPDATE api_keys SET revoked_at = now()")

    answer = service.order("a red fox", headers=mark)

    assert before.status_code == 200
    assert_unauthorized(answer, "api_key_invalid")
    assert (count(service), sandbox.witness()["asked"]) == (1, 1)


def test_what_a_revoked_key_ordered_before_is_still_delivered(service: Service, sandbox: RunningSandbox) -> None:
    with in_flight(service, sandbox, seconds=0.3) as order:
        service.rows("UPDATE api_keys SET revoked_at = now()")

    assert order.result().json()["state"] == "completed"


def test_a_mistyped_key_is_told_apart_while_the_database_is_away(service: Service) -> None:
    with database_away(service):
        mistaken = get_me(service, f"Bearer {mistyped(service.key)}".encode())
        missing = ask("GET", f"{service.url}/me")
        right = get_me(service, f"Bearer {service.key}".encode())

    assert_unauthorized(mistaken, "api_key_mistyped")
    assert_unauthorized(missing, "api_key_missing")
    assert (right.status, right.json()["code"]) == (503, "database_unavailable")


def test_a_disabled_user_is_forbidden_and_no_key_is_blamed(service: Service) -> None:
    service.rows("UPDATE users SET disabled_at = now()")

    answer = service.client.get("/me")

    assert (answer.status_code, answer.json()["code"]) == (403, "user_disabled")
    assert "www-authenticate" not in answer.headers


def test_an_enabled_user_may_order_again(service: Service) -> None:
    service.rows("UPDATE users SET disabled_at = now()")
    service.client.get("/me")
    service.rows("UPDATE users SET disabled_at = NULL")

    assert service.client.get("/me").status_code == 200


def test_each_key_speaks_for_its_own_user(service: Service) -> None:
    other = add_user(service.database_url, "somebody else")

    answer = get_me(service, f"Bearer {other}".encode())

    assert answer.json()["user"] == "somebody else"


def test_the_schema_says_where_a_key_goes_and_that_errors_are_problems(service: Service) -> None:
    schema = service.client.get("/openapi.json").json()

    assert schema["components"]["securitySchemes"]["API key"]["scheme"] == "bearer"
    assert schema["paths"]["/images"]["post"]["security"] == [{"API key": []}]
    assert "422" not in schema["paths"]["/images"]["get"]["responses"]


def test_a_key_that_is_sent_as_a_request_id_is_neither_echoed_nor_kept(service: Service) -> None:
    answer = service.order("a red fox", headers={"x-request-id": service.key})

    assert answer.headers["x-request-id"] != service.key
    assert service.generation()["request_id"] == answer.headers["x-request-id"]
