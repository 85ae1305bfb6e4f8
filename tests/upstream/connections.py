"""Which addresses does this process connect to, and which names does it look up?

Seen where Python itself hands them to the system (its audit events), below every library, and with nothing replaced.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Connections:
    """What was connected to, as (host, port), and what was looked up. uvloop's look-ups are its own and not seen."""

    connected: list[tuple[str, int]] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)

    def note(self, event: str, arguments: tuple[object, ...]) -> None:
        """Notes an audit event of the thread that asked."""
        if event in ("socket.connect", "socket.sendto") and isinstance(address := arguments[1], tuple):
            self.connected.append((str(address[0]), int(address[1])))
        elif event == "socket.getaddrinfo":
            self.looked_up.append(str(arguments[0]))


@contextmanager
def seen_connections() -> Iterator[Connections]:
    """All connections of this thread's loop until this returns. A hook stays for ever, so it ends by looking away."""
    seen, thread, looking = Connections(), threading.get_ident(), True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        # Look-ups run in the loop's worker threads; other tests' servers connect in threads of their own.
        if looking and (threading.get_ident() == thread or event == "socket.getaddrinfo"):
            seen.note(event, arguments)

    sys.addaudithook(hook)
    try:
        yield seen
    finally:
        looking = False
