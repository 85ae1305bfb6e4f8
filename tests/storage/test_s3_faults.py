"""Is what a store refuses or says of a key told as what it is: missing, not to be known, for good, or passing?"""

import threading
import traceback

import pytest

from app.storage.base import CannotTell, ObjectMissing, StorageError, StorageMisconfigured, StorageUnavailable
from app.storage.s3_faults import fault_of_answer
from tests.storage.hostile_store import BODY, KEY, Answer, Request, answering, by_method, hostile_store, refusing

pytestmark = pytest.mark.anyio


# What is there


async def test_a_403_to_head_is_no_answer_about_the_key() -> None:
    with hostile_store(refusing(403, "AccessDenied")) as storage, pytest.raises(CannotTell, match="does not say"):
        await storage.head(KEY)


async def test_a_403_to_get_is_no_answer_about_the_key() -> None:
    with hostile_store(refusing(403, "AccessDenied")) as storage, pytest.raises(CannotTell):
        await storage.read(KEY)


async def test_a_403_to_a_listing_is_no_empty_bucket() -> None:
    with hostile_store(refusing(403, "AccessDenied")) as storage, pytest.raises(CannotTell, match="s3:ListBucket"):
        await anext(storage.objects())


async def test_a_store_that_lists_the_same_page_for_ever_is_left() -> None:
    entry = "<Contents><Key>a.png</Key><Size>1</Size><LastModified>2026-11-22T00:00:00Z</LastModified></Contents>"
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>next</NextContinuationToken>"
    page = f"<ListBucketResult>{more}{entry}</ListBucketResult>".encode()

    with hostile_store(answering(200, page)) as storage, pytest.raises(StorageMisconfigured, match="out of order"):
        assert [one.key async for one in storage.objects()] == []


async def test_the_age_of_an_object_is_by_the_clock_of_its_store() -> None:
    entry = "<Contents><Key>a.png</Key><Size>1</Size><LastModified>2020-01-01T00:00:00Z</LastModified></Contents>"
    page = f"<ListBucketResult>{entry}</ListBucketResult>".encode()

    def answer(request: Request) -> None:
        request.send_response_only(200)
        request.send_header("date", "Wed, 01 Jan 2020 00:01:00 GMT")
        request.send_header("content-length", str(len(page)))
        request.end_headers()
        request.wfile.write(page)

    with hostile_store(answer) as storage:
        (listed,) = [one async for one in storage.objects()]

    assert listed.age_seconds == 60


async def test_head_and_get_that_disagree_are_no_answer() -> None:
    answer = by_method(HEAD=answering(404), GET=answering(206, b"x", content_range="bytes 0-0/9"))

    with hostile_store(answer) as storage, pytest.raises(CannotTell, match="disagree"):
        await storage.head(KEY)


async def test_a_404_to_head_that_get_cannot_confirm_is_not_missing() -> None:
    answer = by_method(HEAD=answering(404), GET=refusing(503, "SlowDown"))

    with hostile_store(answer) as storage, pytest.raises(StorageUnavailable):
        await storage.head(KEY)


async def test_a_store_that_says_nothing_is_missing_is_believed() -> None:
    with hostile_store(refusing(404, "NoSuchKey")) as storage, pytest.raises(ObjectMissing):
        await storage.head(KEY)


async def test_a_missing_key_told_with_404_to_delete_is_deleted() -> None:
    with hostile_store(refusing(404, "NoSuchKey")) as storage:
        await storage.delete(KEY)


# What is refused


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (403, "AccessDenied", "allow s3:GetObject, s3:PutObject and s3:DeleteObject"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (403, "RequestTimeTooSkewed", "clock"),
        (400, "ExpiredToken", "renew"),
        (404, "NoSuchBucket", "S3_BUCKET"),
        (301, "PermanentRedirect", "S3_REGION"),
        (400, "AuthorizationHeaderMalformed", "S3_REGION"),
        (405, "MethodNotAllowed", "S3_ENDPOINT_URL"),
        (404, "404", "S3_ENDPOINT_URL"),
    ],
)
def test_a_refusal_for_good_says_what_to_do(status: int, code: str, hint: str) -> None:
    fault = fault_of_answer("s3:pictures", KEY, code, status, reading=False)

    assert isinstance(fault, StorageMisconfigured)
    assert hint in str(fault)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (500, "InternalError"),
        (503, "SlowDown"),
        (507, "InsufficientStorage"),
        (429, "TooManyRequests"),
        (400, "RequestTimeout"),
        (400, "BadDigest"),
        (409, "OperationAborted"),
    ],
)
@pytest.mark.parametrize("reading", [True, False])
def test_a_refusal_that_may_pass_is_unavailable(status: int, code: str, reading: bool) -> None:
    fault = fault_of_answer("s3:pictures", KEY, code, status, reading=reading)

    assert isinstance(fault, StorageUnavailable)
    assert code in str(fault)


async def test_a_put_that_is_denied_is_the_operators_fault() -> None:
    with hostile_store(refusing(403, "AccessDenied")) as storage, pytest.raises(StorageMisconfigured):
        await storage.put(KEY, BODY, content_type="image/png")


async def test_a_put_to_a_store_that_is_busy_is_unavailable() -> None:
    with hostile_store(refusing(503, "SlowDown")) as storage, pytest.raises(StorageUnavailable):
        await storage.put(KEY, BODY, content_type="image/png")


@pytest.mark.parametrize(("code", "hint"), [("PermanentRedirect", "S3_REGION"), ("", "S3_ENDPOINT_URL")])
async def test_a_store_that_redirects_everything_is_asked_once(code: str, hint: str) -> None:
    asked: list[str] = []

    def redirect(request: Request) -> None:
        asked.append(request.command)
        refusing(301, code)(request)

    with hostile_store(redirect) as storage, pytest.raises(StorageMisconfigured, match=hint):
        await storage.put(KEY, BODY, content_type="image/png")

    assert asked == ["PUT"]


@pytest.mark.parametrize(
    ("status", "expected"), [(502, StorageUnavailable), (403, StorageMisconfigured), (404, StorageMisconfigured)]
)
async def test_a_proxys_web_page_is_judged_by_its_status(status: int, expected: type[StorageError]) -> None:
    page = answering(status, b"<html><body>Bad gateway", content_type="text/html")

    with hostile_store(page) as storage, pytest.raises(expected):
        await storage.put(KEY, BODY, content_type="image/png")


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "InternalError", "AKIA leaks <here>"])
async def test_nothing_the_store_says_beyond_its_code_is_passed_on(code: str) -> None:
    with hostile_store(refusing(403, code)) as storage, pytest.raises(StorageError) as raised:
        await storage.put(KEY, BODY, content_type="image/png")

    told = "".join(traceback.format_exception(raised.value))
    assert not any(word in told for word in ("AKIA", "X-Amz-Signature", "an-id", "a-secret"))


# What a check tells


async def test_a_bucket_that_may_not_be_read_is_the_operators_fault() -> None:
    denied = refusing(403, "AccessDenied")

    with (
        hostile_store(by_method(PUT=answering(200), DELETE=answering(204), HEAD=denied, GET=denied)) as storage,
        pytest.raises(StorageMisconfigured, match="allow s3:GetObject"),
    ):
        await storage.check()


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_check_tells_a_permission_that_is_missing(method: str) -> None:
    answers: dict[str, Answer] = {"PUT": answering(200), "DELETE": answering(204), "GET": answering(200, b"x")}

    with (
        hostile_store(by_method(**(answers | {method: refusing(403, "AccessDenied")}))) as storage,
        pytest.raises(StorageMisconfigured, match="s3:PutObject and s3:DeleteObject"),
    ):
        await storage.check()


async def test_check_passes_without_the_right_to_list_and_is_one_get_afterwards() -> None:
    objects: dict[str, bytes] = {}
    methods: list[str] = []

    with hostile_store(_bucket_without_list(objects, methods)) as storage:
        await storage.check()
        methods.clear()
        await storage.check()

    assert methods == ["GET"]


async def test_check_is_red_again_after_a_put_was_refused() -> None:
    objects: dict[str, bytes] = {}
    bucket = _bucket_without_list(objects, [])
    writable = threading.Event()
    writable.set()

    def answer(request: Request) -> None:
        refused = request.command == "PUT" and not writable.is_set()
        (refusing(403, "AccessDenied") if refused else bucket)(request)

    with hostile_store(answer) as storage:
        await storage.check()
        writable.clear()
        with pytest.raises(StorageMisconfigured):
            await storage.put(KEY, BODY, content_type="image/png")
        with pytest.raises(StorageMisconfigured):
            await storage.check()
        writable.set()
        await storage.check()


def _bucket_without_list(objects: dict[str, bytes], methods: list[str]) -> Answer:
    """A bucket whose policy allows objects to be got, put and deleted: a missing one is a 403."""

    def answer(request: Request) -> None:
        methods.append(request.command)
        if request.command == "PUT":
            objects[request.path] = request.body
            answering(200)(request)
        elif request.command == "DELETE":
            objects.pop(request.path, None)
            answering(204)(request)
        elif request.path in objects:
            answering(200, objects[request.path])(request)
        else:
            refusing(403, "AccessDenied")(request)

    return answer
