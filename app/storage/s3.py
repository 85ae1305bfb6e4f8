"""How are pictures kept in a bucket of S3, or of any store that speaks like it?"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from app.connections.connection import Body
from app.storage.base import (
    LISTED_MAX,
    CannotTell,
    ListedObject,
    ObjectMissing,
    ObjectStream,
    OpenSource,
    StorageError,
    StorageMisconfigured,
    StorageUnavailable,
    StoredObject,
    open_stream,
    require_key,
    require_range,
)
from app.storage.s3_client import open_client
from app.storage.s3_direct import DirectPuts, NotPut, Put
from app.storage.s3_faults import ERRORS, fault_of_error, status_of, unavailable, without_credentials

if TYPE_CHECKING:
    from botocore.awsrequest import AWSRequest
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, ListObjectsV2OutputTypeDef

# For a public bucket or a CDN in front of it; a day is also how long a deleted picture may still be seen there.
_CACHE_CONTROL = "public, max-age=86400"

_CHECK_NAME = "imagekeep-check.txt"
_CHECK_ABSENT_NAME = "imagekeep-check-absent.txt"
_CHECK_BODY = b"Written by imagekeep to see whether it may. It comes back when deleted.\n"


class S3Storage:
    """Keeps each object under its key in one private bucket, over one boto3 client with threads of its own.

    Keys are whole: a prefix that the operator wants is part of the key, so that changing it later kills no URL.
    `check_prefix` (such as `pictures/`) says where `check` may write, for a policy that covers only that prefix.
    Without `access_key_id` the credentials come by boto3's own chain: environment, files, instance role.
    Raises StorageMisconfigured when the endpoint is no URL or half of the credentials is missing; talks to nobody yet.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str | None,
        region: str | None,
        path_style: bool,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        threads_max: int = 10,
        connect_timeout_seconds: float = 3,
        read_timeout_seconds: float = 20,
        check_prefix: str = "",
    ) -> None:
        self._bucket = bucket
        self._check_key = check_prefix + _CHECK_NAME
        self._check_absent_key = check_prefix + _CHECK_ABSENT_NAME
        require_key(self._check_key)
        # All three permissions have been seen to work, and no put has failed since.
        self._permissions_proved = False
        if (access_key_id is None) != (secret_access_key is None):
            raise without_credentials(self.name)
        with self._translated("", reading=False):
            try:
                opened = open_client(
                    endpoint_url=endpoint_url,
                    region=region,
                    path_style=path_style,
                    access_key_id=access_key_id,
                    secret_access_key=secret_access_key,
                    connections_max=threads_max,
                    connect_timeout_seconds=connect_timeout_seconds,
                    read_timeout_seconds=read_timeout_seconds,
                )
            except ValueError:
                raise StorageMisconfigured(
                    self.name, "S3_ENDPOINT_URL is no URL: it begins with https:// or http:// and names a host"
                ) from None
        self._client = opened.s3
        self._direct = DirectPuts(
            opened.credentials,
            ca_bundle=opened.ca_bundle,
            connect_timeout_seconds=connect_timeout_seconds,
            read_timeout_seconds=read_timeout_seconds,
        )
        self._client.meta.events.register("before-sign.s3.PutObject", self._see)
        self._threads = ThreadPoolExecutor(threads_max, thread_name_prefix="storage-s3")
        # What goes by the loop is as many at a time as what goes by threads.
        self._places_max = threads_max
        self._places = asyncio.Semaphore(threads_max)

    @property
    def name(self) -> str:
        """`s3:<bucket>`."""
        return f"s3:{self._bucket}"

    async def put(self, key: str, body: Body, *, content_type: str, sha256: bytes | None = None) -> None:
        """As Storage.put. No ACL is sent: who may read a key directly is the bucket's own rule, private by default.

        S3 keeps a PUT whole or not at all, but a store has been seen to keep a cut one. One that `check` has seen to
        refuse what doesn't fit its signed SHA-256 can't. For any other the MD5 goes along as Content-MD5, which every
        S3 store has checked since the first (newer checksum headers some refuse), and the answer is held against it: an
        ETag that is the MD5 proves the bytes. Any other ETag (encrypted buckets have one) proves nothing, and the size
        is asked for.
        """
        require_key(key)
        await self._put(key, body, content_type, sha256)

    async def head(self, key: str) -> StoredObject:
        """As Storage.head. CannotTell is the answer for a missing key where s3:ListBucket is not allowed."""
        require_key(key)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._head, key)

    async def read(self, key: str, *, start: int = 0, length: int | None = None) -> ObjectStream:
        """As Storage.read. CannotTell as for `head`. A stream holds a connection all along, a thread only per chunk."""
        require_key(key)
        require_range(start, length)
        return await open_stream(self._threads, lambda: self._open(key, start, length), storage=self.name)

    async def delete(self, key: str) -> None:
        """As Storage.delete. In a bucket that keeps versions the old one stays until the bucket's rules end it."""
        require_key(key)
        await asyncio.get_running_loop().run_in_executor(self._threads, self._delete, key)

    async def objects(self, prefix: str = "") -> AsyncIterator[ListedObject]:
        """As Storage.objects. It takes s3:ListBucket, which nothing else here does; CannotTell without it."""
        latest, token = "", ""
        while True:
            page = await asyncio.get_running_loop().run_in_executor(self._threads, self._list, prefix, token)
            now = _time_of(page)
            for entry in page.get("Contents", []):
                if entry["Key"] <= latest:
                    raise StorageMisconfigured(self.name, "the store lists its keys out of order: use another one")
                latest = entry["Key"]
                # Told to the second only, so what was stored just now may seem to come from the future.
                age_seconds = max(0, (now - entry["LastModified"]).total_seconds())
                yield ListedObject(latest, entry["Size"], age_seconds)
            token = page.get("NextContinuationToken", "")
            if not token:
                return

    async def check(self) -> None:
        """As Storage.check, with the same three permissions that keeping pictures takes, and no other.

        HEAD on the bucket would ask for s3:ListBucket, which the service is better without; its 403 says nothing, and
        its 200 says nothing about writing. So the first check deletes a key that is never there, writes a small object
        and reads it: each step fails with the reason in its answer. Later checks are one GET of that object, until a
        put has failed or the object is gone; then everything is proved again.
        """
        loop = asyncio.get_running_loop()
        if self._permissions_proved:
            try:
                return await loop.run_in_executor(self._threads, self._read_check)
            except (ObjectMissing, CannotTell):
                self._permissions_proved = False
        self._direct.forget()
        await loop.run_in_executor(self._threads, self._write_check)
        await self._direct.prove(_put_of(self._check_key, _CHECK_BODY, "text/plain", None))
        try:
            await loop.run_in_executor(self._threads, self._read_check)
        except (ObjectMissing, CannotTell) as error:
            raise self._unreadable() from error
        self._permissions_proved = True
        return None

    async def close(self) -> None:
        """As Storage.close."""
        # Who gives one up for boto3's way has handed its work to a thread by then.
        for _ in range(self._places_max):
            await self._places.acquire()
        await asyncio.to_thread(self._threads.shutdown)
        # Closed once more, it has nothing to wait for.
        for _ in range(self._places_max):
            self._places.release()
        await self._direct.close()
        self._client.close()

    async def _put(self, key: str, body: Body, content_type: str, sha256: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        try:
            if not await self._put_directly(key, body, content_type, sha256):
                await loop.run_in_executor(self._threads, self._put_with_md5, key, body, content_type)
        except StorageError:
            self._permissions_proved = False
            raise

    async def _put_directly(self, key: str, body: Body, content_type: str, sha256: bytes | None) -> bool:
        """Put in the way that `check` has proved, if any. False: boto3 is to try it, and to say what is wrong."""
        async with self._places:
            if not self._direct.proved:
                return False
            try:
                await self._direct.put(_put_of(key, body, content_type, sha256))
            except NotPut as error:
                if error.timed_out:
                    raise unavailable(self.name, str(error)) from None
                return False
            return True

    def _put_with_md5(self, key: str, body: Body, content_type: str) -> None:
        # Its own at once: whoever has waited long enough takes back what was lent.
        body = bytes(body)
        digest = hashlib.md5(body, usedforsecurity=False)
        with self._translated(key, reading=False):
            answer = self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=body,
                ContentLength=len(body),
                ContentMD5=base64.b64encode(digest.digest()).decode(),
                ContentType=content_type,
                CacheControl=_CACHE_CONTROL,
            )
        if answer.get("ETag", "").strip('"') != digest.hexdigest():
            self._require_size(key, len(body))

    def _see(self, request: "AWSRequest", signature_version: str, region_name: str, **_: object) -> None:
        self._direct.see(self._check_key, request, signature_version=signature_version, region=region_name)

    def _require_size(self, key: str, size_bytes: int) -> None:
        try:
            kept = self._head(key)
        except CannotTell as error:
            raise self._unreadable() from error
        except ObjectMissing as error:
            raise StorageUnavailable(self.name, f"{key} was taken and is not there: put it again") from error
        if kept.bytes != size_bytes:
            raise StorageUnavailable(self.name, f"{key} was kept with {kept.bytes} of {size_bytes} bytes: put it again")

    def _head(self, key: str) -> StoredObject:
        try:
            with self._translated(key, reading=True):
                answer = self._client.head_object(Bucket=self._bucket, Key=key)
        except (ObjectMissing, CannotTell):
            raise self._reason_of_head(key) from None
        return StoredObject(key, answer["ContentLength"], answer.get("ContentType"))

    def _reason_of_head(self, key: str) -> StorageError:
        # An answer to HEAD has no body, so its 404 may mean the bucket and its 403 the credentials. GET names them.
        try:
            self._open(key, 0, 1).close()
        except StorageError as error:
            return error
        return CannotTell(self.name, f"HEAD and GET of {key} disagree: is somebody writing it?")

    def _open(self, key: str, start: int, length: int | None) -> OpenSource:
        if length == 0:  # No range header can say it.
            self._head(key)
            return OpenSource(lambda _: b"", lambda: None, 0)
        try:
            with self._translated(key, reading=True):
                answer = self._get(key, start, length)
        except _BeyondTheEnd:
            return OpenSource(lambda _: b"", lambda: None, 0)
        body = answer["Body"]
        if "ContentLength" not in answer:
            body.close()
            raise StorageUnavailable(
                self.name, f"the store does not say how long {key} is: a cut one would pass as whole"
            )
        ranged = answer.get("ContentRange", "").startswith(f"bytes {start}-")
        if not ranged and (start > 0 or length is not None):
            body.close()
            raise StorageMisconfigured(self.name, "the store ignores Range, which image URLs need: use another one")

        def read(bytes_max: int) -> bytes:
            with self._translated(key, reading=True):
                return body.read(bytes_max)

        return OpenSource(read, body.close, answer["ContentLength"])

    def _get(self, key: str, start: int, length: int | None) -> "GetObjectOutputTypeDef":
        if start == 0 and length is None:
            return self._client.get_object(Bucket=self._bucket, Key=key)
        last = "" if length is None else start + length - 1
        try:
            return self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={start}-{last}")
        except ClientError as error:
            if status_of(error) == 416:
                raise _BeyondTheEnd from None
            raise

    def _delete(self, key: str) -> None:
        try:
            with self._translated(key, reading=False):
                self._client.delete_object(Bucket=self._bucket, Key=key)
        except ObjectMissing:  # Some stores say so where S3 answers 204.
            return

    def _list(self, prefix: str, token: str) -> "ListObjectsV2OutputTypeDef":
        try:
            with self._translated(prefix, reading=True):
                if token:
                    return self._client.list_objects_v2(
                        Bucket=self._bucket, Prefix=prefix, MaxKeys=LISTED_MAX, ContinuationToken=token
                    )
                return self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=LISTED_MAX)
        except CannotTell:
            raise CannotTell(
                self.name, "the store keeps its keys to itself: allow s3:ListBucket to have them listed"
            ) from None
        except ObjectMissing:  # A 404 to this can only mean the bucket, or the address.
            raise StorageMisconfigured(
                self.name, "the store does not list the bucket: correct S3_BUCKET or S3_ENDPOINT_URL"
            ) from None

    def _write_check(self) -> None:
        self._delete(self._check_absent_key)
        self._put_with_md5(self._check_key, _CHECK_BODY, "text/plain")

    def _read_check(self) -> None:
        source = self._open(self._check_key, 0, None)
        try:
            source.read(len(_CHECK_BODY))
        finally:
            source.close()

    def _unreadable(self) -> StorageMisconfigured:
        return StorageMisconfigured(
            self.name, "the bucket takes objects but does not show them: allow s3:GetObject on its objects"
        )

    @contextmanager
    def _translated(self, key: str, *, reading: bool) -> Iterator[None]:
        # `from None` throughout: messages of botocore and of stores quote URLs, resource names and key ids, and a
        # traceback would print them with the cause.
        try:
            yield
        except ERRORS as error:
            raise fault_of_error(self.name, key, error, reading=reading) from None


class _BeyondTheEnd(Exception):
    """The range begins where the object has already ended."""


def _put_of(key: str, body: Body, content_type: str, sha256: bytes | None) -> Put:
    return Put(key, body, content_type, _CACHE_CONTROL, sha256 or hashlib.sha256(body).digest())


def _time_of(page: "ListObjectsV2OutputTypeDef") -> datetime:
    """The store's own time: ages by our clock would be wrong by as much as it is."""
    told = page["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(told) if told else datetime.now(UTC)
