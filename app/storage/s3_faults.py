"""What does a refusal by an S3 store mean, and what should the operator do about it?"""

from collections.abc import Mapping
from types import MappingProxyType

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
