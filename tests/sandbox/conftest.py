"""What do the sandbox's own tests share?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.sandbox_server import API_KEY, RunningSandbox, running_sandbox

SEED_ROUTE = "/openai/v1/images/generations"
BARE_ROUTE = "/v1/images/generations"


@dataclass(frozen=True)
class Customer:
    """Somebody with a key who orders pictures of one sandbox."""

    client: httpx.Client

    def order(self, prompt: str, *, route: str = SEED_ROUTE, **fields: Any) -> httpx.Response:
        """Orders one picture of 1024x1024, unless `fields` says otherwise."""
        return self.client.post(route, json={"prompt": prompt, "size": "1024x1024", **fields})

    def picture_url(self, prompt: str, **fields: Any) -> str:
        """The URL of the first picture of an order that succeeds."""
        url: str = self.order(prompt, **fields).raise_for_status().json()["data"]["data"][0]["url"]
        return url

    def picture(self, prompt: str, **fields: Any) -> httpx.Response:
        """The GET of the first picture of an order that succeeds."""
        return self.client.get(self.picture_url(prompt, **fields))


@pytest.fixture(scope="module")
def running() -> Iterator[RunningSandbox]:
    with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running: RunningSandbox) -> RunningSandbox:
    running.reset()
    return running


@pytest.fixture
def customer(sandbox: RunningSandbox) -> Iterator[Customer]:
    with httpx.Client(
        base_url=sandbox.url, headers={"TT-API-KEY": API_KEY}, verify=False, trust_env=False, timeout=10
    ) as client:
        yield Customer(client)
