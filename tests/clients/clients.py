"""Which clients are driven against the service, and what does each of them make of it?

A client has a folder here: what it needs, pinned, and a `drive` that takes orders line by line (lines.py). Its facts
below are its own documentation's or source's, and tests hold them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Names the clients to drive. Set by `python -m tests.clients`; without it those are driven that always are.
CHOICE = "IMAGEKEEP_CLIENTS"

# Where the pages of browser/drive.mjs are from.
PAGE_ORIGIN = "http://gallery.example"

Form = Literal["url", "b64_json"]


@dataclass(frozen=True)
class Client:
    """One client: what it is and where, how it orders, and how it says no.

    `package` is the pinned one whose version is told. `model` and `size` are what it orders, the size not the model's
    default. One that `hands_bytes` gives its caller the picture itself also where it got a URL. `errors` are its own
    names for each of REFUSALS, `tries` the requests of one call when every answer says that another try may help.
    `variables` are of its environment.
    """

    name: str
    kind: Literal["python", "node", "command", "browser"]
    package: str
    errors: Mapping[str, str]
    surface: Literal["openai", "ttapi"] = "openai"
    forms: tuple[Form, ...] = ("url", "b64_json")
    hands_bytes: bool = False
    model: str = "dall-e-3"
    size: str = "1792x1024"
    tries: int = 1
    page: str = field(default="")
    variables: Mapping[str, str] = field(default_factory=dict)
    # Runs with every test run, not only with `python -m tests.clients`.
    always: bool = False

    @property
    def folder(self) -> str:
        """Its folder here. A Python drive is a module, so its folder has a name that can be imported."""
        return self.name.replace("-", "_") if self.kind in ("python", "command") else self.name


# The names that openai-python gives, and whatever is built on it.
OPENAI_PYTHON_ERRORS = {
    "bad size": "BadRequestError",
    "wrong key": "AuthenticationError",
    "spent budget": "RateLimitError",
    "content refusal": "BadRequestError",
    "wrong model": "BadRequestError",
}

BROWSER_ERRORS = {
    "bad size": "invalid_value",
    "wrong key": "invalid_api_key",
    "spent budget": "insufficient_quota",
    "content refusal": "content_policy_violation",
    "wrong model": "model_not_found",
}


# Its exit code is the first digit of the status.
HTTPIE_ERRORS = dict.fromkeys(OPENAI_PYTHON_ERRORS, "http (4)")


def _always(name: str) -> dict[str, str]:
    """A client that has one name for whatever goes wrong."""
    return dict.fromkeys(OPENAI_PYTHON_ERRORS, name)


# It wraps what it has tried again, and tries a spent budget again too: that costs seconds, and nothing else.
VERCEL_ERRORS = {**_always("AI_APICallError"), "spent budget": "AI_RetryError"}

# A page has `fetch` and no SDK: what it goes by is the error's own code.
CLIENTS: tuple[Client, ...] = (
    Client("openai-python", "python", "openai", OPENAI_PYTHON_ERRORS, tries=3, page="openai-python", always=True),
    Client(
        "langchain", "python", "langchain-community", OPENAI_PYTHON_ERRORS, forms=("url",), tries=3, page="langchain"
    ),
    Client(
        "litellm",
        "python",
        "litellm",
        OPENAI_PYTHON_ERRORS | {"content refusal": "ContentPolicyViolationError", "wrong model": "NotFoundError"},
        tries=3,
        page="litellm",
        # Its list of prices comes with it; otherwise it asks the internet for a newer one, for seconds, at each start.
        variables={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    ),
    Client(
        "haystack",
        "python",
        "haystack-ai",
        OPENAI_PYTHON_ERRORS,
        forms=("b64_json",),
        model="gpt-image-2",
        size="1536x1024",
        tries=6,
        page="haystack",
    ),
    Client("curl", "command", "curl", _always("curl (22)"), page="curl", always=True),
    Client("httpie", "python", "httpie", HTTPIE_ERRORS, page="httpie"),
    Client("requests", "python", "requests", _always("FAILED"), surface="ttapi", page="ttapi-code"),
    Client("openai-node", "node", "openai", OPENAI_PYTHON_ERRORS, tries=3, page="openai-node", always=True),
    Client(
        "vercel-openai",
        "node",
        "@ai-sdk/openai",
        VERCEL_ERRORS,
        forms=("b64_json",),
        hands_bytes=True,
        tries=3,
        page="vercel-ai-sdk",
    ),
    Client(
        "vercel-compatible",
        "node",
        "@ai-sdk/openai-compatible",
        VERCEL_ERRORS,
        hands_bytes=True,
        tries=3,
        page="vercel-ai-sdk",
    ),
    Client("browser", "browser", "@sparticuz/chromium", BROWSER_ERRORS, page="browsers"),
)
