"""Does what is wrong between the operator and upstream ever look like a fault of the caller's?

To a client 401, 402 and 403 speak of its own key and its own money. Upstream says them of the operator's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.api.sdk import retries_of_sdk
from tests.api.surfaces import REFUSALS, SURFACES, Surface
from tests.leaks import serving
from tests.sandbox_server import RunningSandbox
from tests.service import running_service

THE_CALLERS_OWN = {401, 402, 403}
# In every answer of upstream's; in none of ours.
CANARY = "upstream-canary-4d02"
OPEN_SECONDS = 60


@dataclass(frozen=True)
class Said:
    """An answer of upstream's, and what callers are told then."""

    status: int
    body: str
    code: str
    content_type: str = "application/json"


def failed(message: str) -> str:
    """TTAPI's envelope."""
    return json.dumps({"status": "FAILED", "message": f"{message} {CANARY}", "data": None})


def error(code: str, message: str = "No.") -> str:
    """OpenAI's object, as TTAPI's newer route has it."""
    return json.dumps({"error": {"message": f"{message} {CANARY}", "type": code, "param": None, "code": code}})


PAGE = f"<html><title>Attention Required! | Cloudflare</title><p>You have been blocked. {CANARY}</p></html>"
AUTH, BALANCE, GONE = "upstream_auth_failed", "upstream_balance_exhausted", "upstream_model_gone"

# TTAPI's codes and words stand in docs.ttapi.io/grids/en/development/response, OpenAI's in
# developers.openai.com/docs/guides/error-codes, both read 2026-11-22.
SAID: Mapping[str, Said] = {
    "a wrong key": Said(401, failed("Wrong TT-API-KEY or email is not activated."), AUTH),
    "a wrong key, in OpenAI's words": Said(401, error("invalid_api_key"), AUTH),
    "a wrong key, with a page": Said(401, PAGE, AUTH, "text/html"),
    "a wrong key, without a word": Said(401, "", AUTH),
    "a wrong key, with another status": Said(400, failed("Wrong TT-API-KEY or email is not activated."), AUTH),
    "a wrong key, inside a 200": Said(200, failed("Wrong TT-API-KEY or email is not activated."), AUTH),
    "a blocked account": Said(403, failed("Your account has been blocked."), AUTH),
    "a blocked account, with another status": Said(400, failed("Your account has been disabled."), AUTH),
    "a blocked address": Said(403, PAGE, AUTH, "text/html"),
    "a missing permission": Said(403, error("permission_denied"), AUTH),
    "an empty account": Said(402, failed("Insufficient balance, please recharge."), BALANCE),
    "an empty account, with a page": Said(402, PAGE, BALANCE, "text/html"),
    "an empty account, with another status": Said(400, failed("Insufficient balance, please recharge."), BALANCE),
    "an empty account, inside a 200": Said(200, failed("Insufficient balance, please recharge."), BALANCE),
    "a spent quota": Said(429, error("insufficient_quota"), BALANCE),
    "a spent balance": Said(429, error("credit_balance_exhausted"), BALANCE),
    "a spending limit": Said(400, error("billing_hard_limit_reached"), BALANCE),
    "no such route": Said(404, PAGE, GONE, "text/html"),
    "no such model": Said(404, error("model_not_found"), GONE),
    "no such model, with another status": Said(400, failed("The model `dall-e-3` has been deprecated."), GONE),
    "a proxy that wants a key": Said(407, PAGE, "upstream_failed", "text/html"),
    "a page to sign in": Said(200, PAGE, "upstream_outcome_unknown", "text/html"),
    "another page to sign in": Said(302, PAGE, "upstream_outcome_unknown", "text/html"),
    "a network that wants a key": Said(511, PAGE, "upstream_outcome_unknown", "text/html"),
}


class _Upstream(BaseHTTPRequestHandler):
    """Says what the prompt names."""

    def do_POST(self) -> None:
        ordered = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = SAID[ordered["prompt"]]
        body = said.body.encode()
        self.send_response(said.status)
        self.send_header("content-type", said.content_type)
        self.send_header("content-length", str(len(body)))
        self.send_header("www-authenticate", f'Key realm="{CANARY}"')
        self.send_header("location", f"/{CANARY}")
        self.send_header("x-should-retry", "true")
        self.send_header("retry-after", "7")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Not into the tests' output."""


def test_whatever_upstream_says_of_the_operator_no_caller_is_told_that_it_is_theirs(
    database_url: str, data_dir: Path, surface: Surface
) -> None:
    with (
        serving(_Upstream) as upstream_url,
        running_service(database_url=database_url, upstream_url=upstream_url, data_dir=data_dir) as service,
    ):
        told = {what: retries_of_sdk(surface, service, what, obedient=True) for what in SAID}

    for what, answers in told.items():
        code = SAID[what].code
        assert len(answers) == (3 if REFUSALS[code].again else 1), what
        for answer in answers:
            surface.assert_refused(answer, code)
            assert answer.status_code not in THE_CALLERS_OWN
            assert CANARY not in f"{answer.headers}{answer.text}"
            assert answer.headers.get("retry-after") != "7"
            assert answer.headers.get("x-should-retry") != "true"


@pytest.mark.parametrize(("status", "code"), [(401, AUTH), (403, AUTH), (402, BALANCE)])
def test_while_upstream_is_not_asked_for_it_callers_are_told_the_same(
    database_url: str, sandbox: RunningSandbox, data_dir: Path, status: int, code: str
) -> None:
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, breaker_seconds=OPEN_SECONDS
    ) as service:
        service.order(f"a fox [[status {status}]]")

        told = {each: retries_of_sdk(each, service, "a hare", obedient=True) for each in SURFACES}

    for surface, (answer,) in told.items():
        surface.assert_refused(answer, code)
        assert answer.status_code not in THE_CALLERS_OWN
        # For those who mind no `x-should-retry`: not before somebody tries.
        assert 1 <= int(answer.headers["retry-after"]) <= OPEN_SECONDS
    assert sandbox.witness()["asked"] == 1
