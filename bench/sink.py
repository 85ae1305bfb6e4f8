"""Where do pictures go that are measured: a bucket that takes every signed object, and keeps none but the small?

That a signature is there is looked at, and not whether it is right: an S3 that counts it costs more than what is
measured. A body whose SHA-256 is signed is held against it, and refused as S3 refuses it. What comes with Content-MD5
is answered with it as ETag, which S3 does too. `GET /taken` tells how many pictures came, and how many bytes they had.

python -m bench.sink --port 9003
"""

import argparse
import base64
import hashlib
import re

import uvloop

from bench.wire import Answering, Message, answer_with, serve

_MD5 = re.compile(rb"\r\ncontent-md5: *([A-Za-z0-9+/=]+)", re.IGNORECASE)
_SIGNED = re.compile(rb"\r\nauthorization: *AWS4-HMAC-SHA256 Credential=\S+, *SignedHeaders=\S+, *Signature=\w", re.I)
_SHA256 = re.compile(rb"\r\nx-amz-content-sha256: *([0-9a-f]{64})", re.IGNORECASE)
_PICTURE = re.compile(rb"PUT \S+\.png ")
_KEPT_BYTES_MAX = 1024
_XML = "application/xml"


def connections() -> type[Answering]:
    """Return what answers each connection of a sink."""
    # What a storage writes to see whether it may. Pictures of 1 KB would pile up: they end in .png.
    kept: dict[bytes, bytes] = {}
    pictures = picture_bytes = 0

    class _Sink(Answering):
        kept_bytes_max = _KEPT_BYTES_MAX
        hashes_dropped = True

        def answer(self, request: Message) -> None:
            nonlocal pictures, picture_bytes
            if request.head.startswith(b"GET /taken "):
                told = answer_with("200 OK", f"{pictures} {picture_bytes}".encode(), "text/plain")
            else:
                told = _answer(request, kept)
            if _PICTURE.match(request.head) and told.startswith(b"HTTP/1.1 200"):
                pictures, picture_bytes = pictures + 1, picture_bytes + request.body_bytes
            self.send(told, closes=request.closes)

    return _Sink


def _answer(request: Message, kept: dict[bytes, bytes]) -> bytes:
    method, target, _ = request.head.split(b" ", 2)
    if not _SIGNED.search(request.head):
        return answer_with("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>", _XML)
    if method == b"PUT":
        signed = _SHA256.search(request.head)
        came = request.sha256 or hashlib.sha256(request.body).digest()
        if signed and signed[1].lower() != came.hex().encode():
            return answer_with("400 Bad Request", b"<Error><Code>XAmzContentSHA256Mismatch</Code></Error>", _XML)
        if target.endswith(b".txt"):
            kept[target] = request.body
        md5 = _MD5.search(request.head)
        etag = base64.b64decode(md5[1]).hex() if md5 else "0" * 32
        return answer_with("200 OK", b"", _XML, f'ETag: "{etag}"')
    if method == b"DELETE":
        kept.pop(target, None)
        return b"HTTP/1.1 204 No Content\r\n\r\n"
    if target in kept:
        return answer_with("200 OK", kept[target], "text/plain")
    return answer_with("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>", _XML)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.sink")
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(connections(), parser.parse_args().port))
