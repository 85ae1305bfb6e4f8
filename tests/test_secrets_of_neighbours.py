"""Does a neighbour that fails, the store or the database, bring out the credentials it is reached with?"""

from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
from sqlalchemy.engine import URL, make_url

from app.accounts.keys import make_key
from tests.installation import Installation, beside, eventually, refuses, running_installation
from tests.leaks import DATABASE_SPELLINGS, answered, canary_database, dump, leaks, serving
from tests.s3_server import running_s3
from tests.sandbox_server import RunningSandbox
from tests.tcp_proxy import TcpProxy

SESSION_CANARY = "session-canary-6b1f"
WRONG_SECRET_CANARY = "s3-canary-8d20"
# What the commands say, one after the other, of why they can't do their work.
TOLD = ("SignatureDoesNotMatch", "NoSuchBucket", "SignatureDoesNotMatch", "SignatureDoesNotMatch")


def test_a_store_that_fails_brings_no_credentials_out(
    database_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    with (
        running_s3(tmp_path) as s3,
        TcpProxy("127.0.0.1", httpx.URL(s3.url).port or 0) as proxy,
        serving(_Repeating) as repeating_url,
    ):
        credentials = {**s3.credentials, "AWS_SESSION_TOKEN": SESSION_CANARY}
        where = {"S3_BUCKET": s3.bucket, "S3_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "S3_PATH_STYLE": "true"}
        env = beside(database_url, sandbox, **credentials, **where, LOG_LEVEL="DEBUG", STORAGE_PATIENCE_SECONDS="2")
        with running_installation(tmp_path / "storage", env=env) as installation:
            answers = ask_about_storage(installation)
            proxy.cut_answers()
            answers += ask_about_storage(installation)
            proxy.refuse()
            answers += ask_about_storage(installation)
            # First: recovery would carry home what the commands are to fail at.
            installation.stop()
            proxy.pass_through()
            installation.env["AWS_SECRET_ACCESS_KEY"] = WRONG_SECRET_CANARY
            commands = [installation.run("storage", "move")]
            installation.env |= {"AWS_SECRET_ACCESS_KEY": s3.secret_access_key, "S3_BUCKET": "nowhere"}
            commands.append(installation.run("storage", "move"))
            installation.env["S3_ENDPOINT_URL"] = repeating_url
            commands += [installation.run("storage", "move"), installation.run("verify")]
            installation.start()
            answers += ask_about_storage(installation)
            log = installation.stderr.read_text()

    said = {f"what command {number} said": command.stdout + command.stderr for number, command in enumerate(commands)}
    secrets = {
        "the access key's id": [s3.access_key_id],
        "the secret": [s3.secret_access_key, WRONG_SECRET_CANARY],
        "the session token": [SESSION_CANARY],
    }
    # Each fault was met and told.
    assert "ConnectionClosedError" in log
    assert [fault in text for fault, text in zip(TOLD, said.values(), strict=True)] == [True] * 4
    assert "SignatureDoesNotMatch" in log
    assert leaks(secrets, {"the log": log, "the database": dump(database_url), **said, **answered(answers)}) == []


def test_a_database_that_is_away_or_refuses_brings_no_password_out(
    postgres_url: str, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    with canary_database(postgres_url) as database_url:
        url = make_url(database_url)
        with TcpProxy(url.host or "", url.port or 0) as proxy:
            by_proxy = spelt(url.set(port=proxy.port))
            env = beside(by_proxy, sandbox, LOG_LEVEL="DEBUG", DATABASE_TIMEOUT_SECONDS="1", DRAIN_SECONDS="5")
            with closing(Installation(tmp_path / "database", env)) as installation:
                proxy.refuse()
                installation.launch("--json")
                installation.client.headers["authorization"] = f"Bearer {make_key()}"
                eventually(lambda: not refuses(installation.port))
                answers = ask_about_database(installation)
                proxy.pass_through()
                installation.take_banner()
                for cut_off in (proxy.refuse, proxy.blackhole):
                    late = installation.begin("a fox [[hang 0.5]]")
                    cut_off()
                    answers += ask_about_database(installation)
                    proxy.pass_through()
                    installation.reaches(late, "completed")
                proxy.refuse()
                commands = [installation.run("users", "list")]
                installation.stop()
                wrong = [url.set(password=f"{url.password}!"), url.set(database="absent"), url.set(username="nobody")]
                for refused in [*map(spelt, wrong), database_url.replace("://", ":/"), f"{database_url}?sslmode=x"]:
                    installation.env["DATABASE_URL"] = refused
                    commands.append(installation.run("users", "list"))
                installation.env["DATABASE_URL"] = spelt(wrong[0])
                commands.append(installation.run("serve"))
                log = installation.stderr.read_text()

    said = {f"what command {number} said": command.stdout + command.stderr for number, command in enumerate(commands)}
    # Each was met and told.
    assert [answer.status_code for answer in answers] == [503] * 9
    assert {command.returncode for command in commands} <= {1, 2}
    assert '"database_not_there"' in log
    assert all(any(words in text for text in said.values()) for words in ("authentication failed", "does not exist"))
    assert leaks({"the database's password": DATABASE_SPELLINGS}, {"the log": log, **said, **answered(answers)}) == []


def test_a_password_that_was_written_as_it_is_into_the_url_is_not_told_as_a_host(
    tmp_path: Path,
) -> None:
    # Up to the last @ it is the password; the driver and make_url see a host in what follows the first.
    env = {"TT_API_KEY": "a-key", "DATABASE_URL": "postgresql://ada:db-canary@with-an-at@127.0.0.1:9/imagekeep"}
    with closing(Installation(tmp_path / "mistyped", env)) as installation:
        said = [installation.run(command) for command in ("migrate", "reconcile")]

    assert all(command.returncode != 0 and "DATABASE_URL" in command.stderr for command in said)
    assert ["with-an-at" in command.stdout + command.stderr for command in said] == [False, False]


def spelt(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def ask_about_database(installation: Installation) -> list[httpx.Response]:
    """An order, one's account and what the service says of itself."""
    return [installation.order("a fox"), installation.client.get("/me"), installation.client.get("/readyz")]


def ask_about_storage(installation: Installation) -> list[httpx.Response]:
    """An order, its picture, and what the service says of itself."""
    client = installation.client
    ordered = installation.order("a fox")
    assert ordered.status_code == 200, ordered.text
    shown = client.get(ordered.json()["images"][0]["url"])
    return [ordered, shown, *(client.get(path) for path in ("/readyz", "/metrics", "/images"))]


class _Repeating(BaseHTTPRequestHandler):
    """Refuses, as S3 does, with words that quote the request, and more of it than S3 would."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        quoted = str(self.headers)
        assert SESSION_CANARY in quoted
        words = f"<Error><Code>SignatureDoesNotMatch</Code><Message>{quoted}</Message></Error>".encode()
        self.send_response(403, self.headers["authorization"])
        self.send_header("x-amz-request-id", self.headers["x-amz-security-token"])
        self.send_header("content-length", str(len(words)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(words)

    do_GET = do_HEAD = do_DELETE = do_PUT

    def log_message(self, format: str, *arguments: object) -> None:
        """Not into the tests' output."""
