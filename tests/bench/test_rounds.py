"""Is everything measured that a part asks for, by an order that really goes the whole way?"""

from dataclasses import replace

from bench.contenders import Asks, passthrough, rehoster, upstream_itself
from bench.figures import Figures
from bench.installation import Installation
from bench.neighbourhood import Neighbourhood
from bench.rounds import Entry, Part, measure
from tests.service import differences, rows

STARTS = {
    "upstream": upstream_itself,
    "aiohttp": passthrough("aiohttp"),
    "httpx": passthrough("httpx"),
    "sockets": rehoster("sockets"),
}

# Of what was ordered, not of what was planted.
_ENDED = """SELECT state, size_bytes > 1400000 AS is_large, count(*) AS n FROM generations
    JOIN images ON generation_id = generations.id WHERE generations.created_at > now() - interval '1 hour'
    GROUP BY state, is_large"""


def run(part: Part, near: Neighbourhood, *, rounds: int = 1) -> tuple[dict[str, list[Figures]], list[str]]:
    """What was measured in very short runs, and the entries in the order in which they ran."""
    told: list[str] = []
    measured = measure(part, STARTS, near, rounds=rounds, seconds=0.3, tell=lambda name, _: told.append(name))
    return measured, told


def test_every_entry_runs_in_every_round_and_each_round_begins_with_another(near: Neighbourhood) -> None:
    entries = [Entry(name, name, in_flight=4) for name in ("upstream", "aiohttp", "sockets")]

    measured, told = run(Part("three", "", entries), near, rounds=2)

    assert told == ["upstream", "aiohttp", "sockets", "aiohttp", "sockets", "upstream"]
    assert all(figures.completed and not figures.failed for entry in measured.values() for figures in entry)


def test_an_order_to_an_installation_goes_the_whole_way(near: Neighbourhood) -> None:
    one = Installation("whole-way", users=3, generations=20)
    large = Asks(picture="1500kb", users=3)
    entries = [
        Entry("url", one.name, large, in_flight=2),
        Entry("answer", one.name, replace(large, form="b64"), in_flight=2),
    ]

    measured, _ = run(Part("ours", "", entries, installations=[one]), near)

    (url,), (answer,) = measured["url"], measured["answer"]
    assert min(url.completed, answer.completed) > 0
    assert url.failed == answer.failed == 0
    assert all(figures.cpu_ms_per_order and figures.postgres_ms_per_order for figures in (url, answer))
    database_url = f"{near.postgres_url.rpartition('/')[0]}/of-whole-way"
    ended = rows(database_url, _ENDED)
    assert {row["state"] for row in ended} == {"completed"}
    # Before anything is measured, pictures of 1 KB warm it up.
    assert sum(row["n"] for row in ended if row["is_large"]) == url.completed + answer.completed
    assert rows(database_url, "SELECT count(*) AS n FROM budgets") == [{"n": 3}]
    assert differences(database_url) == []


def test_a_fresh_run_has_a_process_of_its_own(near: Neighbourhood) -> None:
    entries = [Entry("start", "httpx", in_flight=1, orders_max=1)]

    measured, _ = run(Part("starts", "", entries, fresh=True), near, rounds=2)

    assert [figures.completed for figures in measured["start"]] == [1, 1]
    assert len({figures.start_seconds for figures in measured["start"]}) == 2
