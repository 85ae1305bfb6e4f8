"""What stands around the replicas while faults are played: Postgres, the witness, storage, users with limits?"""

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import certifi
import httpx

from app.accounts import budgets, keys
from app.database.pool import Database
from app.database.schema import migrate
from app.sandbox.drawing import draw_blank, sign
from tests.faults.fleet import CHECKOUT
from tests.faults.postgres import CrashingPostgres
from tests.s3_server import S3Server
from tests.service import TT_API_KEY, rows

# The product's minutes as seconds: 300, 330, 90 and 10 become these. A source lives for two hours, far more than 40
# leases: what is lost here would be lost there.
UPSTREAM_SECONDS = 2.0
PENDING_LEASE_SECONDS = 3.0
GENERATED_LEASE_SECONDS = 3.0
SETTINGS: Mapping[str, Any] = {
    "tt_api_key": TT_API_KEY,
    "allow_private_image_hosts": True,
    "public_url": "http://images.invalid",
    "upstream_timeout_seconds": UPSTREAM_SECONDS,
    "upstream_connect_timeout_seconds": 1,
    "pending_lease_seconds": PENDING_LEASE_SECONDS,
    "generated_lease_seconds": GENERATED_LEASE_SECONDS,
    "recovery_interval_seconds": 0.4,
    "image_timeout_seconds": 1.5,
    "storage_patience_seconds": 0.7,
    "database_connections_max": 4,
    "database_timeout_seconds": 3,
    "drain_seconds": 20,
    "drain_notice_seconds": 0.2,
    # Faults are ordered by the dozen: a breaker that opened would keep the others out.
    "breaker_seconds": 0,
    "log_level": "DEBUG",
    "log_format": "json",
}

# Every kind of limit; some are spent within seconds.
USERS: Mapping[str, Mapping[str, int]] = {
    "free": {},
    "daily": {"images_per_day_max": 12},
    "monthly": {"images_per_month_max": 15},
    "spender": {"micros_per_month_max": 150_000},
    "ending": {"images_total_max": 20},
    "narrow": {"in_flight_max": 2},
    "hurried": {"requests_per_minute_max": 60},
    "switched": {},
    "revoked": {},
}
# Never reached, but counted and locked by every order.
INSTALLATION = {"in_flight_max": 10_000, "images_per_month_max": 1_000_000, "micros_per_month_max": 10**12}


@dataclass(frozen=True)
class Stage:
    """What a part plays its faults on. `keys` are two API keys of each user."""

    folder: Path
    postgres: CrashingPostgres
    sandbox_url: str
    settings: Mapping[str, Any]
    env: Mapping[str, str]
    keys: Mapping[str, tuple[str, ...]]
    database: Database
    s3: S3Server | None

    @property
    def database_url(self) -> str:
        return self.postgres.url

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """What the database holds."""
        return rows(self.postgres.url, query, *parameters)

    def witness(self) -> Mapping[str, Any]:
        """What was asked and billed, as the sandbox tells it."""
        report: dict[str, Any] = httpx.get(f"{self.sandbox_url}/witness", trust_env=False, timeout=30).json()
        return report

    def objects(self) -> dict[str, bytes]:
        """The SHA-256 of every object in storage, by its key. Parts of files that a kill left are no objects."""
        if self.s3 is not None:
            # Beside the pictures lies what a replica wrote to see whether it may.
            pictures = {key: body for key, body in self.s3.objects().items() if not key.endswith(".txt")}
            return {key: hashlib.sha256(body).digest() for key, body in pictures.items()}
        root = self.folder / "data" / "images"
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).digest()
            for path in root.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }


@asynccontextmanager
async def opened_stage(
    folder: Path, *, in_s3: bool = False, more: Mapping[str, Any] = MappingProxyType({})
) -> AsyncIterator[Stage]:
    """A migrated Postgres, a sandbox as a process of its own, users with keys and limits, and no replica yet.

    `more` are settings of this stage alone.
    """
    with CrashingPostgres(folder / "postgres") as postgres:
        await asyncio.to_thread(migrate, postgres.url)
        sandbox, port = _start_sandbox()
        s3 = _open_s3(folder) if in_s3 else None
        database = Database(postgres.url, connections_max=2, timeout_seconds=10)
        try:
            settings = {
                **SETTINGS,
                "tt_api_base_url": f"http://127.0.0.1:{port}",
                "data_dir": str(folder / "data"),
                **_s3_settings(s3),
                **more,
            }
            made = {name: await _add_user(database, name, limits) for name, limits in USERS.items()}
            async with database.transaction() as tx:
                await budgets.set_limits(tx, "all", INSTALLATION)
            await _listening(port)
            env = {"SSL_CERT_FILE": str(_one_authority(folder)), **(s3.credentials if s3 is not None else {})}
            yield Stage(folder, postgres, settings["tt_api_base_url"], settings, env, made, database, s3)
        finally:
            await database.close()
            if s3 is not None:
                s3.stop()
            sandbox.kill()
            sandbox.wait()


@lru_cache(maxsize=20_000)
def expected_sha256(tag: str, image_format: str) -> bytes:
    """What the picture of an order's tag must be, to the byte."""
    return hashlib.sha256(sign(_blank(image_format), image_format, tag)).digest()


@lru_cache
def _blank(image_format: str) -> bytes:
    return draw_blank((1024, 1024), image_format)


def _one_authority(folder: Path) -> Path:
    """Return a file with one certificate authority: all of them take longer to load than a replica lives."""
    end = "-----END CERTIFICATE-----"
    first, _, _ = Path(certifi.where()).read_text().partition(end)
    path = folder / "authority.pem"
    path.write_text(f"{first}{end}\n")
    return path


async def _add_user(database: Database, name: str, limits: Mapping[str, int]) -> tuple[str, ...]:
    async with database.transaction() as tx:
        user = await keys.add_user(tx, name)
        made = [await keys.create_key(tx, user) for _ in range(2)]
        if limits:
            await budgets.set_limits(tx, f"user:{user.id}", dict(limits))
        else:
            # One of the two keys has a limit of its own.
            await budgets.set_limits(tx, f"key:{made[1][0].id}", {"images_per_day_max": 20})
        return tuple(key for _, key in made)


def _start_sandbox() -> tuple["subprocess.Popen[bytes]", int]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.sandbox", "--port", str(port), "--parent", str(os.getpid()), "--no-draw"]
    return subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL), port


async def _listening(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


def _open_s3(folder: Path) -> S3Server:
    server = S3Server(folder)
    server.start()
    return server


def _s3_settings(s3: S3Server | None) -> dict[str, Any]:
    if s3 is None:
        return {}
    return {"s3_bucket": s3.bucket, "s3_endpoint_url": s3.url, "s3_region": "us-east-1", "s3_path_style": True}
