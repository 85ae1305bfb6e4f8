"""Do the pages say what the code does, no less and no more?"""

import json
import re

import pytest
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.routing import Route

from app import telemetry
from app.accounts.keys import KEY_PATTERN
from app.api.native import create_native
from app.api.openai import create_openai, render_error
from app.api.ops import ops_routes
from app.api.ttapi import create_ttapi, render_failed
from app.errors import all_errors
from app.settings import SECRETS, Settings
from tests.docs.pages import PAGES, ROOT, anchors, blocks, commands, links, mentioned_commands, read, rows
from tests.docs.verbs import all_verbs, options_of, take, verb_of

SETTINGS = {name.upper(): field.default for name, field in Settings.model_fields.items()}
SECRET_FILES = {f"{name.upper()}_FILE" for name in SECRETS}

# Names in capitals that are no settings, with whose they are.
OTHERS = {
    "AWS_ACCESS_KEY_ID": "boto3",
    "AWS_PROFILE": "boto3",
    "AWS_SECRET_ACCESS_KEY": "boto3",
    "CHROMIUM_PATH": "tests/clients",
    "DALLE3_API_KEY": "LibreChat",
    "DALLE_REVERSE_PROXY": "LibreChat",
    "ENABLE_IMAGE_GENERATION": "Open WebUI",
    "IMAGEKEEP_KEY": "the reader's shell",
    "IMAGES_OPENAI_API_BASE_URL": "Open WebUI",
    "IMAGES_OPENAI_API_KEY": "Open WebUI",
    "IMAGE_GENERATION_ENGINE": "Open WebUI",
    "IMAGE_GENERATION_MODEL": "Open WebUI",
    "IMAGE_GEN_OAI_API_KEY": "LibreChat",
    "IMAGE_GEN_OAI_AZURE_API_VERSION": "LibreChat",
    "IMAGE_GEN_OAI_BASEURL": "LibreChat",
    "IMAGE_GEN_OAI_MODEL": "LibreChat",
    "IMAGE_SIZE": "Open WebUI",
    "ON_ERROR_STOP": "psql",
    "OPENAI_API_KEY": "the OpenAI SDKs",
    "OPENAI_BASE_URL": "the OpenAI SDKs",
    "POSTGRES_PASSWORD": "docker-compose.yml",
    "S3_ACCESS_KEY_ID": "docker-compose.yml",
    "S3_SECRET_ACCESS_KEY": "docker-compose.yml",
}


def _written(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return "" if default is None else str(default)


def test_the_example_file_names_every_setting_with_its_default_and_nothing_else() -> None:
    named = dict(re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", read(".env.example"), re.MULTILINE))

    assert named == {name: _written(default) for name, default in SETTINGS.items()}


def test_the_example_file_changes_nothing_when_it_is_copied_as_it_is() -> None:
    assert [line for line in read(".env.example").splitlines() if line and not line.startswith("#")] == []


def test_every_setting_of_the_example_file_is_explained_above_it() -> None:
    lines = read(".env.example").splitlines()
    explained = [lines[place - 1] for place, line in enumerate(lines) if re.match("#[A-Z]", line)]

    assert len(explained) == len(SETTINGS)
    assert all(line.startswith("# ") and line.endswith(".") for line in explained)


def test_the_configuration_page_names_every_setting_with_its_default_and_nothing_else() -> None:
    named = {name: cells[0].strip("`") for name, cells in rows("docs/configuration.md").items()}

    assert named == {name: _written(default) or "none" for name, default in SETTINGS.items()}


@pytest.mark.parametrize("page", ["docs/configuration.md", ".env.example"])
def test_secrets_are_said_to_be_read_from_files_too(page: str) -> None:
    assert set(re.findall(r"\b[A-Z_0-9]+_FILE\b", read(page))) == SECRET_FILES


@pytest.mark.parametrize("page", [*PAGES, ".env.example"])
def test_a_page_names_no_variable_that_is_not_there(page: str) -> None:
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", read(page)))

    assert named - set(SETTINGS) - SECRET_FILES - set(OTHERS) == set()


def test_the_api_page_names_every_error_code_with_its_status_and_invents_none() -> None:
    codes = {name: cells[0] for name, cells in rows("docs/api.md").items() if re.fullmatch(r"\d{3}", cells[0])}

    assert codes == {error.code: str(error.status) for error in all_errors()}


def test_every_error_code_is_said_to_be_charged_or_not_and_worth_a_retry_or_not() -> None:
    table = rows("docs/api.md")

    assert [error.code for error in all_errors() if not all(table[error.code][1:4])] == []


def test_the_api_page_names_every_route_and_invents_none() -> None:
    named = set(re.findall(r"`(GET|HEAD|POST|DELETE|PUT|PATCH) (/[^`?]*)[^`]*`", read("docs/api.md")))
    native = {
        (method.upper(), path) for path, methods in create_native().openapi()["paths"].items() for method in methods
    }
    ops = {("GET", route.path) for route in ops_routes()}
    others = {
        (method, prefix + route.path.replace("{model_id:path}", "{generation_id}"))
        for prefix, surface in (("/v1", create_openai()), ("/openai/v1", create_ttapi()))
        for route in surface.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }

    assert {(method, path.replace("{id}", "{generation_id}")) for method, path in named} == (
        native | others | ops | {("GET", "/i/{name}"), ("HEAD", "/i/{name}")}
    )


def test_the_api_page_tells_what_the_other_surfaces_say_of_every_error_that_they_can_meet() -> None:
    request = Request({"type": "http", "headers": [], "state": {"request_id": "", "started_at": 0.0}})
    table = rows("docs/api.md")

    for error in all_errors():
        if table[error.code][4:] == ["-", "-"]:
            continue
        openai = render_error(request, error())
        code = json.loads(bytes(openai.body))["error"]["code"]
        told = f"{openai.status_code}" + ("" if code == error.code else f" `{code}`")
        assert table[error.code][4:] == [told, str(render_failed(request, error()).status_code)]


def test_the_operations_page_shows_every_command_at_work() -> None:
    assert {verb_of(words) for words in commands("docs/operations.md")} == set(all_verbs())


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_of_a_page_would_be_taken(page: str) -> None:
    for words in commands(page):
        take(words)


@pytest.mark.parametrize("page", PAGES)
def test_prose_mentions_no_command_or_option_that_is_not_there(page: str) -> None:
    for words in mentioned_commands(page):
        assert {word for word in words if word.startswith("--")} <= options_of(verb_of(words))


def test_every_command_can_answer_in_json() -> None:
    assert [verb for verb in all_verbs() if "--json" not in options_of(verb)] == []


def test_the_readme_begins_with_the_command_that_runs_and_the_one_that_tests() -> None:
    first, second, *_ = blocks("README.md")

    assert [first.heading, second.heading] == ["Run", "Test"]
    for block, last in ((first, "imagekeep serve"), (second, "pytest -q -n 2")):
        lines = block.text.rstrip("\n").split("\n")
        assert all(line.endswith("\\") for line in lines[:-1]), "it is one command line"
        assert lines[-1].endswith(last)
        assert all((ROOT / file).exists() for file in re.findall(r"-r (\S+)", block.text))


def test_testing_does_not_touch_the_environment_that_runs() -> None:
    first, second, *_ = blocks("README.md")

    assert set(re.findall(r"\.venv[\w-]*", first.text)).isdisjoint(re.findall(r"\.venv[\w-]*", second.text))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(str(target.resolve().relative_to(ROOT))), f"{page} links to {link}"


def test_every_page_is_reached_from_the_readme_or_the_page_of_clients() -> None:
    of_clients = {f"docs/{link}" for link in links("docs/clients.md")}

    assert set(PAGES) - {"README.md"} <= {*links("README.md"), *of_clients}


def _metrics() -> set[str]:
    assert telemetry.requests_total, "importing telemetry registers them"
    return {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for metric in REGISTRY.collect()
        if metric.name.startswith("imagekeep")
    }


def test_the_operations_page_explains_every_metric_and_invents_none() -> None:
    assert {name for name in rows("docs/operations.md") if name.startswith("imagekeep_")} == _metrics()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_no_metric_that_is_not_there(page: str) -> None:
    assert set(re.findall(r"\bimagekeep_\w+", read(page))) <= _metrics()


def test_the_rule_for_secret_scanners_is_the_form_of_our_keys() -> None:
    assert f"regex = '''{KEY_PATTERN}'''" in read("docs/operations.md")


def test_every_test_that_the_reliability_page_calls_as_a_witness_is_there() -> None:
    named = re.findall(r"\[[^]]+\]\(\.\./(tests/[^)]+)\) `(test_\w+)`", (ROOT / "docs/reliability.md").read_text())

    missing = [(file, test) for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]

    assert len(named) >= 35
    assert missing == []
