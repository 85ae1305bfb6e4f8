"""Which clients are driven in this run, and against which service?"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from app.accounts.keys import make_key
from tests.clients.cases import UPSTREAM_SECONDS
from tests.clients.clients import CHOICE, CLIENTS, PAGE_ORIGIN, Client
from tests.clients.drives import Call, Drives
from tests.clients.environments import drive_of, missing, surroundings
from tests.sandbox_server import RunningSandbox
from tests.service import Service, add_user, running_service

# As many as the equal orders that are placed at once.
_PROCESSES = 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "client" in metafunc.fixturenames:
        metafunc.parametrize(
            "client",
            list(_chosen(getattr(metafunc.module, "KINDS", None))),
            ids=lambda client: client.name,
            scope="module",
        )


def _chosen(kinds: Sequence[str] | None) -> Iterator[Any]:
    asked = os.environ.get(CHOICE, "").split()
    for client in CLIENTS:
        if kinds is not None and client.kind not in kinds:
            continue
        if client.name in asked if asked else client.always:
            why = missing(client)
            yield pytest.param(client, marks=[pytest.mark.skip(reason=why)] if why else [])


@dataclass(frozen=True)
class Counter:
    """Where calls are made: a service with its callers' keys, and the upstream that counts what it bills."""

    service: Service
    sandbox: RunningSandbox
    keys: Mapping[str, str] = field(repr=False)

    def call(
        self,
        client: Client,
        prompt: str,
        *,
        whose_key: str = "a user's",
        timeout_seconds: float | None = None,
        **order: Any,
    ) -> Call:
        """A call of this client's, with its model and size unless the order says others."""
        order = {"prompt": prompt, "model": client.model, "size": client.size, **order}
        return Call(self.service.url, self.keys[whose_key], order, timeout_seconds)

    def upstream(self, tag: str) -> tuple[int, int]:
        """How often upstream was asked for the orders with this tag, and how many it billed."""
        report = self.sandbox.witness(tag=tag)
        return report["asked"], report["billed"]


@pytest.fixture(scope="module")
def counter(
    module_database_url: str, shared_sandbox: RunningSandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Counter]:
    with running_service(
        database_url=module_database_url,
        upstream_url=shared_sandbox.url,
        data_dir=tmp_path_factory.mktemp("clients"),
        upstream_timeout_seconds=UPSTREAM_SECONDS,
        cors_origins=PAGE_ORIGIN,
    ) as service:
        poor = add_user(module_database_url, "poor", images_per_day_max=0)
        yield Counter(service, shared_sandbox, {"a user's": service.key, "a poor user's": poor, "nobody's": make_key()})


@pytest.fixture(scope="module")
def drives(client: Client) -> Iterator[Drives]:
    """The client at work. Its environment is made first, where it isn't there yet."""
    opened = Drives(drive_of(client), surroundings(client), _PROCESSES)
    yield opened
    opened.close()


class Figure(Protocol):
    """How a test gives a figure to the table of `python -m tests.clients`; the last one of a name counts."""

    def __call__(self, name: str, value: object) -> None: ...


@pytest.fixture
def figure(client: Client, record_property: Figure) -> Figure:
    record_property("client", client.name)
    return record_property
