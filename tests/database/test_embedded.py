"""Does the private Postgres keep what it stored, to itself, and say what is wrong with a folder it can't use?"""

from pathlib import Path

import psycopg
import pytest

from app.database.cluster import Place
from app.database.embedded import EmbeddedPostgresError, open_embedded
from tests.database.launcher import ask, carried


def test_a_later_start_finds_what_an_earlier_one_stored(data_dir: Path) -> None:
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        assert ask(postgres.url, "SELECT what FROM kept") == ("a picture",)


def test_a_durable_start_syncs_and_speaks_utf_8(tmp_path: Path) -> None:
    with open_embedded(tmp_path, role="serve") as postgres:
        assert ask(postgres.url, "SHOW fsync") == ("on",)
        assert ask(postgres.url, "SHOW server_encoding") == ("UTF8",)
        assert ask(postgres.url, "SHOW server_version") == (postgres.version,)


def test_only_the_loopback_address_answers(data_dir: Path) -> None:
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        assert ask(postgres.url, "SHOW listen_addresses") == ("127.0.0.1",)
        assert ask(postgres.url, "SHOW unix_socket_directories") == ("",)


def test_a_wrong_password_is_refused(data_dir: Path) -> None:
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        password = postgres.url.split(":")[2].split("@")[0]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            ask(postgres.url.replace(password, "guessed"), "SELECT 1")


def test_the_password_is_private_and_is_neither_shown_nor_logged(tmp_path: Path) -> None:
    with open_embedded(tmp_path, role="serve", durable=False) as postgres:
        password = postgres.url.split(":")[2].split("@")[0]
        with pytest.raises(psycopg.errors.SyntaxError):
            ask(postgres.url, f"ALTER ROLE imagekeep PASSWORD '{password}' nonsense")
        shown = repr(postgres)
    place = Place(tmp_path)
    assert place.password.read_text() == password
    assert place.password.stat().st_mode & 0o777 == 0o600
    assert place.cluster.stat().st_mode & 0o777 == 0o700
    assert password not in shown + place.log.read_text()


def test_a_folder_of_another_major_is_refused_with_the_way_out(tmp_path: Path) -> None:
    open_embedded(tmp_path, role="serve", durable=False, binaries_dir=carried("pginstall")).close()
    with pytest.raises(EmbeddedPostgresError, match=r"made by Postgres 16, .* Dump it .* DATABASE_URL"):
        open_embedded(tmp_path, role="serve", durable=False, binaries_dir=carried("pginstall18"))
    # The carrier has the older binaries too, and unless told otherwise the folder decides.
    with open_embedded(tmp_path, role="serve", durable=False) as postgres:
        assert postgres.version.startswith("16.")


def test_without_any_binaries_the_ways_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"imagekeep\[embedded\].*DATABASE_URL"):
        open_embedded(tmp_path / "data", role="serve", binaries_dir=tmp_path)


def test_a_start_that_failed_says_why_and_frees_the_folder(data_dir: Path) -> None:
    settings = Place(data_dir).cluster / "postgresql.conf"
    good = settings.read_text()
    settings.write_text("nonsense = here\n")
    with pytest.raises(EmbeddedPostgresError, match=r"did not start.*unrecognized configuration parameter"):
        open_embedded(data_dir, role="serve", durable=False)
    settings.write_text(good)
    with open_embedded(data_dir, role="serve", durable=False) as postgres:
        assert ask(postgres.url, "SELECT 1") == (1,)


def test_a_lost_password_file_is_named(data_dir: Path) -> None:
    Place(data_dir).password.unlink()
    with pytest.raises(EmbeddedPostgresError, match=r"postgres\.password.*Restore it"):
        open_embedded(data_dir, role="serve", durable=False)


def test_a_ruined_folder_is_named(data_dir: Path) -> None:
    (Place(data_dir).cluster / "PG_VERSION").unlink()
    with pytest.raises(EmbeddedPostgresError, match="is not a Postgres data folder"):
        open_embedded(data_dir, role="serve", durable=False)
