"""How often does a client with OpenAI's default retries send one order, and how long does it pause between?

Source: openai-python 3.54.0 (`_base_client`), openai-node 7.57.0 and ai 7.0.173, read and run 2026-11-22.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx

from tests.api.surfaces import Reachable, Surface

RETRIES_MAX = 2
# openai-python obeys a `Retry-After` up to here, and gives up above.
RETRY_AFTER_SECONDS_MAX = 120
BACKOFF_SECONDS = 0.5

Ask = Callable[[Mapping[str, str]], httpx.Response]


@dataclass(frozen=True)
class Call:
    """What a person's one call came to: every request's answer, None where there was none, and the pauses between."""

    answers: list[httpx.Response | None]
    pauses_seconds: list[float]

    @property
    def answer(self) -> httpx.Response:
        """What the person is told in the end."""
        last = self.answers[-1]
        assert last is not None, "the last request got no answer"
        return last


def call(ask: Ask, *, obedient: bool = True, pause: Callable[[float], None] = lambda seconds: None) -> Call:
    """Ask, and ask again as an SDK does: after 408, 409, 429, every 5xx, and where no answer came, twice at most.

    `ask` sends one request, with these headers beside its own. An obedient client is openai-python or openai-node: it
    counts its retries in a header, and `x-should-retry` decides. The other is the Vercel AI SDK, which does neither.
    Nobody really pauses, unless `pause` does.
    """
    answers: list[httpx.Response | None] = []
    pauses: list[float] = []
    while True:
        mark = {"x-stainless-retry-count": str(len(answers))} if obedient else {}
        try:
            answers.append(ask(mark))
        except httpx.TransportError:
            answers.append(None)
        seconds = _pause_seconds(answers[-1], len(pauses), obedient=obedient)
        if len(answers) > RETRIES_MAX or seconds is None:
            return Call(answers, pauses)
        pauses.append(seconds)
        pause(seconds)


def _pause_seconds(answer: httpx.Response | None, retries: int, *, obedient: bool) -> float | None:
    """How long it waits before it tries again; None when it doesn't."""
    backoff_seconds: float = BACKOFF_SECONDS * 2**retries
    if answer is None:
        return backoff_seconds
    said = answer.headers.get("x-should-retry") if obedient else None
    worth_it = answer.status_code in (408, 409, 429) or answer.status_code >= 500
    if said == "false" or (said != "true" and not worth_it):
        return None
    retry_after_seconds = float(answer.headers.get("retry-after", 0))
    if retry_after_seconds > RETRY_AFTER_SECONDS_MAX:
        return None
    return retry_after_seconds or backoff_seconds


def retries_of_sdk(
    surface: Surface,
    service: Reachable,
    prompt: str,
    *,
    obedient: bool,
    headers: Mapping[str, str] | None = None,
    pause: Callable[[float], None] = lambda seconds: None,
) -> list[httpx.Response]:
    """As `call`, for one order, each of whose requests must get an answer. Returns those."""
    made = call(
        lambda mark: surface.order(service, prompt, headers={**mark, **(headers or {})}),
        obedient=obedient,
        pause=pause,
    )
    answers = [answer for answer in made.answers if answer is not None]
    assert len(answers) == len(made.answers)
    return answers
