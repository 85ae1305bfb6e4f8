"""Are the settings read from where they are said to be, and is every fault told, at once and by its variable?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings, SettingsError, load_settings

Load = Callable[..., Settings]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load the settings of exactly these variables."""

    def load(*, env_file: Path | None = None, overrides: dict[str, Any] | None = None, **variables: str) -> Settings:
        for name in Settings.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
            monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return load_settings(env_file=env_file, **(overrides or {}))

    return load


def faults(load: Load, **variables: str) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        load(**variables)
    return caught.value.faults


# Where they come from


def test_an_empty_environment_is_the_sandbox_a_folder_and_loopback(load: Load) -> None:
    settings = load()

    assert (settings.tt_api_key, settings.database_url, settings.s3_bucket) == (None, None, None)
    assert settings.resolved_public_url() == "http://127.0.0.1:8080"
    assert settings.data_dir == Path("data")
    assert settings.secrets() == ()


def test_the_defaults_leave_a_pending_generation_to_its_runner_for_longer_than_the_call_may_last(load: Load) -> None:
    settings = load()

    assert settings.pending_lease_seconds > settings.upstream_timeout_seconds
    assert settings.drain_seconds > settings.pending_lease_seconds


def test_an_empty_variable_counts_as_not_set(load: Load) -> None:
    settings = load(TT_API_KEY="", DATABASE_URL="", PORT="", PUBLIC_URL="")

    assert (settings.tt_api_key, settings.database_url, settings.port) == (None, None, 8080)


def test_flags_go_before_the_environment_and_that_before_the_file(load: Load, tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("PORT=1001\nWORKERS=11\nBIND_HOST=localhost\n")

    settings = load(env_file=env_file, PORT="1002", WORKERS="12", overrides={"port": 1003, "workers": None})

    assert (settings.port, settings.workers, settings.bind_host) == (1003, 12, "localhost")


def test_a_secret_is_read_from_the_file_that_its_variable_names(load: Load, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the-key\n")
    env_file = tmp_path / ".env"
    env_file.write_text(f"DATABASE_URL_FILE={tmp_path / 'url'}\n")
    (tmp_path / "url").write_text("postgresql://ada:pw@db/imagekeep")

    settings = load(env_file=env_file, TT_API_KEY_FILE=str(tmp_path / "key"))

    assert settings.tt_api_key is not None
    assert settings.tt_api_key.get_secret_value() == "the-key"
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql+psycopg://ada:pw@db/imagekeep"


def test_a_variable_goes_before_its_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from the file")

    settings = load(TT_API_KEY="from-the-variable", TT_API_KEY_FILE=str(tmp_path / "key"))

    assert settings.tt_api_key is not None
    assert settings.tt_api_key.get_secret_value() == "from-the-variable"


def test_an_empty_secret_file_is_a_fault_and_not_the_sandbox(load: Load, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")

    assert faults(load, TT_API_KEY_FILE=str(tmp_path / "key")) == {"TT_API_KEY_FILE": "is empty"}


def test_only_secrets_are_read_from_files(load: Load, tmp_path: Path) -> None:
    (tmp_path / "port").write_text("1001")

    assert load(PORT_FILE=str(tmp_path / "port")).port == 8080


# Secrets


def test_no_secret_is_in_a_repr_or_dump(load: Load) -> None:
    settings = load(TT_API_KEY="tt-canary", DATABASE_URL="postgresql://ada:pw-canary@db/imagekeep")

    assert "canary" not in repr(settings)
    assert "canary" not in str(settings.model_dump())


def test_the_redactor_is_told_the_password_as_it_is_typed_and_not_as_it_is_quoted(load: Load) -> None:
    settings = load(TT_API_KEY="a-key", DATABASE_URL="postgresql://ada:p%40ss%2Fword@db/imagekeep")

    assert set(settings.secrets()) == {"a-key", "postgresql+psycopg://ada:p%40ss%2Fword@db/imagekeep", "p@ss/word"}


@pytest.mark.parametrize("variable", ["TT_API_KEY", "DATABASE_URL"])
def test_a_fault_does_not_repeat_the_secret(load: Load, variable: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**{variable: "mysql://ada:pw-canary@db\nx"})

    assert variable in str(caught.value)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# Faults


def test_every_fault_is_told_at_once(load: Load, tmp_path: Path) -> None:
    found = faults(
        load,
        PORT="abc",
        WORKERS="0",
        DATABASE_URL="mysql://db",
        TT_API_KEY_FILE=str(tmp_path / "nothing"),
        BIND_HOST="0.0.0.0",
        PENDING_LEASE_SECONDS="1",
        S3_ENDPOINT_URL="http://s3",
        CORS_ORIGINS="app.example.com",
        LOG_FORMAT="xml",
    )

    assert set(found) == {
        "PORT",
        "WORKERS",
        "DATABASE_URL",
        "TT_API_KEY_FILE",
        "PUBLIC_URL",
        "PENDING_LEASE_SECONDS",
        "S3_ENDPOINT_URL",
        "CORS_ORIGINS",
        "LOG_FORMAT",
    }


def test_the_text_of_the_error_has_a_line_for_each_fault(load: Load) -> None:
    with pytest.raises(SettingsError) as caught:
        load(PORT="abc", LOG_LEVEL="LOUD")

    head, *lines = str(caught.value).splitlines()
    assert head == "Nothing was started, because of these settings:"
    assert [line.split(": ")[0] for line in lines] == ["  PORT", "  LOG_LEVEL"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_a_public_url_is_needed_beyond_loopback(load: Load, host: str) -> None:
    assert host in faults(load, BIND_HOST=host)["PUBLIC_URL"]
    assert (
        load(BIND_HOST=host, PUBLIC_URL="https://images.example.com/").resolved_public_url()
        == "https://images.example.com"
    )


def test_a_loopback_address_of_ipv6_stands_in_brackets_in_urls(load: Load) -> None:
    assert load(BIND_HOST="::1", PORT="8081").resolved_public_url() == "http://[::1]:8081"


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ada:pw@db/imagekeep",
        "postgresql:ada",
        "postgresql://",
        "db.example.com",
        "postgresql+asyncpg://db/imagekeep",
        "postgresql://ada:pw@db:port/imagekeep",
    ],
)
def test_a_database_url_that_is_not_for_postgres_is_a_fault(load: Load, url: str) -> None:
    assert faults(load, DATABASE_URL=url) == {"DATABASE_URL": "must be postgresql://user:password@host:port/database"}


@pytest.mark.parametrize("password", ["pw@canary", "12/pw@canary", "pw@canary?x", "pw@canary?x=1", "pw?@canary"])
def test_a_password_that_was_written_as_it_is_into_the_url_is_a_fault_that_does_not_tell_it(
    load: Load, password: str
) -> None:
    told = faults(load, DATABASE_URL=f"postgresql://ada:{password}@db/imagekeep")

    assert told == {"DATABASE_URL": "has an @ too many; in a user's name or password it is written %40, and a / %2F"}


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_usual_scheme_of_postgres_is_taken(load: Load, scheme: str) -> None:
    settings = load(DATABASE_URL=f"{scheme}://ada:pw@db:5432/imagekeep?sslmode=require")

    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql+psycopg://ada:pw@db:5432/imagekeep?sslmode=require"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PUBLIC_URL", "images.example.com"),
        ("PUBLIC_URL", "ftp://images.example.com"),
        ("PUBLIC_URL", "https://"),
        ("PUBLIC_URL", "https://images.example.com/?a=b"),
        ("PUBLIC_URL", "https://ada:pw@images.example.com"),
        ("PUBLIC_URL", "https://images.example.com:99999"),
        ("PUBLIC_URL", "https://images.example.com/a b"),
        ("TT_API_BASE_URL", "api.ttapi.io"),
    ],
)
def test_a_url_that_could_begin_no_address_is_a_fault(load: Load, variable: str, value: str) -> None:
    assert set(faults(load, **{variable: value})) == {variable}


def test_the_key_never_crosses_a_network_in_the_clear(load: Load) -> None:
    assert set(faults(load, TT_API_KEY="a-key", TT_API_BASE_URL="http://api.ttapi.io")) == {"TT_API_BASE_URL"}
    assert load(TT_API_KEY="a-key", TT_API_BASE_URL="http://127.0.0.1:9/").tt_api_base_url == "http://127.0.0.1:9"
    assert load(TT_API_KEY="a-key").tt_api_base_url == "https://api.ttapi.io"


@pytest.mark.parametrize("key", ["two\nlines", "tab\tbed", "two words", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_a_fault(load: Load, key: str) -> None:
    assert set(faults(load, TT_API_KEY=key)) == {"TT_API_KEY"}


@pytest.mark.parametrize("seconds", ["330", "329.9", "10"])
def test_a_lease_must_outlast_the_call(load: Load, seconds: str) -> None:
    assert set(faults(load, UPSTREAM_TIMEOUT_SECONDS="330", PENDING_LEASE_SECONDS=seconds)) == {"PENDING_LEASE_SECONDS"}


def test_a_longer_call_needs_a_longer_lease_than_the_usual_one(load: Load) -> None:
    assert set(faults(load, UPSTREAM_TIMEOUT_SECONDS="400")) == {"PENDING_LEASE_SECONDS"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("S3_PREFIX", "team"),
        ("S3_ENDPOINT_URL", "https://s3.example.com"),
        ("S3_PUBLIC_BASE_URL", "https://cdn.example.com"),
    ],
)
def test_settings_of_a_bucket_are_a_fault_without_one(load: Load, variable: str, value: str) -> None:
    assert faults(load, **{variable: value}) == {variable: "is set, but S3_BUCKET is not"}
    assert load(S3_BUCKET="pictures", **{variable: value}).s3_bucket == "pictures"


@pytest.mark.parametrize(("given", "kept"), [("", ""), ("/", ""), ("team", "team/"), ("/team/images/", "team/images/")])
def test_a_prefix_ends_with_a_slash_however_it_is_written(load: Load, given: str, kept: str) -> None:
    assert load(S3_BUCKET="pictures", S3_PREFIX=given).s3_prefix == kept


@pytest.mark.parametrize("prefix", ["..", "team/../other", "team//images", "bilder-für-alle", "."])
def test_a_prefix_that_climbs_or_is_no_plain_folder_is_a_fault(load: Load, prefix: str) -> None:
    assert set(faults(load, S3_BUCKET="pictures", S3_PREFIX=prefix)) == {"S3_PREFIX"}


def test_origins_are_a_list_with_commas(load: Load) -> None:
    settings = load(CORS_ORIGINS="https://app.example.com, http://localhost:3000,")

    assert settings.origins() == ("https://app.example.com", "http://localhost:3000")
    assert load(CORS_ORIGINS="*").origins() == ("*",)


@pytest.mark.parametrize("origins", ["app.example.com", "https://app.example.com/path", "https://a.example, ftp://b"])
def test_what_is_no_origin_is_a_fault(load: Load, origins: str) -> None:
    assert set(faults(load, CORS_ORIGINS=origins)) == {"CORS_ORIGINS"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("WORKERS", "65"),
        ("UPSTREAM_TIMEOUT_SECONDS", "0"),
        ("UPSTREAM_TIMEOUT_SECONDS", "nan"),
        ("UPSTREAM_IN_FLIGHT_MAX", "0"),
        ("RECOVERY_INTERVAL_SECONDS", "inf"),
        ("DRAIN_SECONDS", "inf"),
        ("REQUEST_BYTES_MAX", "10"),
        ("SANDBOX_DRAW", "perhaps"),
    ],
)
def test_a_number_beyond_its_bounds_is_a_fault(load: Load, variable: str, value: str) -> None:
    assert variable in faults(load, **{variable: value})


def test_settings_do_not_change_after_they_were_read(load: Load) -> None:
    settings = load()

    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]
