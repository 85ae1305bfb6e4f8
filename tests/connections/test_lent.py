"""Is memory that a picture was sent from free again as soon as its request has ended, however it ended?

Memory is lent to the next picture only when nobody looks at it. What waits for the garbage collector holds megabytes
for as long as that pleases.
"""

import asyncio
import gc
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from app.connections.connection import AnswerBroken
from app.connections.dialing import Dialer
from app.connections.kept import KeptConnections, Request

pytestmark = pytest.mark.anyio

BODY_BYTES = 4_000_000
HEAD = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of somebody who answers each connection like this, in turn, and then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work() -> None:
            with suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    connection.settimeout(1)
                    with connection, suppress(OSError):
                        serve(connection)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def reset(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def take_one(connection: socket.socket) -> None:
    """And hang up when the next one comes."""
    missing = len(HEAD) + BODY_BYTES
    while missing > 0 and (piece := connection.recv(1024 * 1024)):
        missing -= len(piece)
    connection.sendall(OK)
    reset(connection)


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def put(connections: KeptConnections, port: int, memory: bytearray) -> None:
    with memoryview(memory)[:BODY_BYTES] as lent:
        request = Request("127.0.0.1", port, None, HEAD, lent)
        incoming = await connections.open(request, connect_timeout_seconds=5, silence_seconds_max=5)
        await incoming.read(bytes_max=1000)


async def free_soon(memory: bytearray) -> None:
    """Raises TimeoutError while somebody looks at it: its size can't be changed then."""
    async with asyncio.timeout(5):
        while True:
            with suppress(BufferError):
                memory.append(0)
                return
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("without_collector")
async def test_memory_is_free_after_a_put_that_found_its_kept_connection_closed() -> None:
    connections = KeptConnections(Dialer().dial, tls=ssl.create_default_context)
    with server(take_one) as port:
        for _ in range(3):
            memory = bytearray(BODY_BYTES)
            await put(connections, port, memory)
            await free_soon(memory)
        await connections.close()


@pytest.mark.usefixtures("without_collector")
async def test_memory_is_free_after_a_put_that_was_broken_off() -> None:
    connections = KeptConnections(Dialer().dial, tls=ssl.create_default_context)
    with server(reset) as port:
        memory = bytearray(BODY_BYTES)
        with pytest.raises(AnswerBroken):
            await put(connections, port, memory)
        await free_soon(memory)
        await connections.close()
