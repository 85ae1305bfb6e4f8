"""How do tests ask as a stranger would, and send bytes that no HTTP client would?"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

import httpx
from pydantic_core import from_json

from tests.service import Service


def ask(
    method: str, url: str, *, headers: httpx.Headers | dict[str, str] | None = None, content: bytes | None = None
) -> httpx.Response:
    """Ask as somebody without a key, following no redirect.

    httpx.get would load every certificate authority first, which takes longer than the request.
    """
    with httpx.Client(verify=False, trust_env=False, timeout=60) as client:
        return client.request(method, url, headers=headers, content=content)


@dataclass(frozen=True)
class Answer:
    """An answer as it came, header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return from_json(self.body)


def send_raw(
    service: Service, method: str, target: str, *, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
) -> Answer:
    """Send a request as it is written here, with the first user's key unless `headers` bring one."""
    lines = [f"{method} {target} HTTP/1.1".encode(), b"host: imagekeep", b"connection: close"]
    if not any(name.lower() == b"authorization" for name, _ in headers):
        lines.append(b"authorization: Bearer " + service.key.encode())
    lines += [name + b": " + value for name, value in headers]
    lines.append(b"content-length: %d" % len(body))
    url = httpx.URL(service.url)
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        answer = HTTPResponse(connection, method=method)
        answer.begin()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, told, answer.read())
