"""With whose credentials and authorities does a put go by itself, and does it keep them secret?"""

import json
import shutil
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from app.storage.base import StorageError, StorageMisconfigured, StorageUnavailable
from app.storage.s3_direct import authorization
from tests.storage.hostile_store import (
    BODY,
    KEY,
    Request,
    answering,
    client_of,
    hostile_server,
    hostile_store,
    refusing,
)
from tests.storage.signed_bucket import DIGEST, LARGE_BODY, LARGE_DIGEST, Bucket

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the service runs on: it sends, and tells broken connections, in ways of its own."""
    return "asyncio", {"use_uvloop": True}


async def test_nothing_of_a_failed_put_holds_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    bucket = Bucket()
    with hostile_store(bucket) as storage:
        await storage.check()
        bucket.first = lambda _: refusing(403, "AccessDenied")
        with pytest.raises(StorageMisconfigured) as raised:
            await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)

    assert not any(word in str(raised.value) + caplog.text for word in ("AKIA", "Signature=", "a-secret"))


# How it is signed and sent


@pytest.mark.parametrize("token", [None, "a-session-token=="])
def test_a_signature_is_the_one_that_botocore_makes(token: str | None) -> None:
    credentials = Credentials("an-id", "a/secret+key", token)
    request = AWSRequest(
        "PUT",
        "https://pictures.s3.eu-central-1.amazonaws.com/2026/a%3Db-0.png",
        headers={"content-type": "image/png", "cache-control": "public,  max-age=86400"},
        data=BODY,
    )
    request.context["payload_signing_enabled"] = True
    S3SigV4Auth(credentials, "s3", "eu-central-1").add_auth(request)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    expected = theirs.pop("authorization")

    ours = authorization(
        "PUT",
        "/2026/a%3Db-0.png",
        {**theirs, "host": "pictures.s3.eu-central-1.amazonaws.com"},
        region="eu-central-1",
        access_key_id="an-id",
        secret_key="a/secret+key",
    )

    assert ours == expected


async def test_a_session_token_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket()
    for name, value in {"ACCESS_KEY_ID": "an-id", "SECRET_ACCESS_KEY": "a-secret", "SESSION_TOKEN": "a-token"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with hostile_server(bucket) as port:
        storage = client_of(f"http://127.0.0.1:{port}", has_keys=False)
        await storage.check()
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)

    assert bucket.puts[-1] == "sha256"
    assert bucket.asked[-1].headers["x-amz-security-token"] == "a-token"
    assert "x-amz-security-token" in bucket.asked[-1].headers["authorization"]


async def test_credentials_that_end_soon_are_renewed_and_those_that_cannot_be_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an instance's role has them: from a server beside it, for some minutes."""
    bucket = Bucket()
    given: list[str] = []
    gone = threading.Event()

    def give(request: Request) -> None:
        if gone.is_set():
            return answering(500)(request)
        # Renewed in the last quarter of an hour, and not to be used in the last ten minutes.
        ends = datetime.now(UTC) + timedelta(minutes=5)
        given.append(f"token-{len(given)}")
        credentials = {"AccessKeyId": "an-id", "SecretAccessKey": "a-secret", "Token": given[-1]}
        return answering(200, json.dumps(credentials | {"Expiration": ends.isoformat()}).encode())(request)

    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with hostile_server(give) as giving, hostile_server(bucket) as port:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{giving}/role")
        storage = client_of(f"http://127.0.0.1:{port}", has_keys=False)
        await storage.check()
        bucket.forget()
        asked = len(given)
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)
        assert bucket.puts == ["sha256"]
        assert bucket.asked[-1].headers["x-amz-security-token"] == given[asked]

        gone.set()
        with pytest.raises(StorageUnavailable, match="CredentialRetrievalError"):
            await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("denied", "AccessDenied"),
        ("no token", "FileNotFoundError"),
        ("ended ones", "have ended"),
    ],
)
async def test_a_role_that_cannot_be_taken_again_is_a_fault_of_storage(
    how: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a pod has it: a token in a file, for which a service gives credentials of some minutes."""
    bucket = Bucket()
    now_wrong = threading.Event()
    token = tmp_path / "token"
    token.write_text("a-token-of-the-cluster")

    def give(request: Request) -> None:
        if now_wrong.is_set() and how == "denied":
            error = "<Code>AccessDenied</Code><Message>no AKIASECRETKEYID</Message>"
            return answering(403, f"<ErrorResponse><Error>{error}</Error></ErrorResponse>".encode())(request)
        ends = datetime.now(UTC) + timedelta(minutes=-5 if now_wrong.is_set() else 5)
        given = (
            "<AccessKeyId>an-id</AccessKeyId><SecretAccessKey>a-secret</SecretAccessKey><SessionToken>x</SessionToken>"
            f"<Expiration>{ends:%Y-%m-%dT%H:%M:%SZ}</Expiration>"
        )
        for tag in ("Credentials", "AssumeRoleWithWebIdentityResult", "AssumeRoleWithWebIdentityResponse"):
            given = f"<{tag}>{given}</{tag}>"
        return answering(200, given.encode())(request)

    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name, value in {
        "SHARED_CREDENTIALS_FILE": "/nowhere",
        "CONFIG_FILE": "/nowhere",
        "WEB_IDENTITY_TOKEN_FILE": str(token),
        "ROLE_ARN": "arn:aws:iam::123456789012:role/imagekeep",
        "DEFAULT_REGION": "us-east-1",
        "MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with hostile_server(give) as giving, hostile_server(bucket) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{giving}")
        storage = client_of(f"http://127.0.0.1:{port}", has_keys=False)
        await storage.check()
        bucket.forget()
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)
        assert bucket.puts == ["sha256"]

        now_wrong.set()
        if how == "no token":
            token.unlink()
        with pytest.raises(StorageError, match=told) as raised:
            await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)
        await storage.close()

    assert "AKIA" not in str(raised.value)


async def test_where_there_is_a_proxy_boto3_speaks_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket()
    with hostile_server(bucket) as port:
        # It takes requests for any host, as a proxy does.
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        storage = client_of("http://store.example")
        await storage.check()
        await storage.put(KEY, BODY, content_type="image/png", sha256=DIGEST)

    assert bucket.puts[-1] == "md5"
    assert bucket.asked[-1].path == f"http://store.example/pictures/{KEY}"


async def test_over_tls_the_authorities_are_those_of_boto3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificate = certificate_of_localhost(tmp_path)
    bucket = Bucket()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with hostile_server(bucket, tls=tls) as port:
        storage = client_of(f"https://localhost:{port}")
        await storage.check()
        await storage.put(KEY, LARGE_BODY, content_type="image/png", sha256=LARGE_DIGEST)
        monkeypatch.delenv("AWS_CA_BUNDLE")
        with pytest.raises(StorageMisconfigured, match="certificate"):
            await client_of(f"https://localhost:{port}").check()

    assert bucket.puts[-1] == "sha256"
    assert bucket.objects[f"/pictures/{KEY}"] == LARGE_BODY


def certificate_of_localhost(folder: Path) -> Path:
    """A file with a key and a certificate for localhost, signed by itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate of this test, is not installed")
    file = folder / "localhost.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    subprocess.run([*command, "-keyout", str(file), "-out", str(folder / "cert.pem")], check=True, capture_output=True)
    file.write_text(file.read_text() + (folder / "cert.pem").read_text())
    return file
