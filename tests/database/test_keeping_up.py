"""Is a private Postgres that dies under its owner started again, where everybody looks for it, and not for ever?"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.database.embedded import RESTARTS_MAX, EmbeddedPostgres, EmbeddedPostgresError, open_embedded
from tests.installation import eventually, processes_in
from tests.service import rows


@pytest.fixture
def given_up() -> list[EmbeddedPostgresError]:
    return []


@pytest.fixture
def postgres(tmp_path: Path, given_up: list[EmbeddedPostgresError]) -> Iterator[EmbeddedPostgres]:
    with open_embedded(tmp_path, role="serve") as opened:
        opened.keep_up(given_up.append)
        yield opened


def test_it_is_started_again_at_the_same_address_with_what_was_committed(
    postgres: EmbeddedPostgres, tmp_path: Path, given_up: list[EmbeddedPostgresError]
) -> None:
    rows(postgres.url, "CREATE TABLE kept AS SELECT 7 AS number")
    killed = postmaster_of(tmp_path)

    os.kill(killed, signal.SIGKILL)

    assert eventually(lambda: rows_or_none(postgres.url), seconds=60) == [{"number": 7}]
    assert postmaster_of(tmp_path) != killed
    assert given_up == []


def test_it_is_started_again_after_a_second_death_too(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    rows(postgres.url, "CREATE TABLE kept AS SELECT 7 AS number")
    for _ in range(2):
        killed = postmaster_of(tmp_path)
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: rows_or_none(postgres.url), seconds=60)

    assert processes_in(tmp_path)


def test_what_cannot_be_started_is_given_up_with_a_reason(
    postgres: EmbeddedPostgres, tmp_path: Path, given_up: list[EmbeddedPostgresError]
) -> None:
    control = tmp_path / "postgres" / "global" / "pg_control"
    control.write_bytes(b"\0" * control.stat().st_size)

    os.kill(postmaster_of(tmp_path), signal.SIGKILL)

    (reason,) = eventually(lambda: given_up, seconds=60)
    assert f"{RESTARTS_MAX} times" in str(reason)
    assert str(tmp_path / "postgres.log") in str(reason)


def test_closing_right_after_its_death_leaves_nothing(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    os.kill(postmaster_of(tmp_path), signal.SIGKILL)

    postgres.close()

    eventually(lambda: not processes_in(tmp_path))


def postmaster_of(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])


def rows_or_none(url: str) -> list[dict[str, object]] | None:
    try:
        return rows(url, "SELECT number FROM kept")
    except psycopg.OperationalError:
        return None
