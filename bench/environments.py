"""Where do those come from that Imagekeep is compared with, without ever becoming a dependency of it?"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Rival:
    """A program of somebody else's, of one version, installed into a folder of its own."""

    name: str
    version: str
    # Each with `{folder}` for where it is installed.
    install: Sequence[Sequence[str]]
    start: Sequence[str]

    def command(self, environments: Path) -> list[str]:
        """Return the command that starts it, without its options."""
        return [word.format(folder=self._folder(environments)) for word in self.start]

    def ensure(self, environments: Path) -> None:
        """Install it unless it is. Raises CalledProcessError."""
        folder = self._folder(environments)
        if (folder / "installed").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        for command in self.install:
            subprocess.run([word.format(folder=folder) for word in command], check=True)
        (folder / "installed").touch()

    def _folder(self, environments: Path) -> Path:
        return environments.resolve() / f"{self.name}-{self.version}"


LITELLM = Rival(
    "litellm",
    "1.106.2",
    [
        [sys.executable, "-m", "venv", "{folder}"],
        ["{folder}/bin/pip", "install", "--quiet", "litellm[proxy]==1.106.2"],
    ],
    ["{folder}/bin/litellm"],
)

PORTKEY = Rival(
    "portkey",
    "1.15.2",
    [["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", "{folder}", "@portkey-ai/gateway@1.15.2"]],
    ["node", "{folder}/node_modules/@portkey-ai/gateway/build/start-server.js"],
)

RIVALS = (LITELLM, PORTKEY)
