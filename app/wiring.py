"""How is it put together: what does a process open once and share, in which order, and what does it close?"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.accounts.callers import Callers
from app.database.pool import Database
from app.generations.driver import Driver
from app.generations.leases import Leases
from app.generations.rehost import Rehost
from app.generations.runner import Runner
from app.generations.spool import Spool
from app.generations.stores import Stores
from app.settings import Settings
from app.storage.base import Storage
from app.storage.deferred import DeferredStorage
from app.storage.folder import FolderStorage
from app.upstream.breaker import Breaker
from app.upstream.catalog import Catalog, load_catalog
from app.upstream.client import Upstream
from app.upstream.download import Downloader
from app.upstream.room import Room

# The sandbox takes any key; this one says in its witness who asked.
_SANDBOX_API_KEY = "sandbox"


@dataclass(frozen=True)
class Neighbours:
    """Where the things that run beside us are: Postgres, and the sandbox unless upstream is real."""

    database_url: str = field(repr=False)
    sandbox_url: str | None = None


def _no() -> bool:
    return False


@dataclass(frozen=True)
class Departure:
    """How far this process is on its way out. Each is asked when it matters; none goes back to False."""

    # It was told to stop. Orders are still taken, but whoever sends us callers is to see that and stop.
    announced: Callable[[], bool] = _no
    # The port is closed: who still has a connection orders elsewhere.
    closed: Callable[[], bool] = _no
    # What still runs is to be cut off.
    hurried: Callable[[], bool] = _no


STAYING = Departure()


@dataclass(frozen=True)
class Wiring:
    """Everything a process shares. Handlers and commands reach each part through it."""

    settings: Settings
    database: Database
    callers: Callers
    catalog: Catalog
    stores: Stores
    breaker: Breaker
    driver: Driver
    runner: Runner
    departure: Departure

    @property
    def home(self) -> Storage:
        """Where new images go."""
        return self.stores.home

    @property
    def storages(self) -> Mapping[str, Storage]:
        """Every storage that images may live in, by name, the spool too."""
        return self.stores.by_name


def open_database(settings: Settings, database_url: str) -> Database:
    """Return the pool of connections that these settings ask for; it connects at its first use."""
    return Database(
        database_url,
        connections_max=settings.database_connections_max,
        timeout_seconds=settings.database_timeout_seconds,
    )


def open_storages(settings: Settings) -> tuple[Storage, Mapping[str, Storage]]:
    """Return where new images go, and every storage that images may live in, by name.

    The folder stays readable when S3_BUCKET is switched on: what was stored before keeps its URL. Where there is none
    beside a bucket, and none can be made, there is nothing to read. The bucket is opened when it is first needed, which
    is long after the first answer: upstream takes seconds for a picture.
    """
    folder = FolderStorage(images_folder(settings.data_dir), threads_max=settings.storage_threads_max)
    if settings.s3_bucket is None:
        return folder, {folder.name: folder}
    bucket = DeferredStorage(f"s3:{settings.s3_bucket}", lambda: open_bucket(settings))
    if not folder.is_there:
        # Asked for a picture, it could only say that it can't tell: what a crash left would wait for it for ever.
        return bucket, {bucket.name: bucket}
    return bucket, {bucket.name: bucket, folder.name: folder}


def open_bucket(settings: Settings) -> Storage:
    """Return the bucket that S3_BUCKET names; it talks to nobody yet. Takes 0.3 s of CPU, most of it once in a process.

    Raises StorageMisconfigured for settings and credentials that can't work with any bucket.
    """
    # boto3 takes 0.13 s to import, and a folder needs none of it.
    from app.storage.s3 import S3Storage  # noqa: PLC0415

    assert settings.s3_bucket is not None, "pictures go to a folder"
    return S3Storage(
        settings.s3_bucket,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        path_style=settings.s3_path_style,
        threads_max=settings.storage_threads_max,
        check_prefix=settings.s3_prefix,
    )


def images_folder(data_dir: Path) -> Path:
    """Return the folder that keeps images while no bucket is set."""
    return data_dir / "images"


def sandbox_port_note(data_dir: Path) -> Path:
    """Return the file that holds the sandbox's port, from one start to the next."""
    return data_dir / "sandbox.port"


@asynccontextmanager
async def open_wiring(
    settings: Settings, neighbours: Neighbours, departure: Departure = STAYING
) -> AsyncIterator[Wiring]:
    """Open every part once and close all of them at the end, the last opened first. Raises CatalogError."""
    async with AsyncExitStack() as closing:
        catalog = load_catalog(settings.model_catalog)
        database = open_database(settings, neighbours.database_url)
        closing.push_async_callback(database.close)
        stores = _open_stores(settings, database, closing)
        upstream = _open_upstream(settings, neighbours)
        closing.push_async_callback(upstream.close)
        downloader = Downloader(
            allow_loopback_http=settings.allow_private_image_hosts or neighbours.sandbox_url is not None,
            timeout_seconds=settings.image_timeout_seconds,
            body_bytes_max=settings.image_bytes_max,
        )
        closing.push_async_callback(downloader.close)
        rehost = Rehost(
            downloader=downloader,
            stores=stores,
            room=Room(bytes_max=settings.image_memory_bytes_max),
            pixels_max=settings.image_pixels_max,
            in_flight_max=settings.rehost_in_flight_max,
            threads_max=settings.picture_threads_max,
        )
        closing.push_async_callback(rehost.close)
        leases = Leases(
            pending_seconds=settings.pending_lease_seconds,
            generated_seconds=settings.generated_lease_seconds,
            source_lifetime_seconds=settings.source_lifetime_seconds,
            send_within_seconds=settings.pending_lease_seconds - settings.upstream_timeout_seconds,
        )
        breaker = Breaker(open_seconds=settings.breaker_seconds)
        driver = Driver(
            database=database, upstream=upstream, breaker=breaker, catalog=catalog, rehost=rehost, leases=leases
        )
        runner = Runner(
            database=database,
            driver=driver,
            stores=stores,
            breaker=breaker,
            sandbox=neighbours.sandbox_url is not None,
            storage_prefix=settings.s3_prefix,
            pending_lease_seconds=settings.pending_lease_seconds,
            in_flight_max=settings.upstream_in_flight_max,
            catalog=catalog,
            join_within_seconds=settings.join_within_seconds,
            waiters_max=settings.waiters_max,
            closed=departure.closed,
        )
        yield Wiring(settings, database, Callers(database), catalog, stores, breaker, driver, runner, departure)


def _open_stores(settings: Settings, database: Database, closing: AsyncExitStack) -> Stores:
    home, storages = open_storages(settings)
    for storage in storages.values():
        closing.push_async_callback(storage.close)
    stores = Stores(
        home=home,
        spool=Spool(database),
        others={name: storage for name, storage in storages.items() if name != home.name},
        spool_bytes_max=settings.resolved_spool_bytes_max(),
        picture_bytes_max=settings.image_bytes_max,
        patience_seconds=settings.storage_patience_seconds,
    )
    closing.push_async_callback(stores.close)
    return stores


def _open_upstream(settings: Settings, neighbours: Neighbours) -> Upstream:
    if neighbours.sandbox_url is not None:
        base_url, api_key = neighbours.sandbox_url, _SANDBOX_API_KEY
    else:
        assert settings.tt_api_key is not None, "without a key there is a sandbox"
        base_url, api_key = settings.tt_api_base_url, settings.tt_api_key.get_secret_value()
    return Upstream(
        base_url=base_url,
        api_key=api_key,
        connect_timeout_seconds=settings.upstream_connect_timeout_seconds,
        # Upstream says nothing until the image is made, so a silence may last as long as the whole.
        read_timeout_seconds=settings.upstream_timeout_seconds,
        total_timeout_seconds=settings.upstream_timeout_seconds,
    )
