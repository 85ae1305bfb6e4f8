"""Where does a picture go just now: home, or into the spool while home takes none?

Home is the storage of the settings. When it refuses a picture, or takes too long, the spool takes it, and from then on
every picture, until home has answered again: nobody waits for a storage that is known to be down.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import structlog

from app import telemetry
from app.connections.connection import Body
from app.errors import AppError, DatabaseUnavailable, Overloaded
from app.errors import StorageUnavailable as NothingTaken
from app.generations.spool import Spool, SpoolUse
from app.storage.base import Storage, StorageError, StorageMisconfigured, StorageUnavailable
from app.storage.deferred import DeferredStorage

log = structlog.get_logger(__name__)

_REFUSED_RETRY_SECONDS = 10
# Shorter than a load balancer waits for a probe.
_QUESTION_SECONDS_MAX = 5


class Stores:
    """The storages of one process. Opened once, closed at the end; it closes none of them.

    `others` hold older images and take no new ones. `spool_bytes_max` of 0 leaves the spool out: what is in it is
    served and carried home all the same. `picture_bytes_max` is the largest picture that may come.
    """

    def __init__(
        self,
        *,
        home: Storage,
        spool: Spool,
        others: Mapping[str, Storage],
        spool_bytes_max: int,
        picture_bytes_max: int,
        patience_seconds: float,
    ) -> None:
        self.home = home
        self.spool = spool
        # In the order in which a picture is looked for: the spool answers fast, and home may not answer at all.
        self.by_name: Mapping[str, Storage] = {spool.name: spool, home.name: home, **others}
        self._spool_bytes_max = spool_bytes_max
        self._picture_bytes_max = picture_bytes_max
        self._patience_seconds = patience_seconds
        self._failure: StorageError | None = None
        self._proved = False
        self._use = SpoolUse(0, 0)
        self._question: asyncio.Task[None] | None = None

    @property
    def failing(self) -> bool:
        """Whether home failed when it was last asked."""
        return self._failure is not None

    @property
    def misconfigured(self) -> bool:
        """Whether home has never worked since the start of this process, and only an operator can mend that."""
        return isinstance(self._failure, StorageMisconfigured) and not self._proved

    def answering(self) -> Mapping[str, Storage]:
        """Return the storages by name, without home while it is failing."""
        return {name: storage for name, storage in self.by_name.items() if storage is not self.home or not self.failing}

    async def put(self, key: str, body: Body, *, content_type: str, sha256: bytes | None = None) -> str:
        """Keep a picture, and return the name of the storage that took it. Raises StorageError when none does."""
        if self._spool_bytes_max == 0:
            return await self._put_home(key, body, content_type, sha256, patience_seconds=None)
        if not self.failing:
            with suppress(StorageError):
                return await self._put_home(key, body, content_type, sha256, patience_seconds=self._patience_seconds)
        try:
            await self.spool.put(key, body, content_type=content_type)
        except StorageError as error:
            log.warning("picture_not_spooled", detail=str(error))
            return await self._put_home(key, body, content_type, sha256, patience_seconds=None)
        self._use = SpoolUse(self._use.images + 1, self._use.bytes + len(body))
        telemetry.spooled_total.inc()
        return self.spool.name

    async def _put_home(
        self, key: str, body: Body, content_type: str, sha256: bytes | None, *, patience_seconds: float | None
    ) -> str:
        try:
            async with asyncio.timeout(patience_seconds):
                await self.home.put(key, body, content_type=content_type, sha256=sha256)
        except TimeoutError as error:
            slow = StorageUnavailable(self.home.name, f"a picture was not stored within {patience_seconds:g} s")
            self._note(slow)
            raise slow from error
        except StorageError as error:
            self._note(error)
            raise
        self._note(None)
        return self.home.name

    async def answers(self) -> bool:
        """Ask home whether it keeps and shows pictures. False when it does not, or has no answer within seconds.

        One question at a time: a storage that hangs would else have a thread of ours for every time it is asked.
        """
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self.home.check())
            self._question.add_done_callback(lambda done: done.cancelled() or done.exception())
        seconds = min(self._patience_seconds, _QUESTION_SECONDS_MAX)
        await asyncio.wait({self._question}, timeout=seconds)
        if not self._question.done():
            self._note(StorageUnavailable(self.home.name, f"no answer within {seconds:g} s"))
            return False
        error = self._question.exception()
        if error is not None and not isinstance(error, StorageError):
            raise error
        self._note(error)
        return error is None

    async def _open(self, home: DeferredStorage) -> None:
        try:
            async with asyncio.timeout(_QUESTION_SECONDS_MAX):
                await home.open()
        except TimeoutError:
            self._note(StorageUnavailable(home.name, f"not open within {_QUESTION_SECONDS_MAX} s"))
        except StorageError as error:
            self._note(error)

    def _note(self, failure: StorageError | None) -> None:
        if failure is None:
            self._proved = True
            if self.failing:
                log.info("storage_answers_again", storage=self.home.name)
        elif not self.failing:
            log.error("storage_fails", storage=self.home.name, detail=str(failure))
        self._failure = failure

    async def pictures_max(self) -> int | None:
        """Return how many pictures may be in flight, so that all of them fit into the spool; None for any number.

        Reads the spool only while it is in use. The first one waits until home is open, or can't be opened: nothing is
        paid for before that is known. Raises DatabaseUnavailable.
        """
        if isinstance(self.home, DeferredStorage) and not self.home.is_open and not self.failing:
            await self._open(self.home)
        if self._spool_bytes_max == 0:
            return 0 if self.failing else None
        if self.failing or self._use.images:
            try:
                await self.look()
            except StorageUnavailable as error:
                raise DatabaseUnavailable(retry_after_seconds=2) from error
        return max(0, self._spool_bytes_max - self._use.bytes) // self._picture_bytes_max

    def refusal(self) -> AppError:
        """Return what an order is refused with that is one picture more than `pictures_max`."""
        telemetry.spool_refusals_total.inc()
        if not self.failing:
            return Overloaded(retry_after_seconds=_REFUSED_RETRY_SECONDS)
        return NothingTaken(
            "Images can't be stored just now, so nothing new is ordered. Nothing was charged; try again shortly.",
            retry_after_seconds=_REFUSED_RETRY_SECONDS,
        )

    async def look(self) -> SpoolUse:
        """Read what is in the spool, which other processes fill and empty too. Raises StorageUnavailable."""
        self._use = await self.spool.use()
        telemetry.spool_images.set(self._use.images)
        telemetry.spool_bytes.set(self._use.bytes)
        return self._use

    async def close(self) -> None:
        """Ask nothing more."""
        if self._question is not None:
            self._question.cancel()
            await asyncio.wait({self._question})
