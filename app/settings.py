"""What can an operator choose, and what is wrong with the choice?"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

SECRETS = ("tt_api_key", "database_url")

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class SettingsError(Exception):
    """Some settings are wrong. Its text names every one of them, each by its variable."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        self.faults = dict(faults)
        lines = [f"  {variable}: {fault}" for variable, fault in self.faults.items()]
        super().__init__("Nothing was started, because of these settings:\n" + "\n".join(lines))


class Settings(BaseSettings):
    """Every setting of Imagekeep. A variable is a field's name in capitals; docs/configuration.md explains each.

    Secrets are also read from the file that `<VARIABLE>_FILE` names. An empty variable counts as not set. Where two
    settings must fit together, the later field's validator looks at the earlier one: a check of the whole would be
    skipped as soon as one field is wrong, and its fault told only at the next try.
    """

    model_config = SettingsConfigDict(
        env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", frozen=True, allow_inf_nan=False
    )

    # Who makes the images
    tt_api_key: SecretStr | None = None
    tt_api_base_url: str = "https://api.ttapi.io"
    model_catalog: Path | None = None
    upstream_timeout_seconds: float = Field(300, gt=0)
    upstream_connect_timeout_seconds: float = Field(10, gt=0)
    upstream_in_flight_max: int = Field(256, ge=1)
    breaker_seconds: float = Field(15, ge=0)
    sandbox_draw: bool = True

    # What we remember
    database_url: SecretStr | None = None
    data_dir: Path = Path("data")
    database_connections_max: int = Field(8, ge=1)
    database_timeout_seconds: float = Field(10, gt=0)
    postgres_binaries_dir: Path | None = None

    # Where images live
    s3_bucket: str | None = None
    s3_endpoint_url: str | None = None
    s3_region: str | None = None
    s3_prefix: str = ""
    s3_public_base_url: str | None = None
    s3_path_style: bool = False
    storage_patience_seconds: float = Field(10, gt=0)

    # How callers reach us
    bind_host: str = "127.0.0.1"
    public_url: str | None = None
    port: int = Field(8080, ge=1, le=65535)
    workers: int = Field(1, ge=1, le=64)
    cors_origins: str = ""
    # The longest prompt that any shipped model takes, 32,000 characters, has 12 bytes for each where a client's JSON is
    # ASCII and the characters are emoji; the rest is for the other fields.
    request_bytes_max: int = Field(512 * 1024, ge=1_024)
    waiters_max: int = Field(1_024, ge=0)
    # As long as the OpenAI SDKs wait (openai-python 3.54.0, openai-node 7.57.0): nobody would hear a later answer.
    recovery_wait_seconds_max: float = Field(600, gt=0)

    # Rehosting
    allow_private_image_hosts: bool = False
    image_bytes_max: int = Field(32 * 1024 * 1024, ge=1)
    image_pixels_max: int = Field(64_000_000, ge=1)
    image_timeout_seconds: float = Field(30, gt=0)
    rehost_in_flight_max: int = Field(8, ge=1)
    image_memory_bytes_max: int = Field(32 * 1024 * 1024, ge=1)
    picture_threads_max: int = Field(2, ge=1)
    storage_threads_max: int = Field(10, ge=1)
    source_lifetime_seconds: float = Field(3_600, gt=0)
    # Of where images live, but after the size of a picture, which it must fit.
    spool_bytes_max: int | None = Field(None, ge=0)

    # States and recovery
    pending_lease_seconds: float = Field(330, gt=0)
    generated_lease_seconds: float = Field(90, gt=0)
    recovery_interval_seconds: float = Field(10, gt=0)
    drain_notice_seconds: float = Field(5, ge=0)
    drain_seconds: float = Field(340, gt=0)

    # Repeats
    join_within_seconds: float = Field(300, ge=0)

    # What we write down
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["auto", "json", "console"] = "auto"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(env_settings, EnvSettingsSource)
        assert isinstance(dotenv_settings, DotEnvSettingsSource)
        files = _SecretFiles(settings_cls, {**dotenv_settings.env_vars, **env_settings.env_vars})
        return init_settings, env_settings, files, dotenv_settings

    @field_validator(*SECRETS, mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if isinstance(value, _UnreadableFile):
            raise value
        return value

    @field_validator("tt_api_key")
    @classmethod
    def _one_line(cls, value: SecretStr | None) -> SecretStr | None:
        # The upstream client refuses such a key only when it opens; here it is found before anything starts.
        if value and not all("!" <= character <= "~" for character in value.get_secret_value()):
            raise ValueError("holds characters that no key has (a blank, a line break?)")
        return value

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        scheme, separator, rest = value.get_secret_value().partition("://")
        if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg") or not rest:
            raise ValueError("must be postgresql://user:password@host:port/database")
        url = f"postgresql+psycopg://{rest}"
        try:
            make_url(url)
        except (ArgumentError, ValueError):
            # Its own words could repeat the password.
            raise ValueError("must be postgresql://user:password@host:port/database") from None
        if rest.count("@") > 1:
            # What follows an @ in a password is taken for the host, and told as such by whoever can't reach it.
            raise ValueError("has an @ too many; in a user's name or password it is written %40, and a / %2F")
        return SecretStr(url)

    @field_validator("tt_api_base_url", "public_url", "s3_endpoint_url", "s3_public_base_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError as error:
            raise ValueError("is no URL") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("must begin with http:// or https:// and a host")
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError("must hold no user, query or fragment")
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", parts.path):
            raise ValueError("must have a plain path, or none")
        return value.rstrip("/")

    @field_validator("s3_prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        prefix = value.strip("/")
        # What a storage key may be made of, so that every image can move to any other storage.
        if prefix and not re.fullmatch(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*(/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*", prefix):
            raise ValueError("must be folders of letters, digits and ._=- like team/images")
        return f"{prefix}/" if prefix else ""

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in filter(None, (part.strip() for part in value.split(","))):
            parts = urlsplit(origin)
            if origin != "*" and (
                parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query
            ):
                raise ValueError("must be origins like https://app.example.com, with commas between and no path")
        return value

    @field_validator("public_url")
    @classmethod
    def _known_to_callers(cls, value: str | None, others: ValidationInfo) -> str | None:
        bind_host = others.data.get("bind_host", "localhost")
        if value is None and bind_host not in _LOOPBACK:
            raise ValueError(f"is needed when BIND_HOST is {bind_host}: permanent URLs begin with it")
        return value

    @field_validator("pending_lease_seconds")
    @classmethod
    def _beyond_the_call(cls, value: float, others: ValidationInfo) -> float:
        if value <= others.data.get("upstream_timeout_seconds", 0):
            raise ValueError("must be longer than UPSTREAM_TIMEOUT_SECONDS")
        return value

    @field_validator("spool_bytes_max")
    @classmethod
    def _room_for_a_picture(cls, value: int | None, others: ValidationInfo) -> int | None:
        if value and value < others.data.get("image_bytes_max", 0):
            raise ValueError("must be 0 (no spool) or at least IMAGE_BYTES_MAX")
        return value

    @field_validator("s3_endpoint_url", "s3_public_base_url", "s3_prefix")
    @classmethod
    def _of_a_bucket(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value and others.data.get("s3_bucket") is None:
            raise ValueError("is set, but S3_BUCKET is not")
        return value

    @field_validator("tt_api_base_url")
    @classmethod
    def _safe_for_the_key(cls, value: str, others: ValidationInfo) -> str:
        parts = urlsplit(value)
        if others.data.get("tt_api_key") and parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise ValueError("must be https:// (the key would cross the network in the clear)")
        return value

    def resolved_public_url(self) -> str:
        """Return what permanent URLs begin with, without a slash at the end. Never taken from a request."""
        if self.public_url:
            return self.public_url
        host = f"[{self.bind_host}]" if ":" in self.bind_host else self.bind_host
        return f"http://{host}:{self.port}"

    def resolved_spool_bytes_max(self) -> int:
        """Return how much the spool may hold: if not set, as much as can be in flight in one process."""
        if self.spool_bytes_max is not None:
            return self.spool_bytes_max
        return self.upstream_in_flight_max * self.image_bytes_max

    def origins(self) -> tuple[str, ...]:
        """Return the browser origins that may call the API, as they were given."""
        return tuple(filter(None, (part.strip().rstrip("/") for part in self.cors_origins.split(","))))

    def secrets(self) -> tuple[str, ...]:
        """Return the plain secrets, for the redactor alone."""
        held = [value.get_secret_value() for name in SECRETS if (value := getattr(self, name)) is not None]
        password = make_url(self.database_url.get_secret_value()).password if self.database_url else None
        return (*held, password) if password else tuple(held)


class _UnreadableFile(ValueError):
    """Stands in for the secret that a file should have held, until its field is checked with all the others."""


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads a secret from the file that `<VARIABLE>_FILE` names, as container secrets are handed over."""

    def __init__(self, settings_cls: type[BaseSettings], variables: Mapping[str, str | None]) -> None:
        super().__init__(settings_cls)
        self._variables = variables

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        path = self._variables.get(f"{field_name}_file")
        if field_name not in SECRETS or not path:
            return None, field_name, False
        try:
            secret = Path(path).read_text(encoding="utf-8").strip()
            # Taken for "not set", an empty file would silently bring the sandbox, or a throw-away database.
            return secret or _UnreadableFile("is empty"), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            return _UnreadableFile(f"can't be read: {type(error).__name__}"), field_name, False

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        found = {name: self.get_field_value(field, name)[0] for name, field in fields.items()}
        return {name: value for name, value in found.items() if value is not None}


def load_settings(*, env_file: Path | None = Path(".env"), **overrides: Any) -> Settings:
    """Return the settings of this process's environment, of `env_file`, and of `overrides` that are not None.

    The environment goes before the file, and overrides (a command line's flags) before both. Raises SettingsError with
    every fault at once.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(_env_file=env_file, **given)
    except ValidationError as error:
        raise SettingsError(_faults_of(error)) from None


def _faults_of(error: ValidationError) -> dict[str, str]:
    faults: dict[str, str] = {}
    for entry in error.errors(include_input=False, include_url=False):
        cause = entry.get("ctx", {}).get("error")
        variable = str(entry["loc"][0]).upper() if entry["loc"] else "settings"
        if isinstance(cause, _UnreadableFile):
            variable += "_FILE"
        faults[variable] = str(cause) if cause else entry["msg"]
    return faults
