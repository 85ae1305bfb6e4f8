"""How does each refusal of the error map come about?"""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx

from app.accounts.keys import make_key
from tests.api.books import database_away, limit, wait_until
from tests.api.surfaces import Surface
from tests.sandbox_server import RunningSandbox
from tests.service import Service
from tests.tcp_proxy import TcpProxy

# What is ordered to bring a refusal about, and is not itself refused.
BESIDE = "an otter"
KEY = {"idempotency-key": "order-1"}


class Opening(Protocol):
    """Starts a service of the test's own, with these settings."""

    def __call__(self, *, upstream_url: str = ..., **settings: Any) -> AbstractContextManager[Service]: ...


@dataclass(frozen=True)
class Stage:
    """What a refusal is brought about with: the service that all tests share, or one that is opened for it alone."""

    surface: Surface
    service: Service
    sandbox: RunningSandbox
    data_dir: Path
    opening: Opening


@dataclass(frozen=True)
class Refused:
    """A request that is refused: an order of `fields`, unless `content` says else, to the surface's path and `tail`."""

    service: Service
    fields: Mapping[str, object] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tail: str = ""
    method: str = "POST"

    def send(self, surface: Surface, headers: Mapping[str, str]) -> httpx.Response:
        """Send it, with `headers` beside its own."""
        ordered = {"prompt": "a red fox", **self.fields}
        return surface.post(
            self.service,
            content=json.dumps(ordered).encode() if self.content is None else self.content,
            headers={**headers, **self.headers},
            path=surface.path + self.tail,
            method=self.method,
        )


Provocation = Callable[[Stage], AbstractContextManager[Refused]]


@contextmanager
def _by_itself(stage: Stage, **request: Any) -> Iterator[Refused]:
    yield Refused(stage.service, **request)


@contextmanager
def _by_upstream(stage: Stage, fault: str) -> Iterator[Refused]:
    yield Refused(stage.service, {"prompt": f"a red fox [[{fault}]]"})


@contextmanager
def _by_key(stage: Stage, key: str) -> Iterator[Refused]:
    yield Refused(stage.service, headers=stage.surface.key_headers(key))


@contextmanager
def _user_disabled(stage: Stage) -> Iterator[Refused]:
    stage.service.rows("UPDATE users SET disabled_at = now()")
    yield Refused(stage.service)


@contextmanager
def _image_deleted(stage: Stage) -> Iterator[Refused]:
    ordered = stage.service.order("a red fox", headers=KEY)
    stage.service.client.delete(ordered.headers["location"])
    yield Refused(stage.service, headers=KEY)


@contextmanager
def _idempotency_key_reused(stage: Stage) -> Iterator[Refused]:
    stage.service.order(BESIDE, headers=KEY)
    yield Refused(stage.service, headers=KEY)


@contextmanager
def _over(stage: Stage, **limits: int) -> Iterator[Refused]:
    """A limit that one order uses up."""
    limit(stage.service, "user", **limits)
    stage.service.order(BESIDE)
    yield Refused(stage.service)


@contextmanager
def _internal_error(stage: Stage) -> Iterator[Refused]:
    stage.service.order("a red fox", headers=KEY)
    # A time that Python has none for: nobody foresaw it, and no code of ours catches what comes of it.
    stage.service.rows("UPDATE generations SET created_at = 'infinity'")
    yield Refused(stage.service, headers=KEY)


@contextmanager
def _one_in_flight(stage: Stage, **settings: Any) -> Iterator[Service]:
    """A service whose one order has no answer from upstream for as long as this lasts."""
    with (
        TcpProxy("127.0.0.1", stage.sandbox.port) as upstream,
        stage.opening(upstream_url=f"http://127.0.0.1:{upstream.port}", **settings) as service,
        ThreadPoolExecutor(1) as thread,
    ):
        upstream.blackhole()
        order = thread.submit(service.order, BESIDE)
        try:
            wait_until(lambda: upstream.connections == 1)
            yield service
        finally:
            upstream.pass_through()
        assert order.result().status_code == 200


@contextmanager
def _too_many_in_flight(stage: Stage) -> Iterator[Refused]:
    with _one_in_flight(stage, limits={"in_flight_max": 1}) as service:
        yield Refused(service)


@contextmanager
def _overloaded(stage: Stage) -> Iterator[Refused]:
    with _one_in_flight(stage, upstream_in_flight_max=1) as service:
        yield Refused(service)


@contextmanager
def _upstream_unreachable(stage: Stage) -> Iterator[Refused]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with stage.opening(upstream_url=f"http://127.0.0.1:{port}") as service:
        yield Refused(service)


@contextmanager
def _database_unavailable(stage: Stage) -> Iterator[Refused]:
    with database_away(stage.service):
        yield Refused(stage.service)


@contextmanager
def _storage_unavailable(stage: Stage) -> Iterator[Refused]:
    with stage.opening(spool_bytes_max=0) as service:
        (stage.data_dir / "images").rename(stage.data_dir / "away")
        # Whoever asks whether it is ready finds out.
        service.client.get("/readyz")
        yield Refused(service)


@contextmanager
def _answer_unavailable(stage: Stage) -> Iterator[Refused]:
    """A repeat waits for what another process runs, and the database goes away meanwhile."""
    service, answered = stage.service, threading.Event()
    service.order("a red fox", headers=KEY)
    service.rows(
        "UPDATE generations SET state = 'pending', lease_until = now() + interval '1 hour', finished_at = NULL,"
        " settled_images = NULL, settled_micros = NULL"
    )

    def take_away() -> None:
        with httpx.Client(base_url=service.url, verify=False, trust_env=False) as client:
            wait_until(lambda: "\nimagekeep_waiters 1.0\n" in client.get("/metrics").text)
        with database_away(service):
            answered.wait(30)

    with ThreadPoolExecutor(1) as thread:
        taking = thread.submit(take_away)
        yield Refused(service, headers=KEY)
        answered.set()
        taking.result()


PROVOKED: Mapping[str, Provocation] = {
    "invalid_json": partial(_by_itself, content=b"no json"),
    "invalid_value": partial(_by_itself, fields={"size": "512x512"}),
    "missing_required_parameter": partial(_by_itself, content=b"{}"),
    "unsupported_parameter": partial(_by_itself, fields={"stream": True}),
    "model_not_found": partial(_by_itself, fields={"model": "dall-e-9"}),
    "content_rejected": partial(_by_upstream, fault="refuse"),
    "api_key_missing": partial(_by_key, key=""),
    "api_key_mistyped": partial(_by_key, key="sk-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH"),
    "api_key_invalid": partial(_by_key, key=make_key()),
    "user_disabled": _user_disabled,
    "not_found": partial(_by_itself, tail="/nothing/here"),
    "method_not_allowed": partial(_by_itself, method="PUT"),
    "image_deleted": _image_deleted,
    "body_too_large": partial(_by_itself, content=b" " * 1_000_000),
    "idempotency_key_reused": _idempotency_key_reused,
    "budget_spent": partial(_over, images_per_day_max=1),
    "rate_limit_exceeded": partial(_over, requests_per_minute_max=1),
    "too_many_in_flight": _too_many_in_flight,
    "internal_error": _internal_error,
    "upstream_auth_failed": partial(_by_upstream, fault="status 401"),
    "upstream_unreachable": _upstream_unreachable,
    "upstream_model_gone": partial(_by_upstream, fault="model-gone"),
    "upstream_failed": partial(_by_upstream, fault="failed-in-200"),
    "image_unavailable": partial(_by_upstream, fault="picture huge"),
    "upstream_balance_exhausted": partial(_by_upstream, fault="status 402"),
    "upstream_busy": partial(_by_upstream, fault="status 429"),
    "overloaded": _overloaded,
    "database_unavailable": _database_unavailable,
    "storage_unavailable": _storage_unavailable,
    "answer_unavailable": _answer_unavailable,
    "upstream_outcome_unknown": partial(_by_upstream, fault="drop"),
}
