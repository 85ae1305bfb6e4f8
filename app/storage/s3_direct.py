"""How does a picture go into a bucket at little more cost than its way through the socket?

boto3 takes 2 ms for a put of any size, and MD5 as long as all else that is done with a picture. So boto3 puts the first
object, and shows where to and how it is signed; what follows goes the same way by itself, signed with the SHA-256 of
its body. A store that checks it needs no MD5: it can't keep anything but the bytes that were signed. Whether it does
is proved first, with a body that doesn't fit its signature. Until then, and where it doesn't, boto3 and MD5 go on.
"""

import asyncio
import hashlib
import hmac
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, urlsplit

from botocore.credentials import RefreshableCredentials
from botocore.utils import get_environ_proxies

from app.connections.connection import AnswerBroken, Body, BodyTooLarge, NotConnected
from app.connections.dialing import Dialer
from app.connections.kept import KeptConnections, Request
from app.storage.s3_faults import ERRORS

if TYPE_CHECKING:
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials, ReadOnlyCredentials

# As large as a picture: of a store that looks at small bodies only, nothing would be proved with one.
_PROBE_BYTES = 1024 * 1024
# What a 400 or 403 says that came for another reason than the body, and may not come the next time.
_PASSING_CODES = frozenset({"OperationAborted", "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"})
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_ANSWER_BYTES_MAX = 64 * 1024
_PORTS = {"https": 443, "http": 80}


class NotPut(Exception):
    """This way led to no clean 200. `timed_out` tells that the store was silent for as long as it may be."""

    def __init__(self, why: str, *, timed_out: bool = False) -> None:
        super().__init__(why)
        self.timed_out = timed_out


@dataclass(frozen=True)
class Place:
    """Where boto3 put an object to: what its URL has before the key, and for which region it was signed."""

    url: str
    region: str
    # The same URL, taken apart once and not for each put.
    scheme: str
    hostname: str
    port: int
    host: str
    path: str


@dataclass(frozen=True)
class Put:
    """One object on its way into the bucket."""

    key: str
    body: Body = field(repr=False)
    content_type: str
    cache_control: str
    sha256: bytes


class DirectPuts:
    """Puts objects where boto3 put one before, over connections of its own. `see` alone may be called by a thread."""

    def __init__(
        self,
        credentials: "Callable[[], Credentials | None]",
        *,
        ca_bundle: str,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
    ) -> None:
        """`credentials` are the client's own: they may be renewed at any time. `ca_bundle` is a file or a folder."""
        self._find_credentials = credentials
        self._credentials: Credentials | None = None
        self._connections = KeptConnections(Dialer().dial, tls=lambda: _tls(ca_bundle))
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._shown: Place | None = None
        self._place: Place | None = None

    @property
    def proved(self) -> bool:
        """Whether the store was seen to refuse a body that does not fit its signature, and to take one that does."""
        return self._place is not None

    def see(self, key: str, request: "AWSRequest", *, signature_version: str, region: str) -> None:
        """Remember where boto3 is about to put `key`, if it is signed in the way that is known here."""
        signing = request.context.get("signing", {})
        tail, url = quote(key, safe="/~"), request.url or ""
        known = signature_version == "s3v4" and not signing.keys() & {"identity_cache", "request_credentials"}
        if url.endswith(f"/{tail}"):
            self._shown = _place(url.removesuffix(tail), signing.get("region") or region) if known else None

    async def prove(self, put: Put) -> None:
        """Find out whether the store checks what is signed, with an object that boto3 has just put.

        Nothing is proved where the store breaks off: some do so with what they refuse.
        """
        self._place = None
        place = self._shown
        try:
            self._credentials = await asyncio.to_thread(self._find_credentials)
        except ERRORS:
            return
        # A proxy is boto3's to speak to.
        if place is None or self._credentials is None or place.scheme in get_environ_proxies(place.url):
            return
        probe = replace(put, body=bytes(_PROBE_BYTES))
        right = replace(probe, sha256=hashlib.sha256(probe.body).digest())
        try:
            # The same body each time, so that nothing but its digest can have been refused.
            if (await self._send(place, right))[0] == 200:
                status, code = await self._send(place, probe)
                refused = status in (400, 403) and code not in _PASSING_CODES
                if (await self._send(place, put))[0] == 200 and refused:
                    self._place = place
        except NotPut:
            return

    async def put(self, put: Put) -> None:
        """Put an object, and promise that the store holds the bytes that were signed. Raises NotPut."""
        assert self._place is not None, "proved first"
        status, code = await self._send(self._place, put)
        if status != 200:
            raise NotPut(f"{code}, HTTP {status}")

    def forget(self) -> None:
        """Prove everything anew before the next put goes this way."""
        self._place = None

    async def close(self) -> None:
        """Close every connection."""
        await self._connections.close()

    async def _send(self, place: Place, put: Put) -> tuple[int, str]:
        """Return status and error code of the store's answer. Raises NotPut."""
        request = Request(
            host=place.hostname,
            port=place.port,
            server_name=place.hostname if place.scheme == "https" else None,
            head=_head(place, put, await self._secret()),
            body=put.body,
        )
        try:
            incoming = await self._connections.open(
                request,
                connect_timeout_seconds=self._connect_timeout_seconds,
                silence_seconds_max=self._read_timeout_seconds,
            )
            try:
                told = await incoming.read(bytes_max=_ANSWER_BYTES_MAX, silence_seconds_max=self._read_timeout_seconds)
            finally:
                incoming.close()
        except TimeoutError as error:
            raise NotPut(type(error).__name__, timed_out=True) from None
        except NotConnected as error:
            raise NotPut(str(error), timed_out=isinstance(error.__cause__, TimeoutError)) from None
        except (AnswerBroken, BodyTooLarge) as error:
            raise NotPut(str(error) or type(error).__name__) from None
        found = _CODE.search(told)
        return incoming.status, found[1].decode() if found else ""

    async def _secret(self) -> "ReadOnlyCredentials":
        credentials = self._credentials
        assert credentials is not None
        if isinstance(credentials, RefreshableCredentials) and credentials.refresh_needed():
            try:
                # Asks a service over the network.
                return await asyncio.to_thread(credentials.get_frozen_credentials)
            except ERRORS as error:
                raise NotPut(type(error).__name__) from None
        return credentials.get_frozen_credentials()


def _place(url: str, region: str) -> Place:
    where = urlsplit(url)
    assert where.hostname is not None
    return Place(
        url, region, where.scheme, where.hostname, where.port or _PORTS[where.scheme], _host(where), where.path
    )


def _head(place: Place, put: Put, secret: "ReadOnlyCredentials") -> bytes:
    path = place.path + quote(put.key, safe="/~")
    headers = {
        "cache-control": put.cache_control,
        "content-type": put.content_type,
        "host": place.host,
        "x-amz-content-sha256": put.sha256.hex(),
        "x-amz-date": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
    }
    if secret.token:
        headers["x-amz-security-token"] = secret.token
    assert secret.access_key is not None
    assert secret.secret_key is not None
    headers["authorization"] = authorization(
        "PUT", path, headers, region=place.region, access_key_id=secret.access_key, secret_key=secret.secret_key
    )
    lines = [f"PUT {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join((*lines, f"content-length: {len(put.body)}", "", "")).encode("ascii")


def authorization(
    method: str, path: str, headers: Mapping[str, str], *, region: str, access_key_id: str, secret_key: str
) -> str:
    """Return the header that signs a request without a query: Signature Version 4, every header given.

    `headers` are by lower-case name, `host`, `x-amz-date` and `x-amz-content-sha256` among them.
    source: docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, 2026-11-22; held to botocore's in
    tests/storage/test_s3_direct_credentials.py, which takes ten times as long.
    """
    names = sorted(headers)
    signed = ";".join(names)
    # Blanks in a row count as one, and those around as none.
    lines = [f"{name}:{' '.join(headers[name].split())}" for name in names]
    asked = "\n".join((method, path, "", *lines, "", signed, headers["x-amz-content-sha256"]))
    moment = headers["x-amz-date"]
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(asked.encode()).hexdigest()))
    signature = hmac.digest(_key_of_day(secret_key, moment[:8], region), to_sign.encode(), "sha256").hex()
    return f"AWS4-HMAC-SHA256 Credential={access_key_id}/{scope}, SignedHeaders={signed}, Signature={signature}"


@lru_cache(maxsize=4)
def _key_of_day(secret_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _host(where: SplitResult) -> str:
    # As http clients send it: without the port that the scheme has anyway.
    host = where.netloc.rpartition("@")[2]
    return host.removesuffix(f":{where.port}") if where.port == _PORTS[where.scheme] else host


def _tls(ca_bundle: str) -> ssl.SSLContext:
    is_folder = os.path.isdir(ca_bundle)
    return ssl.create_default_context(cafile=None if is_folder else ca_bundle, capath=ca_bundle if is_folder else None)
