"""What is promised of a bucket alone, against a real S3 server: privacy, credentials, and a server that goes away."""

import urllib.error
import urllib.request
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from app.storage.base import (
    Storage,
    StorageError,
    StorageMisconfigured,
    StorageUnavailable,
)
from app.storage.s3 import S3Storage
from tests.s3_server import S3Server, running_s3
from tests.storage.conftest import s3_storage, whole

pytestmark = pytest.mark.anyio

KEY = "2026/11/22/ab12-0.png"


async def every_fault(storage: Storage) -> list[StorageError]:
    """What each call that can fail on its own raises."""
    faults = []
    calls: tuple[Awaitable[Any], ...] = (
        storage.put(KEY, b"x", content_type="image/png"),
        storage.head(KEY),
        storage.read(KEY),
        storage.delete(KEY),
        storage.check(),
        anext(storage.objects()),
    )
    for call in calls:
        with pytest.raises(StorageError) as raised:
            await call
        faults.append(raised.value)
    return faults


async def test_its_name_is_what_an_image_remembers(s3_server: S3Server) -> None:
    storage: Storage = s3_storage(s3_server, "some-bucket")

    assert storage.name == "s3:some-bucket"


async def test_the_bucket_stays_private(s3_server: S3Server) -> None:
    storage = s3_storage(s3_server, s3_server.bucket)
    await storage.put(KEY, b"picture", content_type="image/png")

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{s3_server.url}/{s3_server.bucket}/{KEY}")  # noqa: ASYNC210 - a stranger's GET.

    refused.value.close()
    assert refused.value.code in (400, 401, 403)
    assert s3_server.objects()[KEY] == b"picture"


async def test_a_wrong_secret_is_the_operators_fault_whatever_is_asked(s3_server: S3Server) -> None:
    faults = await every_fault(s3_storage(s3_server, s3_server.bucket, secret_access_key="wrong" * 8))

    assert {type(fault) for fault in faults} == {StorageMisconfigured}
    assert all("AWS_SECRET_ACCESS_KEY" in str(fault) for fault in faults)
    assert not any(secret in str(fault) for fault in faults for secret in ("wrongwrong", s3_server.access_key_id))


async def test_an_unknown_access_key_is_the_operators_fault(s3_server: S3Server) -> None:
    storage = S3Storage(
        s3_server.bucket,
        endpoint_url=s3_server.url,
        region=None,
        path_style=True,
        access_key_id="nobody",
        secret_access_key="nothing",
    )

    faults = await every_fault(storage)

    assert {type(fault) for fault in faults} == {StorageMisconfigured}
    assert all("AWS_ACCESS_KEY_ID" in str(fault) for fault in faults)


async def test_a_missing_bucket_is_the_operators_fault_and_no_missing_picture(s3_server: S3Server) -> None:
    faults = await every_fault(s3_storage(s3_server, "no-such-bucket"))

    assert {type(fault) for fault in faults} == {StorageMisconfigured}
    assert all("correct S3_BUCKET" in str(fault) for fault in faults)


async def test_credentials_come_from_the_environment_when_none_are_given(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.credentials.items():
        monkeypatch.setenv(name, value)
    storage = S3Storage(s3_server.bucket, endpoint_url=s3_server.url, region="us-east-1", path_style=True)

    await storage.check()
    await storage.close()


async def test_no_credentials_at_all_are_the_operators_fault(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in s3_server.credentials:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    storage = S3Storage(s3_server.bucket, endpoint_url=s3_server.url, region="us-east-1", path_style=True)

    faults = await every_fault(storage)
    await storage.close()

    assert {type(fault) for fault in faults} == {StorageMisconfigured}
    assert all("no credentials" in str(fault) for fault in faults)


@pytest.mark.parametrize(
    ("endpoint_url", "access_key_id", "secret_access_key"),
    [("store.example.org", "an-id", "a-secret"), ("https://", "an-id", "a-secret"), (None, "an-id", None)],
)
def test_settings_that_fit_nothing_are_refused_at_once(
    endpoint_url: str | None, access_key_id: str, secret_access_key: str | None
) -> None:
    with pytest.raises(StorageMisconfigured, match=r"S3_ENDPOINT_URL|credentials"):
        S3Storage(
            "pictures",
            endpoint_url=endpoint_url,
            region="us-east-1",
            path_style=True,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
        )


async def test_a_server_that_is_down_is_unavailable_until_it_is_back(tmp_path: Path) -> None:
    with running_s3(tmp_path) as server:
        storage = s3_storage(server, server.bucket)
        await storage.check()
        await storage.put(KEY, b"picture", content_type="image/png")

        server.stop()
        faults = await every_fault(storage)
        server.start()

        assert {type(fault) for fault in faults} == {StorageUnavailable}
        await storage.check()
        assert await whole(storage, KEY) == b"picture"
        await storage.close()


async def test_a_server_that_dies_while_it_is_read_is_unavailable(tmp_path: Path) -> None:
    with running_s3(tmp_path) as server:
        storage = s3_storage(server, server.bucket)
        await storage.put(KEY, bytes(30_000_000), content_type="image/png")
        stream = await storage.read(KEY)
        await anext(stream)

        server.stop()

        with pytest.raises(StorageUnavailable):
            async for _ in stream:
                pass


async def test_check_proves_everything_again_when_its_object_is_gone(bucket: S3Storage, s3_server: S3Server) -> None:
    await bucket.check()
    await bucket.delete("imagekeep-check.txt")

    await bucket.check()

    assert list(s3_server.objects(bucket.name.removeprefix("s3:"))) == ["imagekeep-check.txt"]


async def test_check_writes_only_under_its_prefix(s3_server: S3Server) -> None:
    storage = S3Storage(
        s3_server.make_bucket("shared"),
        endpoint_url=s3_server.url,
        region="us-east-1",
        path_style=True,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        check_prefix="ours/",
    )

    await storage.check()
    await storage.close()

    assert list(s3_server.objects("shared")) == ["ours/imagekeep-check.txt"]


async def test_what_is_shown_of_a_storage_holds_no_credentials(bucket: S3Storage, s3_server: S3Server) -> None:
    shown = repr(bucket) + str(bucket) + bucket.name

    assert s3_server.secret_access_key not in shown
    assert s3_server.access_key_id not in shown
