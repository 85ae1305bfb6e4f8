"""How does a client leave before its answer?"""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import httpx

from tests.api.books import wait_until
from tests.api.surfaces import Surface
from tests.sandbox_server import RunningSandbox
from tests.service import Service


@contextmanager
def leaving(
    surface: Surface, service: Service, prompt: str, *, headers: Mapping[str, str] | None = None
) -> Iterator[None]:
    """An order without an Idempotency-Key, whose client closes the connection as this returns.

    The departure is written down when it has returned.
    """
    with gone(surface, service, prompt, headers=headers):
        yield
        left_before = departures(service)
    wait_until(lambda: departures(service) > left_before)


@contextmanager
def gone(
    surface: Surface, service: Service, prompt: str, *, headers: Mapping[str, str] | None = None
) -> Iterator[None]:
    """As `leaving`, and not waited for."""
    url = httpx.URL(service.url)
    with closing(http.client.HTTPConnection(url.host, url.port or 80)) as connection:
        body = json.dumps({"prompt": prompt})
        connection.request("POST", surface.path, body, {**surface.key_headers(service.key), **(headers or {})})
        yield


def order_and_leave(surface: Surface, service: Service, sandbox: RunningSandbox, prompt: str) -> None:
    """Order, and leave once upstream has the order."""
    asked_before = sandbox.witness()["asked"]
    with leaving(surface, service, prompt):
        wait_until(lambda: sandbox.witness()["asked"] > asked_before)


def departures(service: Service) -> int:
    """How many generations there are whose client has no answer, and whom nobody has joined since."""
    (row,) = service.rows("SELECT count(*) AS n FROM generations WHERE left_at IS NOT NULL")
    return int(row["n"])
