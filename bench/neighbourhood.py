"""What runs beside whatever is measured, on the other cores: upstream, a bucket, and Postgres?"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from app.database.embedded import open_embedded
from bench.processes import Cores, Running, ask, free_port, running

CHECKOUT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Neighbourhood:
    """Where everything is. `folder` is for whatever those who are measured write."""

    folder: Path
    cores: Cores
    upstream: Running
    sink: Running
    postgres_pid: int
    postgres_url: str = field(repr=False)

    @property
    def upstream_url(self) -> str:
        """Where orders go."""
        return f"http://127.0.0.1:{self.upstream.port}"

    @property
    def sink_url(self) -> str:
        """Where pictures go."""
        return f"http://127.0.0.1:{self.sink.port}"

    def orders_upstream(self) -> int:
        """Return how many orders upstream has seen."""
        return int(ask(self.upstream.port, "/orders")[1])

    def pictures_taken(self) -> tuple[int, int]:
        """Return how many pictures came into the bucket, and how many bytes they had."""
        pictures, picture_bytes = ask(self.sink.port, "/taken")[1].split()
        return int(pictures), int(picture_bytes)

    def create_database(self, name: str) -> str:
        """Make an empty database, and return its URL."""
        with psycopg.connect(self.postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"{self.postgres_url.rpartition('/')[0]}/{name}"


def environment() -> dict[str, str]:
    """Return what a process of ours needs of our environment, and nothing that would change what it does."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT), "HOME": os.environ.get("HOME", "/tmp")}


def serve_module(name: str, *arguments: str, port: int) -> list[str]:
    """Return the command that runs a module of the bench on this port."""
    return [sys.executable, "-m", name, *arguments, "--port", str(port)]


@contextmanager
def open_neighbourhood(folder: Path, cores: Cores) -> Iterator[Neighbourhood]:
    """Start all of it, and stop it at the end. Commits of this Postgres wait for the disk, as they do in earnest."""
    with (
        open_embedded(folder / "postgres", role="serve") as postgres,
        _module("bench.upstream", folder / "upstream", cores) as upstream,
        _module("bench.sink", folder / "sink", cores) as sink,
    ):
        postgres_pid = int((folder / "postgres" / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])
        yield Neighbourhood(folder, cores, upstream, sink, postgres_pid, postgres.url)


@contextmanager
def _module(name: str, folder: Path, cores: Cores) -> Iterator[Running]:
    port = free_port()
    with running(
        serve_module(name, port=port), env=environment(), folder=folder, port=port, cores=cores.others, ready_path="/"
    ) as process:
        yield process
