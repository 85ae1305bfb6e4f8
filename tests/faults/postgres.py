"""Where does the harness get a Postgres of its own that it can crash and start again on the same port?"""

import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from app.database.binaries import choose_user, find_binaries
from app.database.cluster import (
    NAME,
    Launch,
    Place,
    launch_program,
    lock_file,
    make_cluster,
    new_log,
    read_password,
    setting_options,
)
from app.database.server import HOST, SETTINGS, version_at

_START_SECONDS_MAX = 60
_STOP_SECONDS_MAX = 20
# A crash of Postgres alone loses nothing that the kernel was handed, so nothing need be synced; but what was committed
# must have been handed to it, so commits stay synchronous.
_CRASH_SAFE = {"fsync": "off", "full_page_writes": "off"}


class CrashingPostgres:
    """A real Postgres under `folder`, with an empty database; made, unless it is there.

    Open it from the main thread; closing stops it.
    """

    def __init__(self, folder: Path) -> None:
        place = Place(folder.absolute())
        place.data_dir.mkdir(parents=True, exist_ok=True)
        self._closing = ExitStack()
        lock_fd = self._closing.enter_context(lock_file(place.server_lock))
        log_fd = self._closing.enter_context(new_log(place.log))
        run_as = choose_user(place.cluster)
        self._launch = Launch(find_binaries(None, run_as, None), run_as, place, log_fd, lock_fd)
        if not place.cluster.exists():
            make_cluster(self._launch, durable=False)
        self._password = read_password(place)
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self._port: int = probe.getsockname()[1]
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql+psycopg://{NAME}:{self._password}@{HOST}:{self._port}/{NAME}"

    def __enter__(self) -> Self:
        self.start()
        self.await_answer()
        return self

    def __exit__(self, *_: object) -> None:
        self.crash()
        self._closing.close()

    def start(self) -> None:
        """Start it on its port, and do not wait: it may have a crash to recover from."""
        options = setting_options({**SETTINGS, **_CRASH_SAFE, "port": str(self._port)})
        self._server = launch_program(self._launch, "postgres", options, folder=self._launch.place.cluster)

    def answers(self) -> bool:
        """Whether it takes connections."""
        return version_at(self._port, self._password) is not None

    def await_answer(self) -> None:
        """Return once it takes connections. Raises TimeoutError."""
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not self.answers():
            if time.monotonic() > deadline:
                raise TimeoutError(self._launch.place.log.read_text(errors="replace")[-2000:])
            time.sleep(0.02)

    def crash(self) -> None:
        """Stop it as `pg_ctl stop -m immediate` does: every connection breaks off, nothing is written down."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(_STOP_SECONDS_MAX)
            self._server = None
