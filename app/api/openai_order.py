"""What does an order in OpenAI's words ask for, and what becomes of the fields that nobody here can honour?

TTAPI's fields are the same. Every field of openai-python 3.54.0's `images.generate` has its place below.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from app.api.surface import parse_json
from app.errors import UnsupportedParameter
from app.generations.order import Order
from app.upstream.catalog import Catalog

# Models whose pictures OpenAI gives in base64 alone: the Vercel AI SDK and Haystack ask them for nothing, and read
# nothing else (seen with @ai-sdk/openai 4.0.118 and haystack 3.4.0).
_NEWER_NAMES: Final = ("gpt-image", "chatgpt-image")

# What would change the picture or the form of the answer and is not passed on: only what is usual is taken, and says
# nothing then. Upstream's documented fields are prompt, size, model, n and quality.
_USUAL: Final[Mapping[str, object]] = {
    "style": "vivid",
    "background": "auto",
    "output_format": "png",
    "output_compression": 100,
    "partial_images": 0,
    "stream": False,
}


class _Body(BaseModel):
    """A field that is not here is refused, as OpenAI does: nobody could say whether it would change the picture."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    quality: str | None = None
    response_format: Literal["url", "b64_json"] | None = None

    style: Any = None
    background: Any = None
    output_format: Any = None
    output_compression: Any = None
    partial_images: Any = None
    stream: Any = None

    # These change no picture, so they are ignored: who the end user is, which upstream is not told, and how strict
    # OpenAI's filter is, when upstream has its own.
    user: Any = None
    safety_identifier: Any = None
    moderation: Any = None


@dataclass(frozen=True)
class ImageRequest:
    """An order, whether its pictures are wanted in the answer itself, and whether its model is named as a newer one."""

    order: Order
    in_base64: bool
    of_newer_model: bool


def read_image_request(body: bytes, catalog: Catalog) -> ImageRequest:
    """Return what a body asks for; null is as good as left out.

    Raises what `parse_json` does, and UnsupportedParameter for a field that is not honoured.
    """
    asked = parse_json(body, _Body)
    for name, usual in _USUAL.items():
        if getattr(asked, name) not in (None, usual):
            raise UnsupportedParameter(_not_honoured(name, usual), parameter=name)
    order = Order(
        asked.prompt,
        model=asked.model,
        size=asked.size,
        quality=asked.quality,
        n=1 if asked.n is None else asked.n,
    )
    # By the name that was asked for, not by what the catalog makes of it: the client knows no other.
    of_newer_model = (asked.model or catalog.default_model).startswith(_NEWER_NAMES)
    in_base64 = of_newer_model if asked.response_format is None else asked.response_format == "b64_json"
    return ImageRequest(order, in_base64, of_newer_model)


def _not_honoured(name: str, usual: object) -> str:
    if name == "stream":
        return "`stream` is not offered here: the answer comes whole. Leave it out."
    told = f'"{usual}"' if isinstance(usual, str) else usual
    return f"`{name}` is not passed on to the image provider: only {told}, which is usual, is taken here. Leave it out."
