"""How does a store behave that no real server would play: one that refuses, lies, stalls, or breaks off?"""

import ssl
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
def hostile_store(
    answer: Answer, *, patience_seconds: float = 10, taken: Callable[[Request], bool] = lambda _: False
) -> Iterator[S3Storage]:
    """A storage on an HTTP server that answers every request, once its body is read, with `answer`.

    `taken` is asked before the body is read, and says whether it has dealt with the request in its own way.
    """
    with hostile_server(answer, taken=taken) as port:
        yield client_of(f"http://127.0.0.1:{port}", patience_seconds=patience_seconds)


@contextmanager
def hostile_server(
    answer: Answer, *, tls: ssl.SSLContext | None = None, taken: Callable[[Request], bool] = lambda _: False
) -> Iterator[int]:
    """The port of that server alone, with or without TLS."""

    class AnsweredRequest(Request):
        def _answer(self) -> None:
            self.close_connection = True
            if taken(self):
                return
            self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
            answer(self)

        do_HEAD = do_GET = do_PUT = do_DELETE = do_POST = _answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), AnsweredRequest)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def client_of(endpoint_url: str, *, patience_seconds: float = 10, has_keys: bool = True) -> S3Storage:
    """A storage on `endpoint_url`; without keys, it looks for them.

    It has patience with a machine that is busy: after 0.3 s a check was given up whose body was still being hashed.
    Who waits for it to be lost says how soon.
    """
    return S3Storage(
        "pictures",
        endpoint_url=endpoint_url,
        region="us-east-1",
        path_style=True,
        access_key_id="an-id" if has_keys else None,
        secret_access_key="a-secret" if has_keys else None,
        connect_timeout_seconds=patience_seconds,
        read_timeout_seconds=patience_seconds,
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
