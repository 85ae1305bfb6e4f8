"""Does anything that fits the schema, or just does not, bring a 5xx, an answer that the schema denies, or an order?"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok

from tests.faults.frame import Figures, Piece
from tests.installation import Installation, running_installation
from tests.sandbox_server import running_sandbox
from tests.service import TT_API_KEY

# What a schemathesis check is asked for where the schema says what an answer looks like.
_DECLARED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
# The routes that /openapi.json leaves out: the operator's, and those for people and <img>.
_UNLISTED: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "what is not in the schema", "version": "1"},
    "paths": {
        path: {
            "get": {
                "parameters": [
                    {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}
                    for name, place in (
                        *([("name", "path")] if "{name}" in path else []),
                        ("Range", "header"),
                        ("If-None-Match", "header"),
                        ("Accept", "header"),
                        ("Origin", "header"),
                        ("X-Request-Id", "header"),
                        ("q", "query"),
                    )
                ],
                "responses": {"default": {"description": "anything below 500"}},
            }
        }
        for path in (
            "/i/{name}",
            "/docs/files/{name}",
            "/docs",
            "/openapi.json",
            "/healthz",
            "/readyz",
            "/metrics",
            "/{name}",
        )
    },
}


def schemathesis_cases(piece: Piece) -> Figures:
    """Send so many generated requests to a running installation: all routes, valid and invalid, with a key and without.

    Every answer is one that the schema declares, none is a 5xx, and the service stands afterwards.
    """
    with running_sandbox(draw=False) as sandbox:
        env = {"TT_API_KEY": TT_API_KEY, "TT_API_BASE_URL": sandbox.url, "ALLOW_PRIVATE_IMAGE_HOSTS": "true"}
        with running_installation(Path(piece.folder) / "hostile", env=env) as installation:
            return _send(piece, installation)


def _send(piece: Piece, installation: Installation) -> Figures:
    keyed = {"Authorization": f"Bearer {installation.key}"}
    listed = schemathesis.openapi.from_url(f"{installation.url}/openapi.json")
    unlisted = schemathesis.openapi.from_dict(_UNLISTED)
    # Loading the first schema is what makes these known.
    declared = tuple(check for check in CHECKS.get_all() if check.__name__ in _DECLARED)
    assert len(declared) == len(_DECLARED), "a check has another name"
    kinds = [
        (operation, mode, headers, declared if schema is listed else (not_a_server_error,))
        for schema in (listed, unlisted)
        for operation in _operations(schema)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        for headers in ((keyed, {}) if schema is listed else ({},))
    ]
    cases = 0
    broken: list[str] = []
    for number, (operation, mode, headers, checks) in enumerate(kinds):
        times = piece.times // len(kinds) + (number < piece.times % len(kinds))
        sent, sentence = _try(piece.seed + number, times, installation.url, operation, mode, headers, checks)
        cases += sent
        broken += [sentence] if sentence else []
    if installation.client.get("/readyz").status_code != 200:
        broken.append("the service is not ready afterwards")
    log = installation.stderr.read_text()
    broken += [f"the log has {word}" for word in ('"event":"crashed"', "Traceback", installation.key) if word in log]
    return Figures({"cases": cases, "kinds": len(kinds)}, broken=tuple(broken))


def _operations(schema: schemathesis.BaseSchema) -> Iterator[schemathesis.APIOperation[Any, Any, Any, Any]]:
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), f"no operation: {found.err()}"
        yield found.ok()


def _try(
    chance: int, times: int, url: str, operation: Any, mode: GenerationMode, headers: Mapping[str, str], checks: Any
) -> tuple[int, str]:
    """Return how many requests were sent, and what the first that broke a promise broke."""
    sent = 0

    @seed(chance)
    @settings(
        max_examples=times,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal sent
        sent += 1
        case.call_and_validate(base_url=url, headers=dict(headers), checks=list(checks))

    try:
        send()
    except (AssertionError, FailureGroup) as error:
        return sent, f"{operation.label} {mode.value} seed {chance}: {error}"
    return sent, ""
