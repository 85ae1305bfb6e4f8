"""How does a store behave that no real server would play: one that refuses, lies, stalls, or breaks off?"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from app.storage.s3 import S3Storage

KEY = "2026/11/22/ab12-0.png"
BODY = b"picture" * 100


class Request(BaseHTTPRequestHandler):
    """One request, its body read. Subclasses say how it is answered."""

    # Of 1.0 botocore would wait a second for the leave to send a body.
    protocol_version = "HTTP/1.1"
    body = b""

    def log_message(self, *_: object) -> None:
        """Nothing: a test's output is its result."""


Answer = Callable[[Request], None]


@contextmanager
def hostile_store(answer: Answer, *, read_timeout_seconds: float = 0.3) -> Iterator[S3Storage]:
    """A storage on an HTTP server that answers every request, once its body is read, with `answer`."""

    class AnsweredRequest(Request):
        def _answer(self) -> None:
            self.close_connection = True
            self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
            answer(self)

        do_HEAD = do_GET = do_PUT = do_DELETE = _answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), AnsweredRequest)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield client_of(f"http://127.0.0.1:{server.server_port}", read_timeout_seconds=read_timeout_seconds)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def client_of(endpoint_url: str, *, read_timeout_seconds: float = 0.3) -> S3Storage:
    """A storage on `endpoint_url` that loses patience within a second."""
    return S3Storage(
        "pictures",
        endpoint_url=endpoint_url,
        region="us-east-1",
        path_style=True,
        access_key_id="an-id",
        secret_access_key="a-secret",
        connect_timeout_seconds=0.3,
        read_timeout_seconds=read_timeout_seconds,
    )


def answering(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Always this status, body and headers (`content_range` is sent as `content-range`)."""

    def answer(request: Request) -> None:
        request.send_response(status)
        request.send_header("connection", "close")
        for name, value in ({"content_length": str(len(body))} | headers).items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    return answer


def refusing(status: int, code: str) -> Answer:
    """Always an S3 error with this code, in words that hold what must not be passed on."""
    words = "AKIASECRETKEYID is not allowed https://x/?X-Amz-Signature=abc"
    return answering(status, f"<Error><Code>{code}</Code><Message>{words}</Message></Error>".encode())


def by_method(**answers: Answer) -> Answer:
    """One answer per method: `by_method(HEAD=..., GET=...)`."""

    def answer(request: Request) -> None:
        answers[request.command](request)

    return answer
