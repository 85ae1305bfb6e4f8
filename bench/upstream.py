"""What do all that are measured order from: an upstream that costs next to nothing, and does as the prompt says?

Speaks TTAPI's envelope and OpenAI's bare shape. A prompt that holds `[[url 1500kb 0.2]]` is answered after 0.2 s with
the URL of a picture of 1.5 MB; with `b64` instead of `url` the picture is in the answer. `GET /orders` tells how many
came.

python -m bench.upstream --port 9000
"""

import argparse
import asyncio
import base64
import json
import re

import uvloop

from bench.pictures import NAMES, make_picture
from bench.wire import Answering, Message, answer_with, serve

_ASKED = re.compile(rb"\[\[(url|b64) (\w+) ([0-9.]+)\]\]")
# Until when the URL is good, as Azure's storage writes it into what it signs.
_SIGNATURE = "se=2099-01-01T00%3A00%3A00Z&sig=c2lnbmVkIGJ5IG5vYm9keQ%3D%3D"

# By request target and by what the prompt asks for.
Answers = dict[tuple[bytes, bytes, bytes], bytes]


def prompt_for(form: str, picture: str, delay_seconds: float, *, number: int = 0) -> str:
    """Return a prompt that asks for this; another for each number."""
    return f"a red fox in the snow, number {number} [[{form} {picture} {delay_seconds:g}]]"


def make_answers(base_url: str, pictures: dict[str, bytes]) -> Answers:
    """Return the whole answer for each route, form and picture."""
    answers: Answers = {}
    for name, body in pictures.items():
        entries = {
            "url": {"url": f"{base_url}/pictures/{name}.png?{_SIGNATURE}"},
            "b64": {"b64_json": base64.b64encode(body).decode()},
        }
        for form, entry in entries.items():
            bare = {"created": 1_790_000_000, "data": [{**entry, "revised_prompt": "A red fox stands in deep snow."}]}
            envelope = {"status": "SUCCESS", "message": "success", "data": bare}
            for path, shape in (("/v1/images/generations", bare), ("/openai/v1/images/generations", envelope)):
                answer = answer_with("200 OK", json.dumps(shape).encode(), "application/json")
                answers[path.encode(), form.encode(), name.encode()] = answer
    return answers


def connections(base_url: str) -> type[Answering]:
    """Return what answers each connection of an upstream that is reached at `base_url`."""
    pictures = {name: make_picture(name) for name in NAMES}
    answers = make_answers(base_url, pictures)
    sent = {
        f"/pictures/{name}.png".encode(): answer_with("200 OK", body, "image/png") for name, body in pictures.items()
    }
    loop = asyncio.get_running_loop()
    orders = 0

    class _Upstream(Answering):
        def answer(self, request: Message) -> None:
            nonlocal orders
            method, target, _ = request.head.split(b" ", 2)
            if method == b"POST":
                orders += 1
                asked = _ASKED.search(request.body)
                answer = answers.get((target, asked[1], asked[2])) if asked else None
                if asked is None or answer is None:
                    refusal = b'{"error": {"message": "no such order or route"}}'
                    self.send(answer_with("400 Bad Request", refusal, "application/json"), closes=True)
                elif delay_seconds := float(asked[3]):
                    loop.call_later(delay_seconds, lambda: self.send(answer, closes=request.closes))
                else:
                    self.send(answer, closes=request.closes)
            elif target == b"/orders":
                self.send(answer_with("200 OK", str(orders).encode(), "text/plain"), closes=request.closes)
            else:
                picture = sent.get(target.partition(b"?")[0]) or answer_with("404 Not Found", b"", "text/plain")
                self.send(picture, closes=request.closes)

    return _Upstream


async def run(port: int) -> None:
    """Be the upstream until the process is ended."""
    await serve(connections(f"http://127.0.0.1:{port}"), port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.upstream")
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(run(parser.parse_args().port))
