"""A bucket that checks what is signed, or not, and a store that reads bodies as a test likes."""

import hashlib
from collections.abc import Callable

from tests.storage.hostile_store import (
    BODY,
    Answer,
    Request,
    answering,
    refusing,
)

DIGEST = hashlib.sha256(BODY).digest()
# More than the system takes at once of what nobody reads.
LARGE_BODY = bytes(range(256)) * 4096 * 30
LARGE_DIGEST = hashlib.sha256(LARGE_BODY).digest()


class Bucket:
    """A bucket that checks what is signed, as S3 does, or leaves that out; `asked` are the requests since `forget`."""

    def __init__(self, *, checks: bool = True) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[Request] = []
        self.checks = checks
        # Asked before each put that is not refused for its digest; None goes on.
        self.first: Callable[[Request], Answer | None] = lambda _: None

    @property
    def puts(self) -> list[str]:
        """How each put was made sure of."""
        return ["md5" if "content-md5" in one.headers else "sha256" for one in self.asked if one.command == "PUT"]

    def forget(self) -> None:
        self.asked.clear()

    def __call__(self, request: Request) -> None:
        self.asked.append(request)
        if request.command == "PUT":
            self._put(request)
        elif request.command == "DELETE":
            self.objects.pop(request.path, None)
            answering(204)(request)
        elif request.path in self.objects:
            answering(200, self.objects[request.path])(request)
        else:
            refusing(404, "NoSuchKey")(request)

    def _put(self, request: Request) -> None:
        fitting = (hashlib.sha256(request.body).hexdigest(), "UNSIGNED-PAYLOAD")
        if self.checks and request.headers.get("x-amz-content-sha256") not in fitting:
            return refusing(400, "XAmzContentSHA256Mismatch")(request)
        if (other := self.first(request)) is not None:
            return other(request)
        self.objects[request.path] = request.body
        return answering(200, etag=f'"{hashlib.md5(request.body).hexdigest()}"')(request)


class Reader:
    """Takes the puts that are not boto3's from the store, once it is told to, and reads of their bodies as it likes."""

    def __init__(self, read: Callable[[Request], object]) -> None:
        self._read = read
        self.takes = False

    def __call__(self, request: Request) -> bool:
        taken = self.takes and request.command == "PUT" and "content-md5" not in request.headers
        if taken:
            self._read(request)
        return taken
