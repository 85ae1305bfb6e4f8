"""What can go wrong, whose fault it is, and what each fault is called?

    AppError
    ├── the caller's (4xx)
    │   ├── InvalidJson, InvalidValue, MissingParameter, UnsupportedParameter, ModelNotFound, ContentRejected   400
    │   ├── ApiKeyMissing, ApiKeyMistyped, ApiKeyInvalid                                                        401
    │   ├── UserDisabled                                                                                        403
    │   ├── NotFound 404, MethodNotAllowed 405, GenerationRunning 409, ImageDeleted 410
    │   ├── BodyTooLarge 413, RangeNotSatisfiable 416, IdempotencyKeyReused 422
    │   └── BudgetSpent, RateLimitExceeded, TooManyInFlight                                                     429
    └── the operator's or upstream's (5xx)
        ├── InternalError 500
        ├── UpstreamAuthFailed, UpstreamUnreachable, UpstreamModelGone, UpstreamFailed, ImageUnavailable        502
        ├── UpstreamBalanceExhausted, UpstreamBusy, Overloaded, DatabaseUnavailable, StorageUnavailable,
        │   AnswerUnavailable                                                                                   503
        └── UpstreamOutcomeUnknown                                                                              504

One flat tree: a class is a code. Each surface renders it in its own wire format. The statuses follow the error map that
was drawn up from how released clients behave (docs/api.md); a docstring is the default message, so it is written for
the person who reads the answer.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class AppError(Exception):
    """Something went wrong."""

    status: ClassVar[int] = 500
    code: ClassVar[str]
    # False forbids automatic retries (`x-should-retry: false`, which the OpenAI SDKs obey); None leaves it open.
    should_retry: ClassVar[bool | None] = None

    def __init__(
        self,
        message: str | None = None,
        *,
        parameter: str | None = None,
        retry_after_seconds: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.parameter = parameter
        self.retry_after_seconds = retry_after_seconds
        self.details: Mapping[str, Any] = details or {}
        super().__init__(self.message)


class InvalidJson(AppError):
    """The body is not a JSON object."""

    status, code = 400, "invalid_json"


class InvalidValue(AppError):
    """A parameter has a value that is not allowed."""

    status, code = 400, "invalid_value"


class MissingParameter(AppError):
    """A required parameter is missing."""

    status, code = 400, "missing_required_parameter"


class UnsupportedParameter(AppError):
    """A parameter is not offered here."""

    status, code = 400, "unsupported_parameter"


class ModelNotFound(AppError):
    """There is no such model here. GET /models lists what there is."""

    status, code = 400, "model_not_found"


class ContentRejected(AppError):
    """The image provider rejected this prompt for its content. Nothing was charged; change the prompt."""

    status, code = 400, "content_rejected"


class ApiKeyMissing(AppError):
    """No API key came with this request. Send it as `Authorization: Bearer ik_user_...`."""

    status, code = 401, "api_key_missing"


class ApiKeyMistyped(AppError):
    """This is no API key of Imagekeep: they begin with ik_user_ and end with a checksum. Was it cut or mistyped?"""

    status, code = 401, "api_key_mistyped"


class ApiKeyInvalid(AppError):
    """This API key is well formed, but it was revoked or never existed here."""

    status, code = 401, "api_key_invalid"


class UserDisabled(AppError):
    """The user of this API key is disabled. Ask whoever runs this service."""

    status, code = 403, "user_disabled"


class NotFound(AppError):
    """There is nothing here."""

    status, code = 404, "not_found"


class MethodNotAllowed(AppError):
    """This path does not take this method."""

    status, code = 405, "method_not_allowed"


class GenerationRunning(AppError):
    """This generation has not ended yet, so it can't be deleted. Wait for it with `Prefer: wait=60`."""

    status, code = 409, "generation_running"


class ImageDeleted(AppError):
    """This image was deleted by its owner."""

    status, code = 410, "image_deleted"


class BodyTooLarge(AppError):
    """The body is larger than this service reads."""

    status, code = 413, "body_too_large"


class RangeNotSatisfiable(AppError):
    """The picture is shorter than the range that was asked for."""

    status, code = 416, "range_not_satisfiable"


class IdempotencyKeyReused(AppError):
    """This Idempotency-Key was used for another order. Use a new key for a new order."""

    status, code = 422, "idempotency_key_reused"


class BudgetSpent(AppError):
    """The budget is used up."""

    status, code, should_retry = 429, "budget_spent", False


class RateLimitExceeded(AppError):
    """Too many orders within a minute. Try again shortly."""

    status, code = 429, "rate_limit_exceeded"


class TooManyInFlight(AppError):
    """Too many generations are in flight. Try again when one has ended."""

    status, code = 429, "too_many_in_flight"


class InternalError(AppError):
    """Something went wrong inside Imagekeep. The operator finds it in the log under this request's id."""

    status, code, should_retry = 500, "internal_error", False


class UpstreamAuthFailed(AppError):
    """The image provider refused this service's own key. Only the operator can mend that; nothing was charged."""

    status, code, should_retry = 502, "upstream_auth_failed", False


class UpstreamUnreachable(AppError):
    """The image provider could not be reached, so nothing was ordered and nothing was charged. Try again."""

    status, code = 502, "upstream_unreachable"


class UpstreamModelGone(AppError):
    """The image provider no longer offers this model. The operator must map it to another; nothing was charged."""

    status, code, should_retry = 502, "upstream_model_gone", False


class UpstreamFailed(AppError):
    """The image provider reported a failure. Nothing was charged; a new try may work."""

    status, code = 502, "upstream_failed"


class ImageUnavailable(AppError):
    """The image was made, but no whole picture could be fetched from its source. You were not charged."""

    status, code, should_retry = 502, "image_unavailable", False


class UpstreamBalanceExhausted(AppError):
    """This service's account at the image provider is empty. Only the operator can mend that; nothing was charged."""

    status, code, should_retry = 503, "upstream_balance_exhausted", False


class UpstreamBusy(AppError):
    """The image provider takes no more orders just now. Nothing was charged; try again shortly."""

    status, code = 503, "upstream_busy"


class Overloaded(AppError):
    """This service has as many generations in flight as it takes. Nothing was charged; try again shortly."""

    status, code = 503, "overloaded"


class DatabaseUnavailable(AppError):
    """The database does not answer, so nothing new is started. Try again shortly."""

    status, code = 503, "database_unavailable"
    # Whether the statement may have been committed all the same: the connection broke after it was sent.
    in_doubt = False
    # Whether it is there, but nobody has migrated it yet.
    not_migrated = False


class AnswerUnavailable(AppError):
    """Your order was taken, but how it stands can't be read just now. Don't order again: GET it by its id."""

    status, code, should_retry = 503, "answer_unavailable", False


class StorageUnavailable(AppError):
    """The storage that holds this image does not answer. The image is safe; try again shortly."""

    status, code = 503, "storage_unavailable"


class UpstreamOutcomeUnknown(AppError):
    """The image provider broke off: the image may have been made and billed. Its price stays held; don't retry."""

    status, code, should_retry = 504, "upstream_outcome_unknown", False


def all_errors() -> Iterator[type[AppError]]:
    """Yield every error class there is, in the order of the tree."""
    yield from AppError.__subclasses__()


def error_of_code(code: str | None) -> type[AppError]:
    """Return the class of a `code`; InternalError for one that a newer or older release wrote."""
    return next((error for error in all_errors() if error.code == code), InternalError)
