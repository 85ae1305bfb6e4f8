"""Do clients that were written for OpenAI or TTAPI work unchanged, and is every call of theirs paid for once at most?

Each test makes all calls of its kind at once, and tells which of them went wrong. What is counted goes to the table of
`python -m tests.clients`.
"""

import base64
import io
from uuid import uuid4

import httpx
import pytest
from PIL import Image

from tests.clients.cases import FAULTS, HASTY_SECONDS, LATE_SECONDS, REFUSALS, Fault
from tests.clients.clients import Client
from tests.clients.conftest import Counter, Figure
from tests.clients.drives import Drives, Outcome


def _size(picture: dict[str, str]) -> str:
    """The size of a picture, from wherever it is: its URL opens without a key."""
    if "url" in picture:
        content = httpx.get(picture["url"], trust_env=False).raise_for_status().content
    else:
        content = base64.b64decode(picture["b64_json"], validate=True)
    with Image.open(io.BytesIO(content)) as opened:
        opened.load()
        return f"{opened.width}x{opened.height}"


def _tags(names: list[str]) -> dict[str, str]:
    return {name: uuid4().hex for name in names}


@pytest.mark.parametrize("form", ["url", "b64_json"])
def test_a_picture_comes_as_it_was_asked_for(
    client: Client, form: str, counter: Counter, drives: Drives, figure: Figure
) -> None:
    if form not in client.forms:
        figure(form, "has none")
        pytest.skip(f"{client.name} takes no {form}")

    (outcome,) = drives.make([counter.call(client, "a fox", response_format=form)])

    assert outcome.failure is None
    assert [list(picture) for picture in outcome.pictures] == [["b64_json" if client.hands_bytes else form]]
    assert [_size(picture) for picture in outcome.pictures] == [client.size]
    figure(form, "yes")


def test_every_refusal_is_an_error_of_the_clients_own_with_a_sentence(
    client: Client, counter: Counter, drives: Drives, figure: Figure
) -> None:
    calls = [
        counter.call(client, f"a fox {refusal.in_prompt}", whose_key=refusal.whose_key, **refusal.order)
        for refusal in REFUSALS.values()
    ]

    outcomes = dict(zip(REFUSALS, drives.make(calls), strict=True))

    wrong = {name: str(outcome.failure) for name, outcome in outcomes.items() if not _is_told(client, name, outcome)}
    figure("errors", f"{len(outcomes) - len(wrong)} of {len(outcomes)}")
    assert wrong == {}


def _is_told(client: Client, name: str, outcome: Outcome) -> bool:
    told, refusal = outcome.failure, REFUSALS[name]
    if told is None:
        return False
    status = refusal.statuses[client.surface]
    return (told.name, told.status) == (client.errors[name], status) and refusal.says in told.message


def test_no_call_is_billed_twice_whatever_upstream_does(
    client: Client, counter: Counter, drives: Drives, figure: Figure
) -> None:
    tags = _tags(list(FAULTS))
    calls = [
        counter.call(client, f"a fox {fault.in_prompt} [[id {tags[name]}]]", timeout_seconds=fault.timeout_seconds)
        for name, fault in FAULTS.items()
    ]

    outcomes = dict(zip(FAULTS, drives.make(calls), strict=True))

    met = {name: (*counter.upstream(tags[name]), bool(outcome.pictures)) for name, outcome in outcomes.items()}
    expected = {name: _met(client, fault) for name, fault in FAULTS.items()}
    figure("faults", f"{sum(met[name] == expected[name] for name in met)} of {len(met)}")
    figure("bills", max(bills for _, bills, _ in met.values()))
    assert met == expected


def _met(client: Client, fault: Fault) -> tuple[int, int, bool]:
    """How often upstream is to be asked and to bill, and whether the client has a picture in the end.

    What surely cost nothing is really tried again, as often as the client does. Nothing else reaches upstream twice.
    """
    return client.tries if fault.free else 1, 0 if fault.free else 1, fault.late and client.tries > 1


def test_three_equal_orders_at_once_are_three_images(client: Client, counter: Counter, drives: Drives) -> None:
    (tag,) = _tags(["three"]).values()

    outcomes = drives.make([counter.call(client, f"a fox [[delay 0.5]] [[id {tag}]]")] * 3)

    assert [outcome.failure for outcome in outcomes] == [None] * 3
    assert counter.upstream(tag) == (3, 3)
    _assert_all_different(outcomes)


def test_three_equal_orders_are_three_images_while_one_of_them_is_retried(
    client: Client, counter: Counter, drives: Drives, figure: Figure
) -> None:
    (tag,) = _tags(["retried"]).values()
    prompt = f"a fox [[delay {LATE_SECONDS}]] [[id {tag}]]"
    patient, hasty = (counter.call(client, prompt, timeout_seconds=seconds) for seconds in (None, HASTY_SECONDS))

    outcomes = drives.make([hasty, patient, patient])
    if client.tries == 1:
        # It doesn't try again by itself, so the person does.
        assert outcomes[0].failure is not None
        outcomes[:1] = drives.make([patient])

    assert [outcome.failure for outcome in outcomes] == [None] * 3
    assert counter.upstream(tag) == (3, 3)
    _assert_all_different(outcomes)
    figure("at_once", "yes")


def _assert_all_different(outcomes: list[Outcome]) -> None:
    """By their URLs: the sandbox's pictures of one prompt are the same."""
    urls = [picture["url"] for outcome in outcomes for picture in outcome.pictures if "url" in picture]
    assert len(set(urls)) == len(urls)
