"""How do tests put a bad network between the service and what it talks to?

A `TcpProxy` stands in front of any host and port and can be switched while connections are open:

    with TcpProxy("127.0.0.1", postgres_port) as proxy:
        ...                                  # to proxy.port: everything passes, until
        proxy.blackhole()                    # nothing is answered any more, and nothing is refused
        proxy.pass_through()                 # what was stalled goes on, as after a network's outage

Every switch is for connections that are open and those to come, and holds until the next one.
"""

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65_536
# How long a pump waits before it looks whether it was switched or closed.
_LOOK_SECONDS = 0.02
_LET_GO_SECONDS_MAX = 0.5


class _Mode(Enum):
    PASS = "pass"
    REFUSE = "refuse"
    BLACKHOLE = "blackhole"
    CUT_ANSWERS = "cut answers"
    RESET_ANSWERS = "reset answers"


@dataclass(frozen=True)
class _Weather:
    """What happens to bytes just now."""

    mode: _Mode = _Mode.PASS
    delay_seconds: float = 0
    bytes_per_second: float = 0
    marker: bytes = b""
    bytes_max: int = 0


@dataclass
class _Connection:
    """A client's connection and ours to the server, once it is there."""

    client: socket.socket
    server: socket.socket | None = None
    marked: bool = False
    answered_bytes: int = 0
    aborted: bool = False
    thread: threading.Thread | None = None


class TcpProxy:
    """Listens on `port` of 127.0.0.1 in front of `host:port`; passes everything on until it is switched."""

    def __init__(self, host: str, port: int) -> None:
        """`host` and `port` are the server's. It need not be there yet."""
        self._server = (host, port)
        self._weather = _Weather()
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        self._closed = False
        self._cuts = 0
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accept_from(self._listener)

    def __enter__(self) -> Self:
        """Open already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close, whatever happened."""
        self.close()

    @property
    def cuts(self) -> int:
        """How many answers were cut off or reset since the start: whether the fault has happened yet."""
        return self._cuts

    @property
    def connections(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._connections)

    def pass_through(self) -> None:
        """Let everything through. What a blackhole held back goes on, in order."""
        self._switch(_Weather())

    def refuse(self) -> None:
        """Listen no more and reset what is open, as when the server's process dies."""
        self._switch(_Weather(_Mode.REFUSE))
        self.reset()

    def blackhole(self, *, after: bytes = b"") -> None:
        """Accept, and say nothing; stall what is open, both ways, and keep what was sent.

        With `after` only connections whose client has sent these bytes, from then on; they themselves are held back.
        """
        self._switch(_Weather(_Mode.BLACKHOLE, marker=after))

    def delay(self, seconds: float) -> None:
        """Hold back each piece so long, each way."""
        self._switch(_Weather(delay_seconds=seconds))

    def trickle(self, *, bytes_per_second: float = 1) -> None:
        """Let the server's bytes through one by one, at this pace; the client's pass as they come."""
        self._switch(_Weather(bytes_per_second=bytes_per_second))

    def cut_answers(self, *, after: bytes = b"") -> None:
        """Pass requests on, but drop the server's reply and reset the client: it was done, and nobody is told.

        With `after` only once a connection's client has sent these bytes; what comes before passes.
        """
        self._switch(_Weather(_Mode.CUT_ANSWERS, marker=after))

    def reset_answers(self, *, after_bytes: int) -> None:
        """Reset each connection in the middle of what the server says: after so many more bytes of it."""
        with self._lock:
            for connection in self._connections:
                connection.answered_bytes = 0
        self._switch(_Weather(_Mode.RESET_ANSWERS, bytes_max=after_bytes))

    def reset(self) -> None:
        """Send a RST to every client and server that is connected now. Those to come fare as before."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            _abort(connection)
        # The RST leaves when the last thread lets go of its socket. Whoever looks next is to see it; one that holds
        # bytes back takes its time.
        give_up_at = time.monotonic() + _LET_GO_SECONDS_MAX
        for connection in connections:
            if connection.thread is not None:
                connection.thread.join(max(0, give_up_at - time.monotonic()))

    def close(self) -> None:
        """Listen no more, and reset what is open."""
        self._closed = True
        self._stop_listening()
        self.reset()

    def _switch(self, weather: _Weather) -> None:
        if weather.mode is _Mode.REFUSE:
            self._stop_listening()
        elif self._listener is None and not self._closed:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._accept_from(self._listener)
        with self._lock:
            for connection in self._connections:
                connection.marked = False
        self._weather = weather

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # close() alone leaves the port open until the thread that waits in accept() has come back.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept_from(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), name="tcp-proxy", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = _Connection(listener.accept()[0])
                with self._lock:
                    self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), name="tcp-proxy", daemon=True)
                thread.start()
                connection.thread = thread

    def _serve(self, connection: _Connection) -> None:
        try:
            while self._swallows(connection):
                time.sleep(_LOOK_SECONDS)
            connection.server = socket.create_connection(self._server, timeout=10)
            connection.server.settimeout(None)
            back = threading.Thread(
                target=self._pump, args=(connection, connection.server, connection.client, True), daemon=True
            )
            back.start()
            self._pump(connection, connection.client, connection.server, False)
            back.join()
        except OSError:
            # The server refuses: so does the proxy, as far as one can that has accepted already.
            _abort(connection)
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._connections.remove(connection)
            _close(connection)

    def _pump(self, connection: _Connection, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while piece := source.recv(_CHUNK_BYTES):
                if answers:
                    self._answer(connection, piece)
                else:
                    connection.marked = connection.marked or self._weather.marker in piece
                    self._wait_out(connection)
                    sink.sendall(piece)
            self._wait_out(connection)
            # One side may end while the other still speaks. After a reset, an orderly end must not come first.
            if not connection.aborted:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            _abort(connection)

    def _answer(self, connection: _Connection, piece: bytes) -> None:
        self._wait_out(connection)
        weather = self._weather
        if weather.mode is _Mode.CUT_ANSWERS and connection.marked:
            self._cuts += 1
            raise ConnectionResetError("the answer is cut")
        if weather.mode is _Mode.RESET_ANSWERS:
            left_bytes = weather.bytes_max - connection.answered_bytes
            connection.answered_bytes += len(piece)
            connection.client.sendall(piece[: max(0, left_bytes)])
            if connection.answered_bytes > weather.bytes_max:
                self._cuts += 1
                raise ConnectionResetError("the answer is reset")
        elif weather.bytes_per_second:
            self._trickle(connection.client, piece)
        else:
            connection.client.sendall(piece)

    def _trickle(self, client: socket.socket, piece: bytes) -> None:
        for at in range(len(piece)):
            if not (pace := self._weather.bytes_per_second):
                client.sendall(piece[at:])
                return
            client.sendall(piece[at : at + 1])
            time.sleep(1 / pace)

    def _wait_out(self, connection: _Connection) -> None:
        """Return when the weather lets something of this connection through."""
        time.sleep(self._weather.delay_seconds)
        while self._swallows(connection):
            time.sleep(_LOOK_SECONDS)

    def _swallows(self, connection: _Connection) -> bool:
        weather = self._weather
        concerned = connection.marked or not weather.marker
        return weather.mode is _Mode.BLACKHOLE and concerned and not (self._closed or connection.aborted)


def _abort(connection: _Connection) -> None:
    """Close both ends with a RST: what a lingering time of nothing means."""
    connection.aborted = True
    for end in (connection.client, connection.server):
        if end is not None:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # A thread that waits in recv() keeps a closed socket open; this wakes it.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RD)
    _close(connection)


def _close(connection: _Connection) -> None:
    for end in (connection.client, connection.server):
        if end is not None:
            end.close()
