"""What is asked of Imagekeep and of the others, and what runs side by side to answer it?"""

from bench.contenders import Asks
from bench.installation import Installation
from bench.rounds import Entry, Part

IMAGEKEEP = Installation("imagekeep")
_IN_FOLDER = Installation("imagekeep-folder", in_folder=True)
_USERS = Installation("imagekeep-users", users=1_000)
_UNLIMITED = Installation("imagekeep-unlimited", limited=False)
_ALL = Installation("imagekeep-all", all_limited=True)
_TWO_WORKERS = Installation("imagekeep-2-workers", workers=2)
_HISTORIES = {
    count: Installation(f"imagekeep-{count}", generations=count) for count in (1_000, 10_000, 100_000, 1_000_000)
}

_IN_ANSWER = Asks("b64")
_LARGE = Asks(picture="1500kb")
_LARGE_IN_ANSWER = Asks("b64", "1500kb")
_AFTER_200_MS = Asks(delay_seconds=0.2)
_AFTER_20_S = Asks(delay_seconds=20)


def _at(in_flight: int, *names: str) -> list[Entry]:
    return [Entry(f"{name}, {in_flight:,} in flight", name, in_flight=in_flight) for name in names]


ORDERS = Part(
    "orders",
    "What does an order cost? Upstream answers at once, the picture has 1 KB, 64 are in flight, one user with a limit.",
    [
        Entry("imagekeep", IMAGEKEEP.name),
        Entry("imagekeep, picture in the answer", IMAGEKEEP.name, _IN_ANSWER),
        Entry("imagekeep, pictures in a folder", _IN_FOLDER.name),
        Entry("aiohttp", "aiohttp"),
        Entry("httpx", "httpx"),
        Entry("litellm", "litellm"),
        Entry("portkey", "portkey"),
    ],
    against="aiohttp",
    installations=[IMAGEKEEP, _IN_FOLDER],
)

IN_FLIGHT = Part(
    "in-flight",
    "What does it cost when more or fewer are in flight? Else as above.",
    [
        *_at(1, IMAGEKEEP.name, "aiohttp", "httpx", "litellm"),
        *_at(64, IMAGEKEEP.name),
        *_at(256, IMAGEKEEP.name, "aiohttp", "httpx", "litellm"),
        *_at(1_000, IMAGEKEEP.name, "aiohttp"),
    ],
    against="imagekeep, 64 in flight",
    installations=[IMAGEKEEP],
)

REHOST = Part(
    "rehost",
    "What does it cost to keep a picture of 1.5 MB in a bucket? 64 in flight. `rehost` has no order around it: 64 are "
    "asked for, of which ours brings 8 home at a time, and the others 10.",
    [
        Entry("imagekeep", IMAGEKEEP.name, _LARGE),
        Entry("imagekeep, picture in the answer", IMAGEKEEP.name, _LARGE_IN_ANSWER),
        Entry("imagekeep, picture of 1 KB", IMAGEKEEP.name),
        Entry("rehost, raw sockets", "sockets", _LARGE),
        Entry("rehost, imagekeep", "rehost", _LARGE),
        Entry("rehost, boto3 as it comes", "boto3", _LARGE),
        Entry("litellm, picture of 1 KB, not kept", "litellm"),
    ],
    against="rehost, raw sockets",
    installations=[IMAGEKEEP],
)

SLOW = Part(
    "slow",
    "How much of an upstream that takes 200 ms is left?",
    [
        Entry("upstream itself", "upstream", _AFTER_200_MS),
        Entry("imagekeep", IMAGEKEEP.name, _AFTER_200_MS),
        Entry("aiohttp", "aiohttp", _AFTER_200_MS),
        Entry("httpx", "httpx", _AFTER_200_MS),
        Entry("litellm", "litellm", _AFTER_200_MS),
        Entry("imagekeep, 1,000 in flight", IMAGEKEEP.name, _AFTER_200_MS, in_flight=1_000),
        Entry("aiohttp, 1,000 in flight", "aiohttp", _AFTER_200_MS, in_flight=1_000),
    ],
    against="aiohttp",
    installations=[IMAGEKEEP],
    # When time is up, those under way end one by one: the run is to be long beside one order.
    seconds=10,
)

HELD = Part(
    "held",
    "What does it take to hold 1,000 orders, with an upstream that takes 20 s? They come evenly over 20 s, so that all "
    "are held when the first is answered, or all in the same instant.",
    [
        *(
            Entry(name, name, _AFTER_20_S, in_flight=1_000, orders_max=1_000, arrive_over_seconds=19.9)
            for name in (IMAGEKEEP.name, "aiohttp", "litellm")
        ),
        Entry("imagekeep, all at once", IMAGEKEEP.name, _AFTER_20_S, in_flight=1_000, orders_max=1_000),
        Entry("aiohttp, all at once", "aiohttp", _AFTER_20_S, in_flight=1_000, orders_max=1_000),
    ],
    against="aiohttp",
    installations=[IMAGEKEEP],
    seconds=60,
    fresh=True,
)

PICTURES = Part(
    "pictures",
    "How much memory do 64 orders in flight take whose pictures have 3 MB? Behind URLs, 8 are fetched at a time.",
    [
        Entry("imagekeep", IMAGEKEEP.name, Asks(picture="3mb")),
        Entry("imagekeep, picture in the answer", IMAGEKEEP.name, Asks("b64", "3mb")),
    ],
    installations=[IMAGEKEEP],
    fresh=True,
)

USERS = Part(
    "users",
    "What do users and limits cost? 64 in flight.",
    [
        Entry("1 user", _USERS.name),
        *(Entry(f"{users:,} users", _USERS.name, Asks(users=users)) for users in (10, 100, 1_000)),
        Entry("1 user without a limit", _UNLIMITED.name),
        Entry("1 user, and a limit on `all`", _ALL.name),
    ],
    against="1 user",
    installations=[_USERS, _UNLIMITED, _ALL],
)

WORKERS = Part(
    "workers",
    "What does a second worker add? It shares its core with load, upstream and Postgres.",
    [Entry("1 worker", IMAGEKEEP.name), Entry("2 workers", _TWO_WORKERS.name)],
    against="1 worker",
    installations=[IMAGEKEEP, _TWO_WORKERS],
)

HISTORY = Part(
    "history",
    "What does an order cost when there were many before? Each line is a database of its own.",
    [Entry(f"{count:,} generations", one.name) for count, one in _HISTORIES.items()],
    against="1,000 generations",
    installations=list(_HISTORIES.values()),
)

START = Part(
    "start",
    "How long from the start of the process to its first answer? Postgres runs already.",
    [Entry(name, name, in_flight=1, orders_max=1) for name in (IMAGEKEEP.name, "aiohttp", "litellm", "portkey")],
    against="aiohttp",
    installations=[IMAGEKEEP],
    fresh=True,
)

PARTS = (ORDERS, REHOST, SLOW, HELD, PICTURES, START, IN_FLIGHT, USERS, WORKERS, HISTORY)
