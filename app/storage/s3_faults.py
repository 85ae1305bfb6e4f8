"""What does a refusal by an S3 store mean, and what should the operator do about it?"""

from collections.abc import Mapping
from types import MappingProxyType

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as EndpointError
from urllib3.exceptions import HTTPError

from app.storage.base import CannotTell, ObjectMissing, StorageError, StorageMisconfigured, StorageUnavailable

_ALLOW = "allow s3:GetObject, s3:PutObject and s3:DeleteObject on the bucket's objects"
_REGION = "the bucket is in another region: correct S3_REGION, or S3_ENDPOINT_URL"
_SESSION = "the temporary credentials have expired or are not known: renew them"

# Codes whose cure is known, as listed in "Error responses" of the Amazon S3 API reference and used by its look-alikes.
_OPERATOR_CODES: Mapping[str, str] = MappingProxyType(
    {
        "NoSuchBucket": "the bucket does not exist: make it, or correct S3_BUCKET",
        "InvalidBucketName": "this cannot be the name of a bucket: correct S3_BUCKET",
        "InvalidAccessKeyId": "the store does not know the access key: correct AWS_ACCESS_KEY_ID",
        "SignatureDoesNotMatch": "the secret does not fit the access key: correct AWS_SECRET_ACCESS_KEY",
        "RequestTimeTooSkewed": "this machine's clock is off: set it right",
        "PermanentRedirect": _REGION,
        "AuthorizationHeaderMalformed": _REGION,
        "IllegalLocationConstraintException": _REGION,
        "ExpiredToken": _SESSION,
        "InvalidToken": _SESSION,
        "TokenRefreshRequired": _SESSION,
    }
)

# Told with a 4xx, and yet the same call may work later: a body damaged or too slow on its way, or a busy store.
_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "OperationAborted",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)
_PASSING_STATUSES = frozenset({408, 409, 425, 429})

_PASSING_ERRORS = (
    EndpointError,  # Not the builtin: botocore's own, for whatever prevents a connection.
    HTTPClientError,
    IncompleteReadError,
    CredentialRetrievalError,  # The place that lends credentials is out of reach; what they may do is not in question.
    MetadataRetrievalError,
    HTTPError,  # What botocore lets through of its transport while a body is read.
    OSError,
)

# Whatever boto3 raises for a call that was made right. RuntimeError: renewed credentials that have ended already.
ERRORS = (ClientError, BotoCoreError, HTTPError, OSError, RuntimeError)


def fault_of_answer(storage: str, key: str, code: str, status: int, *, reading: bool) -> StorageError:
    """Translate an error answer of the store to the one exception that says whose turn it is.

    `reading` is true for GET and HEAD, where "there is no such key" and "you may not know" are answers about the key:
    without s3:ListBucket S3 answers 403 instead of 404 for a missing one (HeadObject in the API reference), hence
    CannotTell. Of the answer only its code is repeated: messages are the store's own, and may quote key ids.
    """
    what = f"{_speakable(code)}, HTTP {status}"
    if code in _PASSING_CODES or status in _PASSING_STATUSES or status >= 500:
        return StorageUnavailable(storage, f"the store cannot serve this now ({what}): try again later")
    if code in _OPERATOR_CODES:
        return StorageMisconfigured(storage, f"{_OPERATOR_CODES[code]} ({what})")
    if code == "NoSuchKey" or (reading and status == 404):
        return ObjectMissing(storage, f"nothing under {key}")
    if reading and status == 403:
        return CannotTell(
            storage, f"the store does not say whether {key} is there ({what}): without s3:ListBucket it refuses both"
        )
    if status in (401, 403):
        return StorageMisconfigured(storage, f"the store refuses these credentials: {_ALLOW} ({what})")
    return StorageMisconfigured(storage, f"the store refuses the request: correct S3_ENDPOINT_URL, or ask it ({what})")


def _speakable(code: str) -> str:
    return code if code.isascii() and code.isalnum() and len(code) <= 64 else "an unnamed error"


def fault_of_error(storage: str, key: str, error: Exception, *, reading: bool) -> StorageError:
    """Translate what boto3 raised, one of `ERRORS`. Nothing of its text is repeated: it quotes URLs and key ids."""
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code") or ""
        return fault_of_answer(storage, key, code, status_of(error), reading=reading)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return without_credentials(storage)
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StorageMisconfigured(
            storage, "the store's certificate is not trusted: correct S3_ENDPOINT_URL, or set AWS_CA_BUNDLE"
        )
    if isinstance(error, RuntimeError):
        return StorageMisconfigured(
            storage, "the credentials that were given have ended: look at the role, and the clock"
        )
    if isinstance(error, _PASSING_ERRORS):
        return unavailable(storage, type(error).__name__)
    reason = type(error).__name__
    return StorageMisconfigured(
        storage, f"the settings make no request ({reason}): look at S3_BUCKET, S3_REGION and AWS_PROFILE"
    )


def unavailable(storage: str, reason: str) -> StorageUnavailable:
    """Return what is said of a store that can't be reached, or breaks off."""
    return StorageUnavailable(
        storage, f"the store does not answer as it should ({reason}): look at S3_ENDPOINT_URL and the network"
    )


def without_credentials(storage: str) -> StorageMisconfigured:
    """Return what is said where there are none, or half of them."""
    return StorageMisconfigured(
        storage, "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the host a role"
    )


def status_of(error: ClientError) -> int:
    """Return the status of the answer; 0 where there was none."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
