"""Would the Dockerfile and the Compose file do what they say, as far as can be told without a Docker engine?"""

import ast
import json
import re
import shlex
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from app.api.ops import ops_routes
from app.settings import Settings
from tests.docs.pages import ROOT, blocks, read
from tests.docs.verbs import take

PORT = Settings.model_fields["port"].default
SETTINGS = {name.upper() for name in Settings.model_fields}
# What boto3, Python and a shell read by themselves.
ENVIRONMENT = SETTINGS | {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PATH", "PYTHONDONTWRITEBYTECODE"}
# What the other images' own documentation names.
THEIRS = {
    "postgres": {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"},
    "seaweedfs": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_BUCKET"},
}
VARIABLE = re.compile(r"\$\{(\w+)(:\?[^}]+)?\}")


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", read("Dockerfile"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def _all(word: str) -> list[str]:
    return [rest for name, rest in _instructions() if name == word]


def _one(word: str) -> str:
    (rest,) = _all(word)
    return rest


def _environment() -> dict[str, str]:
    return dict(part.split("=", 1) for part in shlex.split(_one("ENV")))


def _health_command() -> list[str]:
    command: list[str] = json.loads(_one("HEALTHCHECK").partition("CMD ")[2])
    return command


def test_everything_that_is_copied_into_the_image_is_there_and_reaches_the_builder() -> None:
    let_through = {line.removeprefix("!") for line in read(".dockerignore").splitlines() if line.startswith("!")}
    copied = {source for rest in _all("COPY") if "--from" not in rest for source in rest.split()[:-1]}

    assert copied == let_through
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_the_image_has_what_the_project_is_built_from() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    needed = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])

    assert needed <= {source for rest in _all("COPY") for source in rest.split()}


def test_nothing_is_installed_without_its_hash() -> None:
    installs = [command for rest in _all("RUN") for command in rest.split("&&") if "pip install" in command]

    assert [command for command in installs if "--require-hashes" not in command and "--no-deps" not in command] == []
    assert len(installs) == 2


def test_the_image_runs_the_python_that_the_project_asks_for() -> None:
    wanted = tomllib.loads(read("pyproject.toml"))["project"]["requires-python"].removeprefix(">=")

    assert _one("ARG") == f"PYTHON=python:{wanted}-slim"
    assert {rest.split()[0] for rest in _all("FROM")} == {"${PYTHON}"}


def test_the_image_sets_only_variables_that_something_reads() -> None:
    assert set(_environment()) <= ENVIRONMENT


def test_what_the_first_stage_builds_is_what_the_second_takes_and_finds() -> None:
    (made,) = re.findall(r"-m venv (\S+)", " ".join(_all("RUN")))
    (taken,) = [rest for rest in _all("COPY") if "--from=build" in rest]

    assert taken.split()[1:] == [made, made]
    assert _environment()["PATH"].split(":")[0] == f"{made}/bin"


def test_the_image_runs_as_a_number_that_is_not_root_and_has_a_name() -> None:
    uid, gid = map(int, _one("USER").split(":"))
    made = " ".join(_all("RUN"))

    assert uid > 0
    assert gid > 0
    assert f"useradd --uid {uid} --gid {gid}" in made
    assert f"--owner={uid} --group={gid} --mode=0700 {_one('VOLUME')}" in made


def test_the_images_volume_is_its_data_folder() -> None:
    assert _one("VOLUME") == _environment()["DATA_DIR"]


def test_the_images_port_is_the_one_that_is_listened_on() -> None:
    assert int(_one("EXPOSE")) == PORT
    assert re.findall(r"or (\d+)", _health_command()[-1]) == [str(PORT)]


def test_the_image_starts_a_command_that_is_there() -> None:
    program, *words = json.loads(_one("CMD"))

    assert program == "imagekeep"
    take(words)


def test_the_health_check_asks_a_route_that_is_there() -> None:
    (asked,) = re.findall(r"'(/\w+)'", _health_command()[-1])

    assert asked in {route.path for route in ops_routes()}


@contextmanager
def _answering(status: int) -> Iterator[int]:
    """A server on loopback that answers every GET with this status; yields its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _check_health(port: int) -> int:
    program, *arguments = _health_command()
    assert program == "python"
    # A proxy of the environment that nobody is behind must not be asked.
    environment = {"PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    checked = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
    return checked.returncode


def test_the_health_check_is_python() -> None:
    ast.parse(_health_command()[-1])


def test_the_health_check_passes_for_a_process_that_answers() -> None:
    with _answering(200) as port:
        assert _check_health(port) == 0


def test_the_health_check_fails_for_a_process_that_answers_with_an_error() -> None:
    with _answering(503) as port:
        assert _check_health(port) != 0


def test_the_health_check_fails_when_nothing_listens() -> None:
    with socket.socket() as closed:
        # Bound and not listening: refused, and nobody else's in the meantime.
        closed.bind(("127.0.0.1", 0))
        assert _check_health(closed.getsockname()[1]) != 0


@pytest.fixture
def compose() -> Any:
    return yaml.safe_load(read("docker-compose.yml"))


@pytest.fixture
def services(compose: Any) -> Any:
    return compose["services"]


def test_services_wait_only_for_what_comes(services: Any) -> None:
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "test" in services[name]["healthcheck"]
            else:
                assert wait["condition"] == "service_completed_successfully"
                assert services[name]["restart"] == "no"


def test_the_service_waits_for_the_migration_the_database_and_the_bucket(services: Any) -> None:
    assert set(services["imagekeep"]["depends_on"]) == {"migrate", "postgres", "seaweedfs"}


def test_every_variable_of_the_compose_file_is_read_by_something(services: Any) -> None:
    for name, service in services.items():
        assert set(service["environment"]) <= THEIRS.get(name, ENVIRONMENT)


def test_everything_secret_must_be_given_and_nothing_has_a_default() -> None:
    text = read("docker-compose.yml")

    assert text.count("${") == len(VARIABLE.findall(text))
    assert [name for name, demand in VARIABLE.findall(text) if not demand] == []


def test_no_secret_is_written_into_the_compose_file(services: Any) -> None:
    values = [
        value
        for service in services.values()
        for name, value in service["environment"].items()
        if re.search("KEY|SECRET|PASSWORD", name)
    ]

    assert len(values) > 4
    assert [value for value in values if not VARIABLE.fullmatch(value)] == []


def test_the_variables_to_give_are_those_that_the_operations_page_lists() -> None:
    (listed,) = [block.text for block in blocks("docs/operations.md") if block.text.startswith("PUBLIC_URL=")]

    assert set(re.findall(r"^(\w+)=", listed, re.MULTILINE)) == {
        name for name, _ in VARIABLE.findall(read("docker-compose.yml"))
    }


def _settings(environment: dict[str, str]) -> Settings:
    given = {"PUBLIC_URL": "https://images.example.com"}
    filled = {
        name.lower(): VARIABLE.sub(lambda match: given.get(match[1], "abc123"), value)
        for name, value in environment.items()
        if name in SETTINGS
    }
    return Settings(_env_file=None, bind_host="0.0.0.0", **filled)  # type: ignore[arg-type]


def test_the_compose_files_settings_are_accepted_and_lead_to_its_own_services(services: Any) -> None:
    settings = _settings(services["imagekeep"]["environment"])
    postgres, seaweedfs = services["postgres"], services["seaweedfs"]
    assert settings.database_url is not None
    assert settings.s3_endpoint_url is not None
    database, bucket = urlsplit(settings.database_url.get_secret_value()), urlsplit(settings.s3_endpoint_url)

    assert (database.hostname, database.port) == ("postgres", 5432)
    assert (database.username, database.path) == ("imagekeep", "/imagekeep")
    assert {postgres["environment"][name] for name in ("POSTGRES_USER", "POSTGRES_DB")} == {"imagekeep"}
    assert (bucket.hostname, bucket.port) == ("seaweedfs", 8333)
    assert f"http://127.0.0.1:{bucket.port}/healthz" in seaweedfs["healthcheck"]["test"]
    assert settings.s3_bucket == seaweedfs["environment"]["S3_BUCKET"]
    assert settings.s3_path_style


def test_the_migration_runs_a_command_that_is_there_on_the_same_database(services: Any) -> None:
    program, *words = services["migrate"]["command"]

    assert program == "imagekeep"
    take(words)
    assert services["migrate"]["environment"] == services["imagekeep"]["environment"]


def test_the_published_port_is_the_images(services: Any) -> None:
    (published,) = services["imagekeep"]["ports"]

    assert published == f"127.0.0.1:{PORT}:{PORT}"


def test_stopping_leaves_time_to_drain(services: Any) -> None:
    settings = Settings.model_fields
    stop_seconds = settings["drain_notice_seconds"].default + settings["drain_seconds"].default

    assert int(services["imagekeep"]["stop_grace_period"].removesuffix("s")) > stop_seconds
    assert int(re.findall(r"TimeoutStopSec=(\d+)", read("docs/operations.md"))[0]) > stop_seconds


def test_every_image_is_pinned(services: Any) -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]

    assert {service["image"] for name, service in services.items() if name in ("imagekeep", "migrate")} == {
        f"imagekeep:{version}"
    }
    assert [service["image"] for service in services.values() if not re.search(r":\d+\.\d+", service["image"])] == []


def test_volumes_are_declared_and_ours_is_where_the_image_writes(compose: Any, services: Any) -> None:
    mounted = [volume.split(":") for service in services.values() for volume in service.get("volumes", [])]

    assert {name for name, _ in mounted} == set(compose["volumes"])
    assert services["imagekeep"]["volumes"] == [f"data:{_one('VOLUME')}"]


def test_nothing_but_the_volume_and_tmp_can_be_written(services: Any) -> None:
    for name in ("imagekeep", "migrate"):
        assert services[name]["read_only"] is True
        assert services[name]["tmpfs"] == ["/tmp"]
        assert services[name]["cap_drop"] == ["ALL"]
