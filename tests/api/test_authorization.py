"""Does every route that there is ask every kind of stranger for the right key, and show nobody what is another's?

The routes come from the application itself: one that stands in no row of ROUTES fails.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.routing import BaseRoute, Mount, Route

from app.accounts.keys import make_key
from app.main import create_app
from app.settings import Settings
from app.wiring import Neighbours
from tests.api.books import count
from tests.api.surfaces import NATIVE, OPENAI, TTAPI, Surface
from tests.api.test_auth import mistyped
from tests.api.wire import ask
from tests.sandbox_server import RunningSandbox
from tests.service import Service, add_user


@dataclass(frozen=True)
class Rule:
    """Who may use a route: everybody (`open`), whoever has a key, or the owner of what the path names alone."""

    status: int
    open: bool = False
    owned: bool = False
    body: bytes = b""


_ORDER = b'{"prompt": "a red fox"}'

# What the first user gets. `{generation_id}` and `{name}` are theirs.
ROUTES: Mapping[tuple[str, str], Rule] = {
    ("POST", "/images"): Rule(200, body=_ORDER),
    ("GET", "/images"): Rule(200),
    ("GET", "/images/{generation_id}"): Rule(200, owned=True),
    ("DELETE", "/images/{generation_id}"): Rule(204, owned=True),
    ("GET", "/me"): Rule(200),
    ("GET", "/models"): Rule(200),
    ("POST", "/v1/images/generations"): Rule(200, body=_ORDER),
    ("POST", "/v1/images/edits"): Rule(404, body=_ORDER),
    ("POST", "/v1/images/variations"): Rule(404, body=_ORDER),
    ("GET", "/v1/models"): Rule(200),
    ("GET", "/v1/models/{model_id:path}"): Rule(200),
    ("POST", "/openai/v1/images/generations"): Rule(200, body=_ORDER),
    ("GET", "/i/{name}"): Rule(200, open=True),
    ("HEAD", "/i/{name}"): Rule(200, open=True),
    ("OPTIONS", "/i/{name}"): Rule(204, open=True),
    ("GET", "/docs"): Rule(200, open=True),
    ("GET", "/docs/files/{path}"): Rule(200, open=True),
    ("GET", "/openapi.json"): Rule(200, open=True),
    ("HEAD", "/openapi.json"): Rule(200, open=True),
    ("GET", "/healthz"): Rule(200, open=True),
    ("HEAD", "/healthz"): Rule(200, open=True),
    ("GET", "/readyz"): Rule(200, open=True),
    ("HEAD", "/readyz"): Rule(200, open=True),
    ("GET", "/metrics"): Rule(200, open=True),
    ("HEAD", "/metrics"): Rule(200, open=True),
}

# What is told to whoever comes with such a credential to a route that is not open, by our code.
STRANGERS: Mapping[str, str] = {
    "nothing": "api_key_missing",
    "an empty header": "api_key_missing",
    "a scheme without a key": "api_key_missing",
    "a key without its scheme": "api_key_missing",
    "a key as Basic": "api_key_missing",
    "a key as Token": "api_key_missing",
    "a key in the query": "api_key_missing",
    "a key in a cookie": "api_key_missing",
    "a key as TT-API-KEY": "api_key_missing",
    "a key as X-API-Key": "api_key_missing",
    "a key as a proxy's": "api_key_missing",
    "a key of another make": "api_key_mistyped",
    "a key with a wrong checksum": "api_key_mistyped",
    "a key that was never made": "api_key_invalid",
    "a revoked key": "api_key_invalid",
    "the key of a disabled user": "user_disabled",
}


@dataclass(frozen=True)
class Cast:
    """Who comes: the first user, whose generation and image are asked for, another user, and strangers."""

    service: Service
    generation_id: str
    image_name: str
    other_key: str
    revoked_key: str
    disabled_key: str

    def target(self, path: str) -> str:
        """A route's path with the first user's things in it."""
        filled = path.replace("{generation_id}", self.generation_id).replace("{name}", self.image_name)
        return filled.replace("{path}", "swagger-ui.css").replace("{model_id:path}", "dall-e-3")

    def ask_as(self, stranger: str, method: str, target: str, body: bytes) -> httpx.Response:
        """Ask with one of STRANGERS' credentials."""
        key = self.service.key
        headers = {
            "an empty header": {"authorization": ""},
            "a scheme without a key": {"authorization": "Bearer"},
            "a key without its scheme": {"authorization": key},
            "a key as Basic": {"authorization": f"Basic {key}"},
            "a key as Token": {"authorization": f"Token {key}"},
            "a key in a cookie": {"cookie": f"authorization=Bearer {key}; api_key={key}; session={key}"},
            "a key as TT-API-KEY": {"tt-api-key": key},
            "a key as X-API-Key": {"x-api-key": key, "api-key": key},
            "a key as a proxy's": {"proxy-authorization": f"Bearer {key}", "x-forwarded-authorization": key},
            "a key of another make": {"authorization": "Bearer sk-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH"},
            "a key with a wrong checksum": {"authorization": f"Bearer {mistyped(key)}"},
            "a key that was never made": {"authorization": f"Bearer {make_key()}"},
            "a revoked key": {"authorization": f"Bearer {self.revoked_key}"},
            "the key of a disabled user": {"authorization": f"Bearer {self.disabled_key}"},
        }.get(stranger, {})
        if stranger == "a key in the query":
            target += f"?api_key={key}&access_token={key}&key={key}"
        return ask(method, self.service.url + target, headers=headers, content=body)


@pytest.fixture
def cast(service: Service) -> Cast:
    ordered = service.order("a red fox").json()
    other, revoked, disabled = (add_user(service.database_url, name) for name in ("other", "revoked", "disabled"))
    user = "(SELECT id FROM users WHERE name = 'revoked')"
    service.rows(f"UPDATE api_keys SET revoked_at = now() WHERE user_id = {user}")
    service.rows("UPDATE users SET disabled_at = now() WHERE name = 'disabled'")
    name = ordered["images"][0]["url"].rpartition("/")[2]
    return Cast(service, ordered["id"], name, other, revoked, disabled)


def surface_of(path: str) -> Surface:
    """Whose wire format a path is told in."""
    return next(
        (surface for surface in (OPENAI, TTAPI) if path.startswith(surface.path.partition("images")[0])), NATIVE
    )


def strangers_to(path: str) -> list[str]:
    """Who is one: where TTAPI's clients are at home, their header is as good as ours."""
    return [name for name in STRANGERS if surface_of(path) is NATIVE or name != "a key as TT-API-KEY"]


def routes_of(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every method and path that leads somewhere, mounted applications' too."""
    for route in routes:
        if isinstance(route, Route):
            yield from ((method, prefix + route.path) for method in route.methods or ())
            continue
        assert isinstance(route, Mount), f"a route of another kind: {route!r}"
        inner: Any = route.app
        # What stands around a surface (CORS) has it as its `app`.
        while not hasattr(inner, "routes") and hasattr(inner, "app"):
            inner = inner.app
        if hasattr(inner, "routes"):
            yield from routes_of(inner.routes, prefix + route.path)
        else:
            yield "GET", prefix + route.path + "/{path}"


@pytest.mark.parametrize("origins", ["", "https://app.example"])
def test_every_route_of_the_application_stands_in_the_table(data_dir: Path, origins: str) -> None:
    settings = Settings(_env_file=None, data_dir=data_dir, tt_api_key="k", cors_origins=origins)
    app = create_app(settings, Neighbours("postgresql+psycopg://nowhere/nothing"))

    assert sorted(routes_of(app.routes)) == sorted(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_stranger_gets_nothing_but_what_everybody_may_have(
    cast: Cast, sandbox: RunningSandbox, method: str, path: str
) -> None:
    rule, target, before = ROUTES[method, path], cast.target(path), sandbox.witness()["asked"]
    # Also with a body that would be refused: whoever has no key is not told what is wrong with it.
    bodies = [rule.body, b"no json"] if rule.body else [b""]

    answers = {
        (stranger, body): cast.ask_as(stranger, method, target, body)
        for stranger in strangers_to(path)
        for body in bodies
    }

    for (stranger, _), answer in answers.items():
        if rule.open:
            assert answer.status_code == rule.status, stranger
            continue
        surface_of(path).assert_refused(answer, STRANGERS[stranger])
        assert cast.service.key not in answer.text
        assert "set-cookie" not in answer.headers
    assert sandbox.witness()["asked"] == before
    assert count(cast.service) == 1


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_user_gets_what_is_theirs(cast: Cast, method: str, path: str) -> None:
    rule = ROUTES[method, path]

    answer = cast.service.client.request(method, cast.target(path), content=rule.body)

    assert answer.status_code == rule.status


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_another_user_gets_what_is_nobodys(cast: Cast, method: str, path: str) -> None:
    rule, url = ROUTES[method, path], cast.service.url
    headers = {"authorization": f"Bearer {cast.other_key}"}

    foreign = ask(method, url + cast.target(path), headers=headers, content=rule.body)
    missing = ask(method, url + path.replace("{generation_id}", str(uuid4())), headers=headers, content=rule.body)

    if rule.owned:
        assert foreign.status_code == 404
        assert without_id(foreign) == without_id(missing)
    else:
        assert foreign.status_code == rule.status
    if not rule.open:
        assert cast.generation_id not in foreign.text
    still_theirs = cast.service.client.get(f"/images/{cast.generation_id}")
    assert (still_theirs.status_code, still_theirs.json()["prompt"]) == (200, "a red fox")


def without_id(answer: httpx.Response) -> tuple[int, dict[str, str], dict[str, Any]]:
    """An answer without what differs from one request to the next."""
    passing = ("date", "x-request-id")
    headers = {name: value for name, value in answer.headers.items() if name not in passing}
    return answer.status_code, headers, {**json.loads(answer.content), "request_id": ""}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_is_anothers_is_refused_as_fast_as_what_is_nobodys(cast: Cast, method: str) -> None:
    seconds: dict[str, list[float]] = {cast.generation_id: [], str(uuid4()): []}
    headers = {"authorization": f"Bearer {cast.other_key}"}

    # Turn by turn, so that whatever else the machine does is shared alike.
    for _ in range(30):
        for generation_id, taken in seconds.items():
            began = time.perf_counter()
            answer = cast.service.client.request(method, f"/images/{generation_id}", headers=headers)
            taken.append(time.perf_counter() - began)
            assert answer.status_code == 404

    foreign, missing = (median(taken) for taken in seconds.values())
    # Another statement, or a look into storage, would be a class of its own; the rest is what a busy machine adds.
    assert abs(foreign - missing) < 0.5 * missing + 0.005
