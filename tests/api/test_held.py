"""Does a user see what is held for them, and what nobody knows the outcome of?"""

import httpx

from tests.service import Service, add_user

ONE = {"generations": 1, "images": 1, "price": {"micros": 10_000, "usd": "0.010000"}}
NONE = {"generations": 0, "images": 0, "price": {"micros": 0, "usd": "0.000000"}}


def test_me_tells_what_runs_and_what_is_unknown_and_of_nobody_else(service: Service) -> None:
    before = service.client.get("/me").json()["held"]
    service.order("a fox [[drop]]")
    service.order("a fox [[delay 2]]", headers={"prefer": "respond-async"})

    held = service.client.get("/me").json()["held"]

    stranger = {"authorization": f"Bearer {add_user(service.database_url, 'bob')}"}
    assert before == {"running": NONE, "unknown": NONE}
    assert held == {"running": ONE, "unknown": ONE}
    assert service.client.get("/me", headers=stranger).json()["held"] == {"running": NONE, "unknown": NONE}


def test_a_spent_budget_of_money_is_told_with_all_its_digits(service: Service) -> None:
    key = add_user(service.database_url, "bob", micros_per_month_max=1_000)

    refused: httpx.Response = service.client.post(
        "/images", json={"prompt": "a fox"}, headers={"authorization": f"Bearer {key}"}
    )

    assert refused.status_code == 429
    assert "(USD a month: 0.001)" in refused.json()["detail"]
