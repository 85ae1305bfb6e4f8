"""How do tests get a sandbox on a real port?"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from app.sandbox.server import SandboxServer, bind, url_of
from app.sandbox.wire import create_sandbox

API_KEY = "a-key-of-the-sandbox"


@dataclass(frozen=True)
class RunningSandbox:
    """A sandbox at work: `url` is where upstream is, and where its pictures are."""

    url: str
    _client: httpx.Client

    @property
    def port(self) -> int:
        """The port it listens on, to start another one there later."""
        return httpx.URL(self.url).port or 80

    def witness(self, *, tag: str | None = None, prompt: str | None = None) -> dict[str, Any]:
        """What was asked and billed: {asked, billed, orders, pictures: {asked, headers}}.

        With `tag` (ordered as `[[id TAG]]`) or a piece of a `prompt`, of those orders only.
        """
        query = {name: value for name, value in (("tag", tag), ("prompt", prompt)) if value is not None}
        report: dict[str, Any] = self._client.get("/witness", params=query).raise_for_status().json()
        return report

    def reset(self) -> None:
        """Lets the witness forget everything."""
        self._client.delete("/witness").raise_for_status()


@contextmanager
def running_sandbox(
    *,
    port: int = 0,
    api_keys: frozenset[str] | None = None,
    draw: bool = True,
    url_lifetime_seconds: float = 7200,
    delay_seconds: float = 0,
) -> Iterator[RunningSandbox]:
    """A sandbox in a thread of this process, on 127.0.0.1; ready when this yields, gone when it returns.

    Any key that is not empty will do, unless `api_keys` names some.
    """
    listener = bind("127.0.0.1", port)
    url = url_of(listener)
    app = create_sandbox(
        api_keys=api_keys,
        public_url=url,
        draw=draw,
        url_lifetime_seconds=url_lifetime_seconds,
        delay_seconds=delay_seconds,
    )
    server = SandboxServer(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="sandbox", daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the sandbox did not start"
            time.sleep(0.001)
        # Without verification no certificates are loaded, which would take longer than all the rest.
        with httpx.Client(base_url=url, verify=False, trust_env=False) as client:
            yield RunningSandbox(url, client)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
    assert not thread.is_alive(), "the sandbox did not stop"
