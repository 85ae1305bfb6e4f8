"""How is the same asked on each surface, and how does each say no?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from tests.service import TT_API_KEY

INVALID = "invalid_request_error"
SERVER = "server_error"


@dataclass(frozen=True)
class Refusal:
    """How one error is told: the native status; OpenAI's status, type and code; TTAPI's status.

    `again` tells whether the OpenAI SDKs try again by themselves.
    """

    native: int
    openai: tuple[int, str, str]
    ttapi: int
    again: bool = False


# As the error map has it, by our codes. What no order can meet is not here: `generation_running` and
# `range_not_satisfiable`.
REFUSALS: Mapping[str, Refusal] = {
    "invalid_json": Refusal(400, (400, INVALID, "invalid_json"), 400),
    "invalid_value": Refusal(400, (400, INVALID, "invalid_value"), 400),
    "missing_required_parameter": Refusal(400, (400, INVALID, "missing_required_parameter"), 400),
    "unsupported_parameter": Refusal(400, (400, INVALID, "unsupported_parameter"), 400),
    "model_not_found": Refusal(400, (400, INVALID, "model_not_found"), 400),
    "content_rejected": Refusal(400, (400, INVALID, "content_policy_violation"), 400),
    "api_key_missing": Refusal(401, (401, INVALID, "invalid_api_key"), 401),
    "api_key_mistyped": Refusal(401, (401, INVALID, "invalid_api_key"), 401),
    "api_key_invalid": Refusal(401, (401, INVALID, "invalid_api_key"), 401),
    "user_disabled": Refusal(403, (403, INVALID, "permission_denied"), 403),
    "not_found": Refusal(404, (404, INVALID, "not_found"), 404),
    "method_not_allowed": Refusal(405, (405, INVALID, "method_not_allowed"), 405),
    "image_deleted": Refusal(410, (410, INVALID, "image_deleted"), 404),
    "body_too_large": Refusal(413, (413, INVALID, "body_too_large"), 413),
    "idempotency_key_reused": Refusal(422, (400, INVALID, "idempotency_key_reused"), 400),
    "budget_spent": Refusal(429, (429, "insufficient_quota", "insufficient_quota"), 402),
    "rate_limit_exceeded": Refusal(429, (429, "rate_limit_error", "rate_limit_exceeded"), 429, again=True),
    "too_many_in_flight": Refusal(429, (429, "rate_limit_error", "rate_limit_exceeded"), 429, again=True),
    "internal_error": Refusal(500, (500, SERVER, "internal_error"), 500),
    "upstream_auth_failed": Refusal(502, (502, SERVER, "upstream_auth_failed"), 500),
    "upstream_unreachable": Refusal(502, (502, SERVER, "upstream_unreachable"), 500, again=True),
    "upstream_model_gone": Refusal(502, (502, SERVER, "upstream_model_gone"), 500),
    "upstream_failed": Refusal(502, (502, SERVER, "upstream_failed"), 500, again=True),
    "image_unavailable": Refusal(502, (502, SERVER, "image_unavailable"), 500),
    "upstream_balance_exhausted": Refusal(503, (503, SERVER, "upstream_balance_exhausted"), 500),
    "upstream_busy": Refusal(503, (503, SERVER, "upstream_busy"), 429, again=True),
    "overloaded": Refusal(503, (503, SERVER, "overloaded"), 429, again=True),
    "database_unavailable": Refusal(503, (503, SERVER, "database_unavailable"), 500, again=True),
    "storage_unavailable": Refusal(503, (503, SERVER, "storage_unavailable"), 500, again=True),
    "answer_unavailable": Refusal(503, (503, SERVER, "answer_unavailable"), 504),
    "upstream_outcome_unknown": Refusal(504, (504, SERVER, "upstream_outcome_unknown"), 504),
}


def _native_message(answer: httpx.Response, code: str) -> str:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (REFUSALS[code].native, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == answer.status_code
    assert problem["request_id"] == answer.headers["x-request-id"]
    return str(problem["detail"])


def _openai_message(answer: httpx.Response, code: str) -> str:
    assert answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (answer.status_code, error["type"], error["code"]) == REFUSALS[code].openai
    assert int(answer.headers["openai-processing-ms"]) >= 0
    beginning = "Incorrect API key provided. " if code in ("api_key_mistyped", "api_key_invalid") else ""
    assert error["message"].startswith(beginning)
    return str(error["message"]).removeprefix(beginning)


def _ttapi_message(answer: httpx.Response, code: str) -> str:
    failed = answer.json()
    assert answer.status_code == REFUSALS[code].ttapi
    assert failed.keys() == {"status", "message", "data"}
    assert (failed["status"], failed["data"]) == ("FAILED", None)
    beginning = {401: "Wrong TT-API-KEY. ", 402: "Insufficient balance. "}.get(answer.status_code, "")
    assert failed["message"].startswith(beginning)
    return str(failed["message"]).removeprefix(beginning)


class Reachable(Protocol):
    """A service in this process or in another: `client` asks it, and the first user has `key`."""

    @property
    def client(self) -> httpx.Client: ...

    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Surface:
    """A wire format: the path that takes orders, the header that holds the key, and how an error's message is read."""

    name: str
    path: str
    key_header: str
    _message: Callable[[httpx.Response, str], str]

    def post(
        self,
        service: Reachable,
        *,
        content: bytes | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        path: str | None = None,
        method: str = "POST",
    ) -> httpx.Response:
        """Ask as the first user, whose key is in this surface's own header."""
        request = service.client.build_request(method, path or self.path, content=content, json=json)
        if self.key_header != "authorization":
            del request.headers["authorization"]
            request.headers[self.key_header] = service.key
        request.headers.update(headers or {})
        return service.client.send(request)

    def order(
        self, service: Reachable, prompt: str, *, headers: Mapping[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        """Order an image as the first user."""
        return self.post(service, json={"prompt": prompt, **body}, headers=headers)

    def key_headers(self, key: str) -> dict[str, str]:
        """The headers of whoever has another key, or none."""
        return {self.key_header: f"Bearer {key}" if key and self.key_header == "authorization" else key}

    def images(self, answer: httpx.Response) -> list[dict[str, Any]]:
        """The pictures of an order that went well."""
        assert answer.status_code == 200, answer.text
        content = answer.json()
        found = content["images"] if self is NATIVE else (content["data"]["data"] if self is TTAPI else content["data"])
        assert isinstance(found, list)
        return found

    def generation_id(self, answer: httpx.Response) -> str:
        """Which generation an answer is about, an error too."""
        if self is NATIVE:
            return str(answer.json()["id"])
        return answer.headers["location"].removeprefix("/images/")

    def assert_refused(self, answer: httpx.Response, code: str) -> str:
        """It says this error in the surface's own form, and nothing that is no caller's business. Returns its words."""
        message = self._message(answer, code)
        # Some tell a person where to look, behind the sentence.
        assert message.rpartition(" (generation ")[0].endswith(".") or message.endswith((".", "?"))
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]
        assert answer.reason_phrase == httpx.codes.get_reason_phrase(answer.status_code) != ""
        for secret in (TT_API_KEY, "cloudflare", "recharge", "sandbox", "/pictures/"):
            assert secret not in answer.text
        assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)
        return message


NATIVE = Surface("native", "/images", "authorization", _native_message)
OPENAI = Surface("openai", "/v1/images/generations", "authorization", _openai_message)
TTAPI = Surface("ttapi", "/openai/v1/images/generations", "tt-api-key", _ttapi_message)
SURFACES = (NATIVE, OPENAI, TTAPI)
