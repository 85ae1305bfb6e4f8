"""Is what the load says it saw what there was?"""

from bench.contenders import OPENAI_PATH, TTAPI_PATH, Asks, Contender
from bench.load import load
from bench.neighbourhood import Neighbourhood
from bench.processes import free_port


def orders_to(near: Neighbourhood, path: str = TTAPI_PATH) -> Contender:
    return Contender(near.upstream, path, [{"Content-Type": "application/json"}])


def test_each_order_is_sent_once_and_seen_to_complete(near: Neighbourhood) -> None:
    before = near.orders_upstream()

    done = load(near.upstream.port, orders_to(near, OPENAI_PATH).orders(Asks()), in_flight=7, seconds=20, orders_max=50)

    assert (done.completed, done.late, done.failed) == (50, 0, {})
    assert near.orders_upstream() - before == 50


def test_an_order_takes_as_long_as_upstream_was_asked_to_take(near: Neighbourhood) -> None:
    slow = orders_to(near).orders(Asks(delay_seconds=0.2))

    done = load(near.upstream.port, slow, in_flight=10, seconds=20, orders_max=20)

    assert done.latency_ms(0) >= 195
    assert done.completed == 20


def test_first_orders_can_come_one_by_one(near: Neighbourhood) -> None:
    slow = orders_to(near).orders(Asks(delay_seconds=1))

    done = load(near.upstream.port, slow, in_flight=5, seconds=20, orders_max=5, arrive_over_seconds=0.8)

    # The fifth comes after 0.64 s and takes 1 s.
    assert (done.completed, done.failed) == (5, {})
    assert done.seconds > 1.6


def test_a_picture_in_the_answer_is_an_answer_too(near: Neighbourhood) -> None:
    large = orders_to(near).orders(Asks("b64", "1500kb"))

    done = load(near.upstream.port, large, in_flight=2, seconds=20, orders_max=4)

    assert (done.completed, done.failed) == (4, {})


def test_what_is_under_way_when_time_is_up_is_late_and_not_lost(near: Neighbourhood) -> None:
    slow = orders_to(near).orders(Asks(delay_seconds=0.5))

    done = load(near.upstream.port, slow, in_flight=3, seconds=0.1)

    assert (done.completed, done.late, done.failed) == (0, 3, {})
    assert 0 < done.orders_per_second < 6.1


def test_a_refused_order_is_no_completed_one(near: Neighbourhood) -> None:
    done = load(near.upstream.port, orders_to(near, "/nowhere").orders(Asks()), in_flight=2, seconds=20, orders_max=6)

    assert (done.completed, done.failed) == (0, {"HTTP 400": 6})


def test_what_has_no_answer_in_time_is_counted_as_failed(near: Neighbourhood) -> None:
    slow = orders_to(near).orders(Asks(delay_seconds=60))

    done = load(near.upstream.port, slow, in_flight=2, seconds=0.1, patience_seconds=0.1)

    assert (done.completed, done.late, done.failed) == (0, 0, {"no answer": 2})


def test_where_nobody_listens_nothing_completes(near: Neighbourhood) -> None:
    done = load(free_port(), orders_to(near).orders(Asks()), in_flight=2, seconds=0.1)

    assert (done.completed, done.failed) == (0, {"ConnectionRefusedError": 2})


def test_users_order_in_turn_each_with_a_prompt_of_its_own(near: Neighbourhood) -> None:
    callers = [{"Authorization": f"Bearer {number}"} for number in range(3)]
    make = Contender(near.upstream, TTAPI_PATH, callers).orders(Asks(users=2))

    requests = [make(number) for number in range(4)]

    assert [request.partition(b"Bearer ")[2][:1] for request in requests] == [b"0", b"1", b"0", b"1"]
    assert len(set(requests)) == 4
