"""How long is the other side waited for that reads, or speaks, but slowly?"""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from app.connections.connection import Body, Connection
from app.connections.dialing import Dialer
from app.connections.kept import Incoming, KeptConnections, Request

pytestmark = pytest.mark.anyio

SILENCE_SECONDS_MAX = 1.0
BODY = bytes(2_000_000)


@contextmanager
def peer(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """The port of somebody who answers one connection like this, with little room for what it has not read yet."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def work() -> None:
            connection = listener.accept()[0]
            with connection:
                serve(connection)

        thread = threading.Thread(target=work)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


async def dial_with_little_room(
    host: str, port: int, *, tls: ssl.SSLContext | None = None, server_name: str | None = None
) -> Connection:
    """As the service dials. Megabytes that our own system took would be on their way, as far as anybody can tell."""
    connection = await Dialer().dial(host, port, tls=tls, server_name=server_name)
    transport = connection._transport
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    return connection


async def sent(port: int, body: bytes) -> tuple[Incoming, Body]:
    connections = KeptConnections(dial_with_little_room, tls=ssl.create_default_context)
    request = Request("127.0.0.1", port, None, b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    try:
        incoming = await connections.open(request, connect_timeout_seconds=5, silence_seconds_max=SILENCE_SECONDS_MAX)
        return incoming, await incoming.read(bytes_max=1000, silence_seconds_max=SILENCE_SECONDS_MAX)
    finally:
        await connections.close()


async def test_who_takes_longer_for_a_piece_than_it_may_be_silent_is_waited_for() -> None:
    read = 0

    def dawdle(connection: socket.socket) -> None:
        nonlocal read
        while read < len(BODY) // 2 and (piece := connection.recv(8 * 1024)):
            read += len(piece)
            time.sleep(0.02)
        while read < len(BODY) and (piece := connection.recv(1024 * 1024)):
            read += len(piece)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with peer(dawdle) as port:
        began = time.monotonic()
        incoming, told = await sent(port, BODY)

    assert incoming.status == 200
    assert told == b"ok"
    assert time.monotonic() - began > 2 * SILENCE_SECONDS_MAX


async def test_who_stops_reading_is_given_up_after_its_silence() -> None:
    given_up = threading.Event()

    def stop(connection: socket.socket) -> None:
        connection.recv(8 * 1024)
        given_up.wait(30)

    with peer(stop) as port:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await sent(port, BODY)
        given_up.set()

    assert SILENCE_SECONDS_MAX <= time.monotonic() - began < 4 * SILENCE_SECONDS_MAX


async def test_who_speaks_slowly_in_pieces_of_unknown_number_is_waited_for() -> None:
    def speak(connection: socket.socket) -> None:
        connection.recv(8 * 1024)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(6):
            connection.sendall(b"1\r\nx\r\n")
            time.sleep(0.4)
        connection.sendall(b"0\r\n\r\n")

    with peer(speak) as port:
        _, told = await sent(port, b"")

    assert told == b"xxxxxx"


async def test_who_says_nothing_is_given_up_after_its_silence() -> None:
    given_up = threading.Event()

    def keep_silent(connection: socket.socket) -> None:
        connection.recv(8 * 1024)
        given_up.wait(30)

    with peer(keep_silent) as port:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sent(port, b"a fox"), 10)
        given_up.set()

    assert time.monotonic() - began < 4 * SILENCE_SECONDS_MAX


async def test_who_says_half_a_word_while_everything_stands_still_is_given_up_all_the_same() -> None:
    """The silence is over in the very turn of the loop in which the half word comes."""
    loop, told, given_up = asyncio.get_running_loop(), threading.Event(), threading.Event()
    here, there = socket.socketpair()
    here.setblocking(False)

    def stand_still() -> None:
        loop.remove_reader(here)
        time.sleep(1.5 * SILENCE_SECONDS_MAX)

    def say_half(connection: socket.socket) -> None:
        connection.recv(8 * 1024)
        told.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nServer: ")
        there.send(b"x")
        given_up.wait(30)

    with here, there, peer(say_half) as port:
        loop.add_reader(here, stand_still)
        asking = asyncio.create_task(sent(port, b"a fox"))
        await asyncio.sleep(0.2)
        told.set()
        # Both are there when the loop looks next.
        time.sleep(0.2)  # noqa: ASYNC251
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asking), 4 * SILENCE_SECONDS_MAX)
            assert asking.done(), "it was given up, not left waiting"
        finally:
            asking.cancel()
            given_up.set()
