"""How does an installation of Imagekeep come to be measured: its database, its users, and the process that serves?"""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.accounts import budgets, keys
from app.database.pool import Database
from app.database.schema import migrate
from bench.contenders import Contender, Start
from bench.history import plant
from bench.neighbourhood import Neighbourhood, environment
from bench.processes import ask, free_port, running

# No user of the bench comes near it; what is measured is that it is looked at and counted.
_IMAGES_PER_DAY_MAX = 1_000_000_000
# More than any part has in flight, for what is measured is not a refusal.
_IN_FLIGHT_MAX = 1_024
_BUCKET = "bench"


@dataclass(frozen=True)
class Installation:
    """What is special about one installation. All that is not said here is as it comes."""

    name: str
    workers: int = 1
    users: int = 1
    # Whether each user has a limit, as in earnest: a row that their orders queue for.
    limited: bool = True
    # Whether the whole installation has one too: a row that every order queues for.
    all_limited: bool = False
    # Whether pictures go to a folder of this machine, as without settings, instead of the bucket.
    in_folder: bool = False
    # How many generations it has made before.
    generations: int = 0


@dataclass(frozen=True)
class Prepared:
    """An installation whose database is ready: it can be started, again and again."""

    installation: Installation
    database_url: str = field(repr=False)
    keys: tuple[str, ...] = field(repr=False)


def prepare(near: Neighbourhood, installation: Installation) -> Prepared:
    """Make its database, its history and its users."""
    database_url = near.create_database(f"of-{installation.name}")
    migrate(database_url)
    made = asyncio.run(_add_users(database_url, installation))
    return Prepared(installation, database_url, made)


async def _add_users(database_url: str, installation: Installation) -> tuple[str, ...]:
    database = Database(database_url, connections_max=1, timeout_seconds=600)
    try:
        async with database.transaction() as tx:
            users = [await keys.add_user(tx, f"user-{number}") for number in range(installation.users)]
            made = [(await keys.create_key(tx, user))[1] for user in users]
            callers = [await keys.find_caller(tx, key) for key in made]
        await plant(database, callers, installation.generations)
        async with database.transaction() as tx:
            limits = {"images_per_day_max": _IMAGES_PER_DAY_MAX}
            scopes = [f"user:{user.id}" for user in users] if installation.limited else []
            for scope in [*scopes, *(["all"] if installation.all_limited else [])]:
                await budgets.set_limits(tx, scope, limits)
    finally:
        await database.close()
    return tuple(made)


def serve(prepared: Prepared) -> Start:
    """Return what starts it: the command an operator runs, on one core, or on all for several workers."""

    @contextmanager
    def start(near: Neighbourhood) -> Iterator[Contender]:
        port = free_port()
        workers = prepared.installation.workers
        with running(
            [sys.executable, "-m", "app", "serve", "--json", "--workers", str(workers)],
            env={**environment(), **_settings(prepared, near), "PORT": str(port)},
            folder=near.folder / prepared.installation.name,
            port=port,
            cores=near.cores.measured if workers == 1 else near.cores.every,
            ready_path="/healthz",
        ) as process:
            if not prepared.installation.in_folder:
                # As a load balancer does all the time: asked so, a bucket is found to check what it is sent.
                ask(process.port, "/readyz")
            yield Contender(process, "/images", [{"Authorization": f"Bearer {key}"} for key in prepared.keys])

    return start


def _settings(prepared: Prepared, near: Neighbourhood) -> Mapping[str, str]:
    settings = {
        "DATABASE_URL": prepared.database_url,
        "TT_API_KEY": "bench-upstream-key",
        "TT_API_BASE_URL": near.upstream_url,
        "ALLOW_PRIVATE_IMAGE_HOSTS": "true",
        "UPSTREAM_IN_FLIGHT_MAX": str(_IN_FLIGHT_MAX),
        # A stop between two rounds is no reason to wait for callers who are told to go elsewhere.
        "DRAIN_NOTICE_SECONDS": "0",
    }
    if prepared.installation.in_folder:
        return settings
    return settings | {
        "S3_BUCKET": _BUCKET,
        "S3_ENDPOINT_URL": near.sink_url,
        "S3_REGION": "us-east-1",
        "S3_PATH_STYLE": "true",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
    }
