"""What is measured, how is each started, and how does an order to it read?

Each has one process on a core of its own, and an address that takes orders. Imagekeep's installations are in
`bench.installation`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.environments import LITELLM, PORTKEY
from bench.load import MakeRequest
from bench.neighbourhood import Neighbourhood, environment, serve_module
from bench.processes import Running, free_port, running
from bench.upstream import prompt_for

OPENAI_PATH = "/v1/images/generations"
TTAPI_PATH = "/openai/v1/images/generations"
REHOST_PATH = "/"

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Asks:
    """What is asked for in each order, and by how many users in turn."""

    form: str = "url"
    picture: str = "1kb"
    delay_seconds: float = 0
    users: int = 1


@dataclass(frozen=True)
class Contender:
    """Something that runs and takes orders. Each of `callers` is the headers of one user, without the length."""

    process: Running
    path: str
    callers: Sequence[Mapping[str, str]]

    def orders(self, asks: Asks) -> MakeRequest:
        """Return what makes the whole request for each order: another prompt each time, the users in turn."""
        heads = [_head(self.path, caller) for caller in self.callers[: asks.users]]
        fields = {"model": "dall-e-3", "n": 1, "size": "1024x1024", "quality": "standard"}

        def make(number: int) -> bytes:
            prompt = prompt_for(asks.form, asks.picture, asks.delay_seconds, number=number)
            body = json.dumps({**fields, "prompt": prompt}).encode()
            return b"%b%d\r\n\r\n%b" % (heads[number % len(heads)], len(body), body)

        return make


# Starts one contender, and ends it with the block.
Start = Callable[[Neighbourhood], AbstractContextManager[Contender]]


def _head(path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "Content-Length: "]).encode()


@contextmanager
def upstream_itself(near: Neighbourhood) -> Iterator[Contender]:
    """Nothing in between: what the load and upstream can do at most, on the cores that they share."""
    yield Contender(near.upstream, TTAPI_PATH, [_JSON])


def passthrough(client: str) -> Start:
    """Return what starts one of the two yardsticks."""

    @contextmanager
    def start(near: Neighbourhood) -> Iterator[Contender]:
        port = free_port()
        command = serve_module("bench.passthroughs", client, "--upstream", near.upstream_url, port=port)
        with _measured(near, command, client, port, "/", environment()) as process:
            yield Contender(process, TTAPI_PATH, [_JSON])

    return start


def rehoster(kind: str) -> Start:
    """Return what starts a process that rehosts a picture for each order, in one of the ways of `bench.rehosters`."""

    @contextmanager
    def start(near: Neighbourhood) -> Iterator[Contender]:
        port = free_port()
        places = ["--upstream", near.upstream_url, "--sink", near.sink_url]
        command = serve_module("bench.rehosters", kind, *places, port=port)
        keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
        with _measured(near, command, f"rehost-{kind}", port, "/", {**environment(), **keys}) as process:
            yield Contender(process, REHOST_PATH, [_JSON])

    return start


def litellm(environments: Path) -> Start:
    """Return what starts LiteLLM's proxy, with one worker, a master key, no database, and nothing else switched on."""

    @contextmanager
    def start(near: Neighbourhood) -> Iterator[Contender]:
        port = free_port()
        folder = near.folder / "litellm"
        folder.mkdir(exist_ok=True)
        upstream = {"model": "openai/dall-e-3", "api_base": f"{near.upstream_url}/v1", "api_key": "bench-upstream-key"}
        # YAML takes JSON.
        settings = {
            "model_list": [{"model_name": "dall-e-3", "litellm_params": upstream}],
            "general_settings": {"master_key": "sk-bench"},
        }
        (folder / "config.yaml").write_text(json.dumps(settings))
        command = [
            *LITELLM.command(environments),
            "--config",
            "config.yaml",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        # Prices come with it; it would else fetch them, and not start without a network.
        env = {**environment(), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        del env["PYTHONPATH"]
        with _measured(near, command, "litellm", port, "/health/liveliness", env) as process:
            yield Contender(process, OPENAI_PATH, [{**_JSON, "Authorization": "Bearer sk-bench"}])

    return start


def portkey(environments: Path) -> Start:
    """Return what starts Portkey's gateway, which is told with each order where it goes."""

    @contextmanager
    def start(near: Neighbourhood) -> Iterator[Contender]:
        port = free_port()
        command = [*PORTKEY.command(environments), f"--port={port}", "--headless"]
        env = {**environment(), "TRUSTED_CUSTOM_HOSTS": "127.0.0.1", "NODE_ENV": "production"}
        caller = {
            **_JSON,
            "Authorization": "Bearer bench-upstream-key",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{near.upstream_url}/v1",
        }
        with _measured(near, command, "portkey", port, "/", env) as process:
            yield Contender(process, OPENAI_PATH, [caller])

    return start


@contextmanager
def _measured(
    near: Neighbourhood, command: Sequence[str], name: str, port: int, ready_path: str, env: Mapping[str, str]
) -> Iterator[Running]:
    folder = near.folder / name
    with running(
        command, env=env, folder=folder, port=port, cores=near.cores.measured, ready_path=ready_path
    ) as process:
        yield process
