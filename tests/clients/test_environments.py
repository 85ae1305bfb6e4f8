"""Is a client's environment what its lock file says, and is it said plainly when it can't be had?"""

import re
from pathlib import Path

import pytest

from tests.clients.clients import CLIENTS
from tests.clients.environments import NotMadeError, drive_of, lock_of


def test_a_registry_that_can_not_be_reached_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (client,) = (client for client in CLIENTS if client.name == "requests")

    with pytest.raises(
        NotMadeError, match=r"requests could not be installed by pip\. Is its package registry in reach"
    ):
        drive_of(client, tmp_path)

    # The next run makes it anew instead of taking what there is.
    assert list(tmp_path.glob("requests-*/made")) == []


def test_no_lock_file_names_a_registry() -> None:
    locks = {client.name: lock_of(client) for client in CLIENTS if client.kind != "command"}

    # npm also writes down where a package's authors ask for support.
    address = re.compile(r"://(?!github\.com/)")
    assert [name for name, lock in locks.items() if address.search(lock.read_text(encoding="utf-8"))] == []
