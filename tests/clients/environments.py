"""How does a client get an environment of its own, and what starts its drive there?

An environment is made once for what its lock file says, under `.venv-clients` beside the checkout's own, and found
there by every later run.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clients.clients import Client

CHECKOUT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent
ENVIRONMENTS = CHECKOUT / ".venv-clients"
_LOCKS = {"python": "requirements.txt", "node": "package-lock.json", "browser": "package-lock.json"}
_MAKING_SECONDS_MAX = 600
_LINES_TOLD = 8


class NotMadeError(Exception):
    """A client can't be run on this machine; the sentence says why."""


def drive_of(client: Client, environments: Path = ENVIRONMENTS) -> list[str]:
    """Make the client's environment if it isn't there, and return the command that starts its drive.

    Run it with `surroundings` of the client. Raises NotMadeError.
    """
    if client.kind == "command":
        _program(client.package)
        return [sys.executable, "-m", f"tests.clients.{client.folder}.drive"]
    folder = _made(client, environments)
    if client.kind == "python":
        return [str(folder / "bin" / "python"), "-m", f"tests.clients.{client.folder}.drive"]
    # The one that came with the client's packages, for clients are choosy; the machine's where there is none for it.
    own = folder / "node_modules" / ".bin" / "node"
    return [str(own) if own.exists() else _program("node"), str(folder / "drive.mjs")]


def surroundings(client: Client) -> dict[str, str]:
    """Return what a drive runs with: the machine's variables, the client's, and our modules' place.

    Without a proxy, and without what a person's own OpenAI account sets: other retries, another timeout.
    """
    own = ("OPENAI_", "LITELLM_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(own) and not name.lower().endswith("_proxy")
    }
    return {**kept, **client.variables, "PYTHONPATH": str(CHECKOUT), "NO_PROXY": "*"}


def version_of(client: Client) -> str:
    """Return the version that is pinned, or that a command says it has. Raises NotMadeError."""
    if client.kind == "command":
        said = subprocess.run([_program(client.package), "--version"], capture_output=True, text=True, check=True)
        return str(re.findall(r"\d+(?:\.\d+)+", said.stdout)[0])
    if client.kind == "browser":
        # Not always the pinned one: an installed browser is driven where there is one.
        said = subprocess.run([*drive_of(client), "--version"], capture_output=True, text=True, check=True)
        return said.stdout.strip().rpartition("/")[2]
    lock = lock_of(client).read_text(encoding="utf-8")
    if client.kind == "python":
        return str(re.findall(rf"^{re.escape(client.package)}==(\S+)", lock, re.MULTILINE)[0])
    return str(json.loads(lock)["packages"][f"node_modules/{client.package}"]["version"])


def lock_of(client: Client) -> Path:
    """Return the file that pins what a client needs."""
    return CLIENTS / client.folder / _LOCKS[client.kind]


def missing(client: Client) -> str | None:
    """Return why this machine can't run a client at all, before anything is fetched; None when it can."""
    needed = {"node": ("node", "npm"), "browser": ("node", "npm"), "command": (client.package,), "python": ()}
    lacking = [program for program in needed[client.kind] if shutil.which(program) is None]
    return f"{' and '.join(lacking)}: not on the PATH" if lacking else None


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotMadeError(f"{name}: not on the PATH")
    return found


def _made(client: Client, environments: Path) -> Path:
    """Return the folder of the client's environment. One process makes it, and others wait for it."""
    source = CLIENTS / client.folder
    # npm runs what package.json says, which the lock does not tell.
    pinned = (lock_of(client), *source.glob("package.json"))
    said = b"".join(file.read_bytes() for file in pinned) + sys.version.encode()
    folder = environments / f"{client.name}-{hashlib.sha256(said).hexdigest()[:12]}"
    environments.mkdir(exist_ok=True)
    # Written last, so that what was broken off is not taken for one. Not made elsewhere and moved: its scripts name it.
    made = folder / "made"
    with _alone(environments / f"{client.name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            if client.kind == "python":
                _make_python(client, source, folder)
            else:
                _make_node(client, source, folder)
            made.touch()
        for program in (*source.glob("*.mjs"), *source.glob("*.js")):
            # Node looks for modules beside the program itself. Moved into place, for it may be running.
            shutil.copy(program, folder / f"{program.name}.new")
            (folder / f"{program.name}.new").rename(folder / program.name)
    return folder


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _make_python(client: Client, source: Path, folder: Path) -> None:
    # Without a pip of its own, which would take as long to install as a small client.
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "--disable-pip-version-check", "install", "--quiet"]
    _run(client, [*pip, "--require-hashes", "--requirement", str(source / "requirements.txt")], folder)


def _make_node(client: Client, source: Path, folder: Path) -> None:
    # The programs too, for npm may be told to run one when it has installed.
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules", "chromium"))
    _run(client, [_program("npm"), "ci", "--no-audit", "--no-fund"], folder)


def _run(client: Client, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=_MAKING_SECONDS_MAX
        )
    except subprocess.TimeoutExpired as late:
        raise NotMadeError(f"{client.name}: not installed within {_MAKING_SECONDS_MAX} s") from late
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_LINES_TOLD:])
        tool = "npm" if client.kind != "python" else "pip"
        raise NotMadeError(f"{client.name} could not be installed by {tool}. Is its package registry in reach?\n{last}")
