"""Does any secret come out anywhere: in a log, an answer, a figure, a document, or the database?"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest

from tests.installation import Installation, beside, eventually, running_installation
from tests.leaks import DATABASE_SPELLINGS, TT_CANARY, answered, canary_database, dump, leaks, serving
from tests.s3_server import running_s3
from tests.sandbox_server import RunningSandbox

PROMPT = "a fox-canary-31d8 under a clear sky"
# What the sandbox makes of every prompt.
REVISED = "drawn in the sandbox"
IDEMPOTENCY_KEY = "idempotency-canary-9a4c"


@pytest.fixture
def canary_database_url(postgres_url: str) -> Iterator[str]:
    with canary_database(postgres_url) as url:
        yield url


def test_no_secret_is_written_anywhere(canary_database_url: str, sandbox: RunningSandbox, tmp_path: Path) -> None:
    with running_s3(tmp_path) as s3, serving(_Echo) as echo_url:
        env = beside(
            canary_database_url,
            sandbox,
            **s3.credentials,
            TT_API_KEY=TT_CANARY,
            S3_BUCKET=s3.bucket,
            S3_ENDPOINT_URL=s3.url,
            S3_PATH_STYLE="true",
            LOG_LEVEL="DEBUG",
            UPSTREAM_TIMEOUT_SECONDS="2",
            PENDING_LEASE_SECONDS="3",
            GENERATED_LEASE_SECONDS="2",
        )
        with running_installation(tmp_path / "secrets", env=env) as installation:
            another = installation.ask("keys", "create", "first")["key"]
            secrets = {
                "the TT API key": [TT_CANARY],
                "the first user's key": [installation.key],
                "another key": [another],
                "the database's password": DATABASE_SPELLINGS,
                "S3's secret": [s3.secret_access_key],
            }
            answers = [*use(installation, another), *break_things(installation)]
            cut_off = installation.begin(f"{PROMPT} [[hang]]")
            eventually(lambda: sandbox.witness(prompt="[[hang]]")["asked"])
            installation.kill9()

            installation.env["TT_API_BASE_URL"] = echo_url
            installation.start()
            answers += [installation.order(f"{PROMPT} {status}") for status in (200, 400, 401, 500)]
            # The store is away: what its driver says of that is logged as well.
            s3.stop()
            answers += [
                installation.client.get("/readyz"),
                installation.client.get(answers[0].json()["images"][0]["url"]),
            ]
            s3.start()
            installation.reaches(cut_off, "unknown")
            installation.env["DATABASE_URL"] = canary_database_url.replace("%40", "%41")
            refused = installation.run("generations", "list")
            installation.stop()

            written = {
                "standard error": installation.stderr.read_text(),
                "the second start's banner": installation.stdout.read_text(),
                "a command that was refused": refused.stdout + refused.stderr,
                "the database": dump(canary_database_url),
                **answered(answers),
            }

    assert refused.returncode == 1
    # Each place has been looked into: it holds what it must.
    assert written["standard error"].count("generation_moved") >= 8
    assert "password authentication failed" in written["a command that was refused"]
    assert PROMPT in written["the database"]
    assert REVISED in written["the database"]
    assert leaks(secrets, written) == []
    # Prompts are the callers' own affair, and what a source URL is signed with opens the picture to anybody.
    ours = written["standard error"] + written["the second start's banner"] + figures_of(answers)
    assert [word for word in (PROMPT, REVISED, IDEMPOTENCY_KEY) if word in ours] == []
    assert re.search(r"\bsig=(?!\[signature\])", ours) is None


def use(installation: Installation, another: str) -> list[httpx.Response]:
    """What a caller does when all goes well; the first answer is an image's."""
    client = installation.client
    ordered = installation.order(PROMPT, headers={"idempotency-key": IDEMPOTENCY_KEY})
    assert ordered.status_code == 200, ordered.text
    paths = ["/images", "/me", "/models", "/docs", "/openapi.json", "/metrics", "/readyz", "/healthz"]
    generation_id = ordered.json()["id"]
    return [
        ordered,
        installation.order(PROMPT, headers={"authorization": f"Bearer {another}"}),
        *(client.get(path) for path in [*paths, f"/images/{generation_id}", ordered.json()["images"][0]["url"]]),
    ]


def break_things(installation: Installation) -> list[httpx.Response]:
    """Every way of being refused, by us and by upstream, and keys where they don't belong."""
    client, key = installation.client, installation.key
    unknown_key = "ik_user_" + "0" * 32 + "000000"
    authorizations = ["", key, f"Basic {key}", f"Bearer {key}x", f"Bearer {key[:-1]}", f"Bearer {unknown_key}"]
    faults = [
        "[[status 401]]",
        "[[status 402]]",
        "[[status 500]]",
        "[[drop]]",
        "[[reset]]",
        "[[garbage]]",
        "[[refuse]]",
    ]
    faults += ["[[picture garbage]] [[expires 1]]", "[[picture missing]] [[expires 1]]", "[[html 502]]"]
    # Answers that hold a revised prompt, with a picture and without, and such as can't be read to their end.
    faults += ["[[b64]]", "[[bad-b64]]", "[[no-url]]", "[[cut]]", "[[broken-json]]"]
    with ThreadPoolExecutor(4) as threads:
        ordered = list(threads.map(lambda fault: installation.order(f"{PROMPT} {fault}"), faults))
    return [
        *ordered,
        *(client.get("/me", headers={"authorization": value}) for value in authorizations),
        client.get("/me", headers={"x-api-key": key, "x-request-id": f"my id is {key}"}),
        client.get("/images", params={"before": key}),
        client.get(f"/images/{key}"),
        client.post("/images", content=b"{", headers={"idempotency-key": "a b"}),
        client.post("/images", json={"prompt": PROMPT, "size": key}),
        *(
            client.post(path, json={"prompt": f"{PROMPT} {fault}", **field}, headers=headers)
            for path in ("/v1/images/generations", "/openai/v1/images/generations")
            for fault, field, headers in [
                ("", {"response_format": "url", "user": key}, {"tt-api-key": key}),
                ("", {"size": key}, {"tt-api-key": f"{key}x"}),
                ("", {"style": key}, {"tt-api-key": key}),
                ("[[status 401]]", {}, {"idempotency-key": "a b"}),
                ("[[status 401]]", {}, {}),
                ("[[drop]]", {}, {}),
            ]
        ),
        client.get(f"/v1/models/{key}"),
    ]


def figures_of(answers: list[httpx.Response]) -> str:
    """What /metrics, /docs and the schema said."""
    told = [answer.text for answer in answers if answer.request.url.path in ("/metrics", "/docs", "/openapi.json")]
    assert len(told) == 3
    return "\n".join(told)


class _Echo(BaseHTTPRequestHandler):
    """Repeats all that it is sent, the key too, wherever an answer has room, under the status the prompt ends with."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status = int(body.split(PROMPT.encode())[1][:4])
        echoed = str(self.headers).encode() + body
        assert TT_CANARY.encode() in echoed
        self.send_response(status, f"your key is {TT_CANARY}")
        self.send_header("x-echo", TT_CANARY)
        self.send_header("content-length", str(len(echoed)))
        self.end_headers()
        self.wfile.write(echoed)

    def log_message(self, format: str, *arguments: object) -> None:
        """Not into the tests' output."""
