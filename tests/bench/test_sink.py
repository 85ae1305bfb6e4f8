"""Does the bench's bucket take what a bucket takes, and refuse what is not signed?"""

import hashlib
import http.client

import pytest

from app.storage.base import ObjectMissing, StorageError
from app.storage.s3 import S3Storage
from bench.neighbourhood import Neighbourhood

pytestmark = pytest.mark.anyio

SIGNED = "AWS4-HMAC-SHA256 Credential=bench, SignedHeaders=host, Signature=00"


async def test_our_storage_finds_nothing_wrong_with_it_and_puts_a_picture(near: Neighbourhood) -> None:
    storage = S3Storage(
        "bench",
        endpoint_url=near.sink_url,
        region="us-east-1",
        path_style=True,
        access_key_id="bench",
        secret_access_key="bench",
    )

    await storage.check()
    await storage.put("2026/a-0.png", b"x" * 1_500_000, content_type="image/png")

    # It keeps no picture: a million of them would be in memory.
    with pytest.raises(ObjectMissing):
        await storage.head("2026/a-0.png")
    await storage.close()


async def test_what_is_not_signed_is_refused(near: Neighbourhood) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", near.sink.port, timeout=10)
    connection.request("PUT", "/bench/a.png", body=b"picture")

    assert connection.getresponse().status == 403
    connection.close()


async def test_our_storage_without_a_key_gets_nowhere(near: Neighbourhood, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage = S3Storage("bench", endpoint_url=near.sink_url, region="us-east-1", path_style=True)

    with pytest.raises(StorageError):
        await storage.put("2026/a-0.png", b"x", content_type="image/png")
    await storage.close()


async def test_a_body_that_does_not_fit_its_signed_digest_is_refused(near: Neighbourhood) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", near.sink.port, timeout=10)
    for body in (b"small", b"large" * 100_000):
        for signed, expected in ((hashlib.sha256(body), 200), (hashlib.sha256(b"another"), 400)):
            headers = {"Authorization": SIGNED, "x-amz-content-sha256": signed.hexdigest()}
            connection.request("PUT", "/bench/a.png", body=body, headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == expected
    connection.close()
