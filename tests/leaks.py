"""How do tests search everything that an installation has written and answered for what must not come out?"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote
from uuid import uuid4

import httpx
import psycopg
from sqlalchemy.engine import make_url

from tests.service import rows

TT_CANARY = "tt-canary-5f1d9c"
# Spelt otherwise in a URL than in the password itself; neither spelling may come out.
DATABASE_CANARY = "db-canary/7e2@b4"
DATABASE_SPELLINGS = (DATABASE_CANARY, quote(DATABASE_CANARY, safe=""))


@contextmanager
def canary_database(postgres_url: str) -> Iterator[str]:
    """An empty database of a user of its own, whose password is a canary."""
    name = f"canary_{uuid4().hex}"
    rows(postgres_url, f"CREATE ROLE {name} LOGIN PASSWORD '{DATABASE_CANARY}'")
    rows(postgres_url, f"CREATE DATABASE {name} OWNER {name}")
    url = make_url(postgres_url).set(database=name, username=name, password=DATABASE_CANARY)
    try:
        yield url.render_as_string(hide_password=False)
    finally:
        rows(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")
        rows(postgres_url, f"DROP ROLE {name}")


def leaks(secrets: Mapping[str, Sequence[str]], written: Mapping[str, str]) -> list[str]:
    """Which of the secrets, by name and in any of their spellings, stand in which of the places."""
    return [
        f"{name} in {place}"
        for place, text in written.items()
        for name, spellings in secrets.items()
        if any(spelling in text for spelling in spellings)
    ]


def whole(answer: httpx.Response) -> str:
    """An answer as it came: status line, headers and body."""
    headers = "".join(f"{name}: {value}\n" for name, value in answer.headers.multi_items())
    return f"{answer.status_code} {answer.reason_phrase}\n{headers}\n{answer.text}"


def answered(answers: Sequence[httpx.Response]) -> dict[str, str]:
    """Every answer as a place to look into."""
    return {f"answer {number}: {answer.request.url}": whole(answer) for number, answer in enumerate(answers)}


def dump(database_url: str) -> str:
    """Every row of every table, as text."""
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        tables = connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        names = [name for (name,) in tables.fetchall()]
        assert {"users", "api_keys", "budgets", "generations", "images"} <= set(names)
        lines = [line for name in names for (line,) in connection.execute(f"SELECT t::text FROM {name} t").fetchall()]
    return "\n".join(lines)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a neighbour that answers as `handler` does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        arguments = {"poll_interval": 0.01}
        thread = threading.Thread(target=server.serve_forever, kwargs=arguments, name="neighbour", daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
