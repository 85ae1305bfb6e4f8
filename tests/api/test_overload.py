"""Is a full process quick to say so, to clients that read it, and does it bound who waits in it?"""

import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.api.books import count, database_away, slow_prompt, wait_until
from tests.api.test_error_map import assert_problem
from tests.api.wire import ask
from tests.sandbox_server import RunningSandbox
from tests.service import Service, running_service
from tests.tcp_proxy import TcpProxy

KEYED = {"idempotency-key": "first"}


@pytest.fixture
def upstream(sandbox: RunningSandbox) -> Iterator[TcpProxy]:
    """What stands between the narrow service and upstream, and holds back what a test wants in flight."""
    with TcpProxy("127.0.0.1", sandbox.port) as proxy:
        yield proxy


@pytest.fixture
def narrow(database_url: str, upstream: TcpProxy, data_dir: Path) -> Iterator[Service]:
    """A service that runs one generation at a time, and lets one client wait beside its own."""
    with running_service(
        database_url=database_url,
        upstream_url=f"http://127.0.0.1:{upstream.port}",
        data_dir=data_dir,
        upstream_in_flight_max=1,
        waiters_max=1,
    ) as running:
        yield running


@contextmanager
def full(service: Service, upstream: TcpProxy) -> Iterator[None]:
    """Its one slot is taken, by an order with the key `first`, until this returns or upstream is let through."""
    upstream.blackhole()
    with ThreadPoolExecutor(1) as thread:
        order = thread.submit(service.order, "a slow fox", headers=KEYED)
        try:
            wait_until(lambda: upstream.connections == 1)
            yield
        finally:
            upstream.pass_through()
    assert order.result().status_code == 200


def test_a_full_process_refuses_without_asking_its_database(narrow: Service, upstream: TcpProxy) -> None:
    with full(narrow, upstream), database_away(narrow):
        answer = narrow.order("a hare")

    assert_problem(answer, 503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("key", [None, "ik_user_mistyped"])
def test_whoever_has_no_key_is_told_so_by_a_full_process_too(
    narrow: Service, upstream: TcpProxy, key: str | None
) -> None:
    with full(narrow, upstream):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = ask("POST", f"{narrow.url}/images", content=b'{"prompt": "a hare"}', headers=headers)

    assert answer.status_code == 401


def test_a_full_process_answers_a_replay(narrow: Service, upstream: TcpProxy) -> None:
    with full(narrow, upstream):
        answer = narrow.order("a slow fox", headers={**KEYED, "prefer": "respond-async"})

    assert answer.status_code == 202
    assert count(narrow) == 1


def head_of(service: Service, size: int, *more: bytes) -> bytes:
    lines = [b"POST /images HTTP/1.1", b"host: imagekeep", b"authorization: Bearer " + service.key.encode()]
    return b"\r\n".join([*lines, b"content-length: %d" % size, *more, b"", b""])


def connect(service: Service) -> socket.socket:
    url = httpx.URL(service.url)
    return socket.create_connection((url.host, url.port or 80), timeout=20)


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str]]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read())


def test_a_refusal_does_not_wait_for_the_body(narrow: Service, upstream: TcpProxy) -> None:
    with full(narrow, upstream), connect(narrow) as connection:
        connection.sendall(head_of(narrow, 60_000) + b" " * 1_000)

        status, problem = read_answer(connection)

    assert (status, problem["code"]) == (503, "overloaded")


def test_the_connection_of_a_refused_order_is_good_for_the_next(narrow: Service, upstream: TcpProxy) -> None:
    with full(narrow, upstream), connect(narrow) as connection:
        connection.sendall(head_of(narrow, 60_000) + b" " * 1_000)
        first, _ = read_answer(connection)
        connection.sendall(b" " * 59_000 + b"GET /healthz HTTP/1.1\r\nhost: imagekeep\r\n\r\n")

        second, _ = read_answer(connection)

    assert (first, second) == (503, 200)


@pytest.mark.parametrize("size", [60_000, 5_000_000])
def test_a_client_that_sends_all_of_its_body_first_and_closes_then_reads_the_refusal(
    narrow: Service, upstream: TcpProxy, size: int
) -> None:
    with full(narrow, upstream), connect(narrow) as connection:
        # Closed over unread bytes, the connection would be reset, and the answer lost with it.
        connection.sendall(head_of(narrow, size, b"connection: close") + b" " * size)

        status, problem = read_answer(connection)

    assert (status, problem["code"]) == (503, "overloaded")


def test_a_client_that_asks_before_it_sends_its_body_is_refused_without_it(narrow: Service, upstream: TcpProxy) -> None:
    with full(narrow, upstream), connect(narrow) as connection:
        connection.sendall(head_of(narrow, 60_000, b"expect: 100-continue"))

        status, problem = read_answer(connection)

    assert (status, problem["code"]) == (503, "overloaded")


# Who waits


@contextmanager
def waiting(service: Service, path: str) -> Iterator[Future[httpx.Response]]:
    """A client that waits there for a generation; the service has it counted when this yields."""
    with service_client(service) as client, ThreadPoolExecutor(1) as thread:
        waiter = thread.submit(client.get, path, headers={"prefer": "wait=30"})
        wait_until(lambda: "\nimagekeep_waiters 1.0\n" in service.client.get("/metrics").text)
        yield waiter


def service_client(service: Service) -> httpx.Client:
    """Another client of the same user, on a connection of its own."""
    return httpx.Client(base_url=service.url, headers=service.client.headers, verify=False, trust_env=False, timeout=60)


def test_beyond_the_waiters_it_takes_a_client_has_the_state_at_once(narrow: Service, upstream: TcpProxy) -> None:
    with full(narrow, upstream):
        path = f"/images/{narrow.generation()['id']}"
        with waiting(narrow, path) as waiter:
            polled = narrow.client.get(path, headers={"prefer": "wait=30"})
            again = narrow.order("a slow fox", headers=KEYED)

            assert not waiter.done()
            upstream.pass_through()
        assert (polled.status_code, polled.json()["state"]) == (200, "pending")
        assert "preference-applied" not in polled.headers
        assert int(polled.headers["retry-after"]) >= 1
        assert (again.status_code, again.headers["location"]) == (202, path)
        assert int(again.headers["retry-after"]) >= 1
        assert waiter.result().json()["state"] == "completed"


def test_when_a_waiter_has_gone_another_may_wait(narrow: Service, upstream: TcpProxy) -> None:
    with full(narrow, upstream):
        path = f"/images/{narrow.generation()['id']}"
        for _ in range(2):
            answer = narrow.client.get(path, headers={"prefer": "wait=1"})
            assert answer.headers["preference-applied"] == "wait=1"


def test_an_order_of_ones_own_is_waited_for_by_a_service_that_lets_nobody_wait(
    database_url: str, sandbox: RunningSandbox, data_dir: Path
) -> None:
    with running_service(
        database_url=database_url, upstream_url=sandbox.url, data_dir=data_dir, waiters_max=0
    ) as service:
        answer = service.order(slow_prompt())

    assert answer.status_code == 200
