"""What can a page of another origin read and show, in a real Chromium?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.books import wait_until
from tests.clients.cases import HASTY_SECONDS, LATE_SECONDS
from tests.clients.clients import Client
from tests.clients.conftest import Counter
from tests.clients.drives import Drives
from tests.clients.environments import CLIENTS, drive_of, surroundings
from tests.docs.pages import blocks
from tests.tcp_proxy import TcpProxy

# Whom it is run with.
KINDS = ("browser",)

# An origin that the service does not let in.
_STRANGER = "http://stranger.example"


@pytest.fixture(scope="module")
def page(client: Client) -> Iterator[Drives]:
    opened = Drives(drive_of(client), surroundings(client), 1)
    yield opened
    opened.close()


def _ordered(
    counter: Counter, page: Drives, prompt: str, *, whose_key: str = "a user's", **more: Any
) -> dict[str, Any]:
    line = {"base_url": counter.service.url, "key": counter.keys[whose_key], "timeout_seconds": None, **more}
    return page.ask({**line, "order": {"prompt": prompt, "size": "1792x1024"}})


def test_a_page_shows_a_picture_and_then_fetches_its_bytes(counter: Counter, page: Drives) -> None:
    told = _ordered(counter, page, "a fox")

    assert told["seen"]["shown"] == ["1792x1024"]
    assert told["seen"]["saved"] == ["image/png"]
    assert {"x-request-id", "openai-processing-ms", "location"} <= set(told["seen"]["headers"])


@pytest.mark.parametrize(
    ("in_prompt", "whose_key", "status", "readable"),
    [
        ("", "nobody's", 401, set()),
        ("", "a poor user's", 429, {"x-should-retry", "ratelimit", "ratelimit-policy"}),
        ("[[refuse]]", "a user's", 400, {"location"}),
        ("[[status 429]]", "a user's", 503, {"retry-after", "location"}),
        ("[[drop]]", "a user's", 504, {"x-should-retry", "location"}),
    ],
)
def test_a_page_reads_an_error_and_the_headers_to_act_on(
    counter: Counter, page: Drives, in_prompt: str, whose_key: str, status: int, readable: set[str]
) -> None:
    told = _ordered(counter, page, f"a fox {in_prompt}", whose_key=whose_key)

    assert told["error"]["status"] == status
    assert told["error"]["message"]
    assert {"x-request-id", *readable} <= set(told["seen"]["headers"])


def test_an_sdk_in_a_page_orders_and_tries_again(counter: Counter, page: Drives) -> None:
    tag = uuid4().hex
    prompt = f"a fox [[hang {LATE_SECONDS}]] [[id {tag}]]"

    told = _ordered(counter, page, prompt, with_sdk=True, timeout_seconds=HASTY_SECONDS)

    assert told["seen"]["shown"] == ["1792x1024"]
    assert counter.upstream(tag) == (1, 1)


def test_an_sdk_in_a_page_tells_an_error(counter: Counter, page: Drives) -> None:
    told = _ordered(counter, page, "a fox", whose_key="a poor user's", with_sdk=True)

    assert (told["error"]["status"], told["error"]["name"]) == (429, "insufficient_quota")


def test_an_order_with_an_id_is_paid_for_once_whoever_sends_it_again(counter: Counter, page: Drives) -> None:
    tag = uuid4().hex
    wanted = f"a fox [[delay 1]] [[id {tag}]]"
    with TcpProxy("127.0.0.1", httpx.URL(counter.service.url).port or 80) as proxy, ThreadPoolExecutor(1) as pages:
        by_proxy = {"base_url": f"http://127.0.0.1:{proxy.port}"}
        # What breaks on a connection that has carried something before is mostly sent again by Chromium itself.
        _ordered(counter, page, "a fox", **by_proxy)
        order = pages.submit(_ordered, counter, page, wanted, order_id=tag, **by_proxy)
        wait_until(lambda: counter.upstream(tag) == (1, 1))
        proxy.reset()
        told = order.result()
        if "error" in told:
            told = _ordered(counter, page, wanted, order_id=tag, **by_proxy)

    assert told["seen"]["shown"] == ["1792x1024"]
    assert counter.upstream(tag) == (1, 1)


def test_a_page_that_is_not_let_in_orders_nothing(counter: Counter, page: Drives) -> None:
    tag = uuid4().hex

    told = _ordered(counter, page, f"a fox [[id {tag}]]", origin=_STRANGER)

    assert told["error"]["name"] == "TypeError"
    assert counter.upstream(tag) == (0, 0)


def test_a_picture_is_open_to_pages_that_may_not_order(counter: Counter, page: Drives) -> None:
    (picture,) = _ordered(counter, page, "a fox")["pictures"]

    seen = page.ask({"origin": _STRANGER, "picture": picture})["seen"]

    assert (seen["shown"], seen["saved"]) == (["1792x1024"], ["image/png"])


def test_the_page_shows_what_was_driven(client: Client) -> None:
    shown = [block.text for block in blocks(f"docs/clients/{client.page}.md") if block.language == "js"]

    assert shown == [(CLIENTS / client.folder / "order.js").read_text(encoding="utf-8")]
