"""How are pictures kept in a folder of this machine, so that a crash or a full disk never leaves half of one?"""

import asyncio
import errno
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path, PurePosixPath

from app.connections.connection import Body
from app.storage.base import (
    LISTED_MAX,
    ListedObject,
    ObjectMissing,
    ObjectStream,
    OpenSource,
    StorageMisconfigured,
    StorageUnavailable,
    StoredObject,
    open_stream,
    require_key,
    require_range,
)

_CONTENT_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}

# What an operator has to set right. Everything else (a full disk, a sick one, a lost network mount) may pass.
_OPERATOR_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}

# For this service alone: who may see a picture is decided by its URL, not by an account on the machine.
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


class FolderStorage:
    """Keeps each object as the file `root/key`; replicas may share the folder if its file system renames atomically.

    `root` is made here, once, and never again: a folder that disappears later is an unmounted disk, and pictures
    written to the empty mount point would vanish under it. A fault in making it is told by the first call.
    A kill -9 in the middle of a put leaves a file `.<name>.<random>.part`, which is no object and may be deleted.
    """

    def __init__(self, root: Path, *, threads_max: int = 8) -> None:
        self._root = root.absolute()
        self._root_text = str(self._root)
        self._threads = ThreadPoolExecutor(threads_max, thread_name_prefix="storage-folder")
        with suppress(OSError):
            self._root.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)

    @property
    def name(self) -> str:
        """`folder`: there is one per installation."""
        return "folder"

    @property
    def is_there(self) -> bool:
        """Whether there is a folder, usable or not. Without one there is nothing that could be read."""
        try:
            return self._root.is_dir()
        except OSError:
            return True

    async def put(self, key: str, body: Body, *, content_type: str, sha256: bytes | None = None) -> None:
        """As Storage.put: written beside its place, synced, renamed. The extension keeps the content type."""
        require_key(key)
        # As text: what pathlib takes to make three paths of it is a third of a small put.
        path = f"{self._root_text}/{key}"
        await asyncio.get_running_loop().run_in_executor(self._threads, self._put, path, body)

    async def head(self, key: str) -> StoredObject:
        """As Storage.head; never raises CannotTell."""
        path = self._path(key)
        size_bytes = await asyncio.get_running_loop().run_in_executor(self._threads, self._size_bytes, path)
        return StoredObject(key, size_bytes, _CONTENT_TYPES.get(PurePosixPath(key).suffix.lower()))

    async def read(self, key: str, *, start: int = 0, length: int | None = None) -> ObjectStream:
        """As Storage.read; an object deleted or replaced meanwhile is still read to its end."""
        require_range(start, length)
        path = self._path(key)
        return await open_stream(self._threads, lambda: self._open(path, start, length), storage=self.name)

    async def delete(self, key: str) -> None:
        """As Storage.delete. The folders around it stay."""
        path = self._path(key)
        await asyncio.get_running_loop().run_in_executor(self._threads, self._delete, path)

    async def objects(self, prefix: str = "") -> AsyncIterator[ListedObject]:
        """As Storage.objects; never raises CannotTell. Holds the names of one folder at a time on each level."""
        walk = self._walk(self._root, prefix)
        while page := await asyncio.get_running_loop().run_in_executor(self._threads, self._page, walk):
            for listed in page:
                yield listed

    async def check(self) -> None:
        """As Storage.check: writes and removes one small file."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._check)

    async def close(self) -> None:
        """As Storage.close."""
        await asyncio.to_thread(self._threads.shutdown)

    def _path(self, key: str) -> Path:
        require_key(key)
        return self._root / key

    def _put(self, path: str, body: Body) -> None:
        folder, _, name = path.rpartition("/")
        part = _part_beside(folder, name)
        # Taken before anything can hang: what was lent stays for as long as this thread is at it.
        with self._translated(), memoryview(body) as body:
            try:
                try:
                    _write_synced(part, body)
                except (FileNotFoundError, NotADirectoryError):
                    self._make_folder(Path(folder))
                    _write_synced(part, body)
                os.replace(part, path)
            except OSError:
                with suppress(OSError):
                    os.unlink(part)
                raise
            # Without this a power cut may forget the name although the bytes are on the disk.
            _sync_folder(folder)

    def _size_bytes(self, path: Path) -> int:
        with self._translated():
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                raise self._missing(path) from None
            if not stat.S_ISREG(found.st_mode):
                raise self._missing(path)
            return found.st_size

    def _open(self, path: Path, start: int, length: int | None) -> OpenSource:
        with self._translated():
            try:
                file = path.open("rb", buffering=0)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise self._missing(path) from None
            # The size of the open file, not of the path: a put may replace what the path names.
            bytes_there = max(0, os.fstat(file.fileno()).st_size - start)
            file.seek(start)

        def read(bytes_max: int) -> bytes:
            with self._translated():
                return file.read(bytes_max)

        return OpenSource(read, file.close, bytes_there if length is None else min(length, bytes_there))

    def _delete(self, path: Path) -> None:
        with self._translated():
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                self._require_root()
                return
            _sync_folder(path.parent)

    def _page(self, walk: Iterator[ListedObject]) -> list[ListedObject]:
        with self._translated():
            return list(islice(walk, LISTED_MAX))

    def _walk(self, folder: Path, prefix: str) -> Iterator[ListedObject]:
        if folder == self._root:
            self._require_root()
        for key, is_folder in _entries(folder, self._root):
            if not (key.startswith(prefix) or (is_folder and prefix.startswith(key))):
                continue
            if is_folder:
                yield from self._walk(self._root / key, prefix)
                continue
            with suppress(FileNotFoundError):  # Deleted since its folder was read.
                found = (self._root / key).stat()
                if stat.S_ISREG(found.st_mode):
                    yield ListedObject(key, found.st_size, max(0, time.time() - found.st_mtime))

    def _check(self) -> None:
        with self._translated():
            self._require_root()
            part = _part_beside(self._root_text, "check")
            try:
                _write_synced(part, b"imagekeep looks whether it may write here\n")
            finally:
                Path(part).unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        if folder == self._root:
            self._require_root()
        elif not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            _sync_folder(folder.parent)

    def _missing(self, path: Path) -> ObjectMissing:
        # With its disk unmounted every picture seems missing, and "surely not there" would be a lie.
        self._require_root()
        return ObjectMissing(self.name, f"nothing under {path.relative_to(self._root)}")

    def _require_root(self) -> None:
        if not self._root.is_dir():
            reason = "is not a folder" if self._root.exists() else "is not there and could not be made"
            raise StorageMisconfigured(
                self.name, f"{self._root} {reason}: mount its disk, make it, or set DATA_DIR to another place"
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno is not None else type(error).__name__
            if error.errno in _OPERATOR_ERRNOS:
                raise StorageMisconfigured(
                    self.name, f"{self._root} cannot be used ({reason}): let the service's user read and write there"
                ) from error
            raise StorageUnavailable(self.name, f"{self._root} does not work ({reason}): look at its disk") from error


def _entries(folder: Path, root: Path) -> list[tuple[str, bool]]:
    """What a folder holds, in the order in which a bucket would list it: a folder counts with its slash."""
    above = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    with os.scandir(folder) as entries:
        # A name that begins with a dot is a part-written file, and no key.
        shown = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    return sorted((f"{above}{name}{'/' * is_folder}", is_folder) for name, is_folder in shown)


def _part_beside(folder: str, name: str) -> str:
    return f"{folder}/.{name}.{secrets.token_hex(8)}.part"


def _write_synced(path: str, body: Body) -> None:
    file_descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    try:
        left = memoryview(body)
        while left:
            left = left[os.write(file_descriptor, left) :]
        os.fsync(file_descriptor)
    finally:
        os.close(file_descriptor)


def _sync_folder(folder: Path | str) -> None:
    file_descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file_descriptor)
    finally:
        os.close(file_descriptor)
