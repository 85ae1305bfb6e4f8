"""What does bringing one picture home cost, with nothing around it: by raw sockets, by boto3 as it comes, by ours?

Each order that this process gets is one picture fetched from upstream and put into the bucket; the answer says whether
it is there. The orders are read as cheaply as the bench's own servers read theirs.

python -m bench.rehosters sockets --port 9004 --upstream http://127.0.0.1:9000 --sink http://127.0.0.1:9003
"""

import argparse
import asyncio
import re
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import boto3
import urllib3
import uvloop

from app.generations.picture import inspect
from app.storage.s3 import S3Storage
from app.upstream.download import Downloader
from app.upstream.room import Room
from bench.wire import Answering, Message, answer_with, serve

_PICTURE = re.compile(rb"\[\[url (\w+) ")
_THREADS_MAX = 10
_PIXELS_MAX = 64_000_000
# As the settings of an installation have it, and its rehost.
_IN_FLIGHT_MAX, _CHECK_THREADS, _ROOM_BYTES_MAX = 8, 2, 32 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024

# Brings home the picture of this name.
Rehost = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def by_sockets(upstream_url: str, sink_url: str) -> AsyncIterator[Rehost]:
    """Fetch and put with nothing but sockets, in a thread: each chunk goes on as it comes. The least there is to do."""
    upstream, sink = urlsplit(upstream_url), urlsplit(sink_url)

    def in_thread(name: str) -> None:
        with (
            socket.create_connection(("127.0.0.1", upstream.port or 80)) as source,
            socket.create_connection(("127.0.0.1", sink.port or 80)) as target,
        ):
            source.sendall(f"GET /pictures/{name}.png HTTP/1.1\r\nHost: {upstream.netloc}\r\n\r\n".encode())
            buffer = memoryview(bytearray(_CHUNK_BYTES))
            held = source.recv_into(buffer)
            # The bench's upstream sends its head with the first bytes of the body.
            head, _, began = bytes(buffer[:held]).partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            target.sendall(_signed_head(sink.netloc, length) + began)
            missing = length - len(began)
            while missing:
                held = source.recv_into(buffer)
                target.sendall(buffer[:held])
                missing -= held
            assert target.recv(_CHUNK_BYTES).startswith(b"HTTP/1.1 200")

    with _threaded(in_thread) as rehost:
        yield rehost


def _signed_head(host: str, length: int) -> bytes:
    return (
        f"PUT /bench/{secrets.token_hex(16)}.png HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n"
        "Authorization: AWS4-HMAC-SHA256 Credential=bench, SignedHeaders=host, Signature=00\r\n\r\n"
    ).encode()


@contextmanager
def _threaded(rehost: Callable[[str], None]) -> Iterator[Rehost]:
    with ThreadPoolExecutor(_THREADS_MAX) as threads:

        async def in_thread(name: str) -> None:
            await asyncio.get_running_loop().run_in_executor(threads, rehost, name)

        yield in_thread


@asynccontextmanager
async def by_boto3(upstream_url: str, sink_url: str) -> AsyncIterator[Rehost]:
    """Fetch with urllib3 and put with boto3, both as they come, in a thread."""
    client = boto3.client("s3", endpoint_url=sink_url)
    pool = urllib3.PoolManager(maxsize=_THREADS_MAX)

    def in_thread(name: str) -> None:
        body = pool.request("GET", f"{upstream_url}/pictures/{name}.png").data
        client.put_object(Bucket="bench", Key=f"{secrets.token_hex(16)}.png", Body=body, ContentType="image/png")

    with _threaded(in_thread) as rehost:
        yield rehost
    pool.clear()
    client.close()


@asynccontextmanager
async def by_ours(upstream_url: str, sink_url: str) -> AsyncIterator[Rehost]:
    """Fetch guarded, check that it is a whole picture, and put, as a generation's picture is kept."""
    downloader = Downloader(allow_loopback_http=True, timeout_seconds=30)
    storage = S3Storage("bench", endpoint_url=sink_url, region=None, path_style=True)
    # As readiness asks it.
    await storage.check()
    places, room = asyncio.Semaphore(_IN_FLIGHT_MAX), Room(bytes_max=_ROOM_BYTES_MAX)
    with ThreadPoolExecutor(_CHECK_THREADS) as threads:

        async def rehost(name: str) -> None:
            async with places:
                with room.hold() as held:
                    body = await downloader.fetch(f"{upstream_url}/pictures/{name}.png", held)
                    loop = asyncio.get_running_loop()
                    picture = await loop.run_in_executor(threads, lambda: inspect(body, pixels_max=_PIXELS_MAX))
                    key, kind = f"{secrets.token_hex(16)}.png", picture.content_type
                    await storage.put(key, picture.body, content_type=kind, sha256=picture.sha256)

        yield rehost
    await storage.close()
    await downloader.close()


# What opens each way, given where upstream and the bucket are.
KINDS: Mapping[str, Callable[[str, str], AbstractAsyncContextManager[Rehost]]] = {
    "sockets": by_sockets,
    "boto3": by_boto3,
    "imagekeep": by_ours,
}


def connections(rehost: Rehost) -> type[Answering]:
    """Return what answers each connection: a rehost for each order, and 200 when it is done."""
    running: set[asyncio.Task[None]] = set()

    class _Rehoster(Answering):
        def answer(self, request: Message) -> None:
            asked = _PICTURE.search(request.body)
            if asked is None:
                self.send(answer_with("404 Not Found", b"", "text/plain"), closes=request.closes)
                return
            task = asyncio.get_running_loop().create_task(self._rehost(asked[1].decode()))
            running.add(task)
            task.add_done_callback(running.discard)

        async def _rehost(self, name: str) -> None:
            await rehost(name)
            self.send(answer_with("200 OK", b"", "text/plain"), closes=False)

    return _Rehoster


async def run(kind: str, port: int, upstream_url: str, sink_url: str) -> None:
    """Rehost in one way until the process is ended."""
    async with KINDS[kind](upstream_url, sink_url) as rehost:
        await serve(connections(rehost), port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.rehosters")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--sink", required=True)
    asked = parser.parse_args()
    uvloop.run(run(asked.kind, asked.port, asked.upstream, asked.sink))
