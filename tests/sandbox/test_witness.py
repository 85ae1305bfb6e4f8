"""Does the witness tell what was asked and billed, and never a key?"""

import json

from app.sandbox.witness import ORDERS_MAX, Witness
from tests.sandbox.conftest import BARE_ROUTE, SEED_ROUTE, Customer
from tests.sandbox_server import API_KEY, RunningSandbox


def test_an_order_is_told_with_its_fields_and_header_names(sandbox: RunningSandbox, customer: Customer) -> None:
    customer.order("a cat [[id seven]]", quality="hd", model="dall-e-3", n=2)
    report = sandbox.witness()
    (order,) = report["orders"]
    headers = order.pop("headers")
    assert (report["asked"], report["billed"]) == (1, 1)
    assert order == {
        "tag": "seven",
        "prompt": "a cat [[id seven]]",
        "path": SEED_ROUTE,
        "model": "dall-e-3",
        "size": "1024x1024",
        "quality": "hd",
        "n": 2,
        "billed": True,
    }
    assert "tt-api-key" in headers
    assert headers == [name.lower() for name in headers]


def test_a_key_is_never_told(sandbox: RunningSandbox, customer: Customer) -> None:
    customer.client.post(BARE_ROUTE, json={"prompt": "a cat"}, headers={"Authorization": f"Bearer {API_KEY}"})
    assert API_KEY not in json.dumps(sandbox.witness())


def test_orders_that_cannot_be_read_are_asked_and_not_billed(sandbox: RunningSandbox, customer: Customer) -> None:
    customer.client.post(SEED_ROUTE, content=b"{")
    customer.client.post(SEED_ROUTE, json={"prompt": "mine [[id m]]"}, headers={"TT-API-KEY": ""})
    report = sandbox.witness()
    assert (report["asked"], report["billed"]) == (2, 0)
    assert [order["prompt"] for order in report["orders"]] == [None, "mine [[id m]]"]
    assert (sandbox.witness(tag="m")["asked"], sandbox.witness(tag="m")["billed"]) == (1, 0)


def test_a_tag_or_a_prompt_chooses_orders_and_their_pictures(sandbox: RunningSandbox, customer: Customer) -> None:
    customer.picture("a cat [[id one]]")
    customer.picture("a dog [[id two]]")
    customer.order("a dog [[id two]] [[refuse]]")
    two, dogs, cats = sandbox.witness(tag="two"), sandbox.witness(prompt="a dog"), sandbox.witness(prompt="a cat")
    assert [(each["asked"], each["billed"]) for each in (two, dogs, cats)] == [(2, 1), (2, 1), (1, 1)]
    assert [each["pictures"]["asked"] for each in (two, dogs, cats)] == [1, 1, 1]
    assert sandbox.witness()["pictures"]["asked"] == 2


def test_gets_of_pictures_are_counted_with_their_header_names(sandbox: RunningSandbox, customer: Customer) -> None:
    url = customer.picture_url("a cat [[picture missing]]")
    customer.client.get(url, headers={"X-Leak": "1"})
    customer.client.get("/pictures/none.png")
    pictures = sandbox.witness()["pictures"]
    assert pictures["asked"] == 2
    assert "x-leak" in pictures["headers"]


def test_reset_forgets_everything(sandbox: RunningSandbox, customer: Customer) -> None:
    customer.picture("a cat")
    sandbox.reset()
    assert sandbox.witness() == {"asked": 0, "billed": 0, "orders": [], "pictures": {"asked": 0, "headers": []}}


def test_counts_have_no_end_but_memory_has() -> None:
    witness = Witness()
    for number in range(ORDERS_MAX + 5):
        witness.note_order(str(number), {"prompt": str(number)}, path="/", tag=None, billed=True, headers=())
        witness.note_picture_of(str(number), f"{number}.png")
    report = witness.report()
    assert (report["asked"], report["billed"]) == (ORDERS_MAX + 5, ORDERS_MAX + 5)
    assert len(report["orders"]) == ORDERS_MAX
    assert report["orders"][0]["prompt"] == "5"
