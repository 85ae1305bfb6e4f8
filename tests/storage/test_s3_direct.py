"""Is a put left to its signed SHA-256 only where the store was seen to check it, and is it then as safe as before?"""

import hashlib
import threading

import pytest

from app.storage.base import StorageMisconfigured
from tests.s3_server import S3Server
from tests.storage.conftest import s3_storage
from tests.storage.hostile_store import (
    BODY,
    KEY,
    Answer,
    Request,
    hostile_store,
    refusing,
)
from tests.storage.signed_bucket import DIGEST, Bucket

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the service runs on: it sends, and tells broken connections, in ways of its own."""
    return "asyncio", {"use_uvloop": True}


# Which way a put goes


async def test_a_store_that_checks_what_is_signed_needs_no_md5() -> None:
    bucket = Bucket()
    with hostile_store(bucket) as storage:
        await storage.check()
        bucket.forget()
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)

    (request,) = bucket.asked
    sent = {name.lower(): value for name, value in request.headers.items()}
    assert (request.command, request.path, request.body) == ("PUT", f"/pictures/{KEY}", BODY)
    assert sent.pop("authorization").startswith("AWS4-HMAC-SHA256 Credential=an-id/")
    assert sent.pop("x-amz-date")
    assert sent.pop("host").startswith("127.0.0.1:")
    assert sent == {
        "cache-control": "public, max-age=86400",
        "content-length": str(len(BODY)),
        "content-type": "image/png",
        "x-amz-content-sha256": DIGEST.hex(),
    }


async def test_the_digest_is_found_out_where_the_caller_does_not_know_it() -> None:
    bucket = Bucket()
    with hostile_store(bucket) as storage:
        await storage.check()
        await storage.put(KEY, BODY, content_type="image/png")

    assert bucket.objects[f"/pictures/{KEY}"] == BODY
    assert bucket.puts[-1] == "sha256"


async def test_before_a_check_every_put_has_its_md5() -> None:
    bucket = Bucket()
    with hostile_store(bucket) as storage:
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)

    assert bucket.puts == ["md5"]


async def test_a_store_that_does_not_check_what_is_signed_gets_the_md5_for_good() -> None:
    bucket = Bucket(checks=False)
    with hostile_store(bucket) as storage:
        for _ in range(2):
            await storage.check()
            bucket.forget()
            await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)
            assert bucket.puts == ["md5"]


async def test_a_real_store_that_does_not_check_what_is_signed_is_seen(s3_server: S3Server) -> None:
    """rclone's server checks the signature, and takes the digest in it as it is told."""
    storage = s3_storage(s3_server, s3_server.make_bucket("unproved"))
    await storage.check()

    await storage.put(KEY, BODY, content_type="image/png", sha256=hashlib.sha256(b"another").digest())

    # Were the digest believed, this one would have gone out with the put.
    assert s3_server.objects("unproved")[KEY] == BODY
    await storage.close()


@pytest.mark.parametrize(
    "refusal",
    [refusing(503, "SlowDown"), refusing(400, "RequestTimeout"), refusing(403, "SlowDown"), refusing(429, "x")],
)
async def test_a_store_that_is_busy_while_it_is_asked_proves_nothing(refusal: Answer) -> None:
    bucket = Bucket(checks=False)
    probes = 0

    def busy_at_the_second(request: Request) -> Answer | None:
        nonlocal probes
        probes += "content-md5" not in request.headers
        return refusal if probes == 2 and "content-md5" not in request.headers else None

    bucket.first = busy_at_the_second
    with hostile_store(bucket) as storage:
        await storage.check()
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)

    assert probes >= 2
    assert bucket.puts[-1] == "md5"


async def test_a_store_that_refuses_what_is_large_proves_nothing() -> None:
    bucket = Bucket(checks=False)
    bucket.first = lambda request: refusing(400, "EntityTooLarge") if len(request.body) > 100_000 else None
    with hostile_store(bucket) as storage:
        await storage.check()
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)

    assert bucket.puts[-1] == "md5"


async def test_a_store_that_checks_only_what_is_small_proves_nothing() -> None:
    bucket = Bucket(checks=False)

    def looks_at_small(request: Request) -> Answer | None:
        fits = request.headers.get("x-amz-content-sha256") == hashlib.sha256(request.body).hexdigest()
        return None if fits or len(request.body) > 100_000 else refusing(400, "XAmzContentSHA256Mismatch")

    bucket.first = looks_at_small
    with hostile_store(bucket) as storage:
        await storage.check()
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)

    assert bucket.puts[-1] == "md5"


async def test_what_is_left_of_a_check_is_its_small_object() -> None:
    for bucket in (Bucket(), Bucket(checks=False)):
        with hostile_store(bucket) as storage:
            await storage.check()
        assert {path: len(body) for path, body in bucket.objects.items()} == {"/pictures/imagekeep-check.txt": 72}


async def test_a_later_check_is_one_get() -> None:
    bucket = Bucket()
    with hostile_store(bucket) as storage:
        await storage.check()
        bucket.forget()
        await storage.check()

    assert [request.command for request in bucket.asked] == ["GET"]


# What goes wrong on it


async def test_a_body_that_arrives_changed_is_refused_and_put_again_with_its_md5() -> None:
    bucket = Bucket()
    with hostile_store(bucket) as storage:
        await storage.check()
        bucket.forget()
        # As if a byte had changed on the way: what is signed doesn't fit what came.
        await storage.put(KEY, BODY, content_type="image/png", sha256=hashlib.sha256(b"another").digest())

    assert bucket.puts == ["sha256", "md5"]
    assert bucket.objects[f"/pictures/{KEY}"] == BODY


@pytest.mark.parametrize("status", [201, 204, 301, 403, 404, 500, 503])
async def test_what_is_no_clean_200_is_left_to_boto3(status: int) -> None:
    bucket = Bucket()
    with hostile_store(bucket) as storage:
        await storage.check()
        bucket.forget()
        bucket.first = lambda request: refusing(status, "Odd") if "content-md5" not in request.headers else None
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)

    assert bucket.puts == ["sha256", "md5"]
    assert bucket.objects[f"/pictures/{KEY}"] == BODY


async def test_a_put_that_is_refused_is_told_in_boto3s_words_and_proves_everything_anew() -> None:
    bucket = Bucket()
    refused = threading.Event()

    def maybe(_: Request) -> Answer | None:
        return refusing(403, "InvalidAccessKeyId") if refused.is_set() else None

    bucket.first = maybe
    with hostile_store(bucket) as storage:
        await storage.check()
        refused.set()
        with pytest.raises(StorageMisconfigured, match="AWS_ACCESS_KEY_ID"):
            await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)
        with pytest.raises(StorageMisconfigured, match="AWS_ACCESS_KEY_ID"):
            await storage.check()
        refused.clear()
        bucket.forget()
        # Nothing is taken for proved by then.
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)
        await storage.check()
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)

    assert (bucket.puts[0], bucket.puts[-1]) == ("md5", "sha256")
