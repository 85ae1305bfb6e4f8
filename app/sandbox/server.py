"""How does the sandbox run, and when does it end?"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from typing import Final

import uvicorn
from starlette.applications import Starlette

from app.sandbox.sending import ReachableTransportProtocol
from app.sandbox.wire import create_sandbox

_PR_SET_PDEATHSIG: Final = 1
_STOP_SECONDS_MAX: Final = 2.0


class SandboxServer(uvicorn.Server):
    """A uvicorn server that ends at once, and, given `parent_id`, soon after that process is no longer its parent."""

    def __init__(self, app: Starlette, *, parent_id: int | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=ReachableTransportProtocol,
                ws="none",
                lifespan="off",
                # uvicorn's own set-up would change the loggers of the whole process, which in tests is not ours alone.
                log_config=None,
                proxy_headers=False,
                server_header=False,
            )
        )
        self._parent_id = parent_id

    async def on_tick(self, counter: int) -> bool:
        """Ends when the parent is gone: uvicorn asks ten times a second."""
        orphaned = self._parent_id is not None and os.getppid() != self._parent_id
        return await super().on_tick(counter) or orphaned

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes every connection instead of waiting: an order that hangs would keep the sandbox for ever."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_STOP_SECONDS_MAX)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError when the address cannot be had."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A sandbox started again must get its port back while the closed connections of the one before linger.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Where this machine reaches a listening socket, as http://address:port."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a comparison, nothing is bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_sandbox(
    *,
    host: str,
    port: int,
    api_keys: frozenset[str] | None = None,
    public_url: str | None = None,
    draw: bool = True,
    url_lifetime_seconds: float = 7200,
    delay_seconds: float = 0,
    die_with_parent: bool = False,
    parent_id: int | None = None,
) -> None:
    """Runs the sandbox until it is stopped (SIGINT, SIGTERM). Says nothing, and has no access log.

    `public_url` defaults to where this machine reaches it. With `die_with_parent` it also ends when the process that
    started it does, however that ended; a caller that passes its own process id as `parent_id` has this even when it
    dies before the first line here runs. On Linux the death signal follows the *thread* that started it: start it
    from one that lives as long as the process. Raises OSError when the port cannot be had.
    """
    if die_with_parent:
        parent_id = parent_id or os.getppid()
        _ask_for_parent_death_signal()
    # uvicorn raises a caught SIGINT once more when it has stopped; this one was obeyed already.
    with contextlib.closing(bind(host, port)) as listener, contextlib.suppress(KeyboardInterrupt):
        app = create_sandbox(
            api_keys=api_keys,
            public_url=public_url or url_of(listener),
            draw=draw,
            url_lifetime_seconds=url_lifetime_seconds,
            delay_seconds=delay_seconds,
        )
        SandboxServer(app, parent_id=parent_id if die_with_parent else None).run(sockets=[listener])


def _ask_for_parent_death_signal() -> None:
    # The kernel's signal comes even while the sandbox starts or is busy. What it misses, a parent that is gone
    # already and systems other than Linux, the server's own look at its parent catches.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
