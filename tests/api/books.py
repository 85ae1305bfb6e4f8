"""What do the books say: limits and their use, and what one order left in them?"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
from psycopg import sql

from tests.sandbox_server import RunningSandbox
from tests.service import Service

# Every limit, none of them near: a user's row in `budgets` exists, and shows what was held.
WIDE_LIMITS: dict[str, int] = {
    "in_flight_max": 50,
    "requests_per_minute_max": 1_000,
    "images_per_day_max": 100,
    "images_per_month_max": 1_000,
    "images_total_max": 10_000,
    "micros_per_month_max": 100_000_000,
}
NOTHING_USED = {"in_flight": 0, "images_day": 0, "images_month": 0, "images_total": 0, "micros_month": 0}
# One dall-e-3 picture of the default size and quality.
ONE_USED = {"in_flight": 0, "images_day": 1, "images_month": 1, "images_total": 1, "micros_month": 10_000}

# Long enough to ask something meanwhile, also on a busy machine.
SLOW_SECONDS = 0.6


_SCOPES = {
    "all": "SELECT 'all' AS scope",
    "user": "SELECT 'user:' || id AS scope FROM users WHERE name = 'first'",
    "key": "SELECT 'key:' || k.id AS scope FROM api_keys k JOIN users u ON u.id = k.user_id WHERE u.name = 'first'",
}


def limit(service: Service, kind: str = "user", **limits: int) -> None:
    """Limit what the first `user` may use, their `key`, or `all`; without limits given, by WIDE_LIMITS.

    As the operator's command does, on books that have counted nothing in that scope so far.
    """
    chosen = limits or WIDE_LIMITS
    names, values = ", ".join(chosen), ", ".join(str(maximum) for maximum in chosen.values())
    changed = ", ".join(f"{name} = excluded.{name}" for name in chosen)
    service.rows(
        f"INSERT INTO budgets (scope, {names}) SELECT scope, {values} FROM ({_SCOPES[kind]}) s"
        f" ON CONFLICT (scope) DO UPDATE SET {changed}"
    )


def used(service: Service, kind: str = "user") -> dict[str, int]:
    """What a limited scope has used."""
    (row,) = service.rows(f"SELECT b.* FROM budgets b JOIN ({_SCOPES[kind]}) s ON s.scope = b.scope")
    return {name: row[name] for name in NOTHING_USED}


def figures(generation: dict[str, Any]) -> tuple[int, int, int | None, int | None]:
    """Held images and micros, settled images and micros."""
    names = ("held_images", "held_micros", "settled_images", "settled_micros")
    held_images, held_micros, settled_images, settled_micros = (generation[name] for name in names)
    return held_images, held_micros, settled_images, settled_micros


def wait_until(condition: Callable[[], object], *, seconds: float = 20) -> None:
    """Return as soon as the condition holds; fail when it doesn't within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def slow_prompt(seconds: float = SLOW_SECONDS) -> str:
    """What an order says that upstream answers only after that long."""
    return f"a slow fox [[delay {seconds}]]"


@contextmanager
def in_flight(
    service: Service, sandbox: RunningSandbox, *, seconds: float = SLOW_SECONDS, headers: dict[str, str] | None = None
) -> Iterator[Future[httpx.Response]]:
    """An order of `slow_prompt` that upstream has, and answers only after that long. Its answer is there in the end."""
    asked_before = sandbox.witness()["asked"]
    with ThreadPoolExecutor(1) as thread:
        order = thread.submit(service.order, slow_prompt(seconds), headers=headers)
        wait_until(lambda: sandbox.witness()["asked"] > asked_before)
        yield order


# The service's own connections; those of a test stay.
_CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = 'imagekeep'"


@contextmanager
def database_away(service: Service) -> Iterator[None]:
    """The service's connections to its database are cut, and new ones refused, until this returns."""
    server, _, name = service.database_url.rpartition("/")
    name, _, options = name.partition("?")
    admin = f"{server}/postgres?{options}".replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        connection.execute(_CUT, (name,))
        try:
            yield
        finally:
            connection.execute(allow.format(sql.Identifier(name), sql.SQL("true")))


@contextmanager
def database_read_only(service: Service) -> Iterator[None]:
    """The service's database takes no writes until this returns, as a standby while another takes over."""
    (name,) = service.rows("SELECT current_database() AS name")[0].values()
    set_off = sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(sql.Identifier(name))
    set_on = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(sql.Identifier(name))
    with psycopg.connect(service.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(set_on)
        connection.execute(_CUT, (name,))
        try:
            yield
        finally:
            connection.execute(set_off)
            connection.execute(_CUT, (name,))


def count(service: Service) -> int:
    """How many generations there are."""
    return int(service.rows("SELECT count(*) AS n FROM generations")[0]["n"])
