"""Which faults does the harness know?"""

from tests.faults.frame import Part
from tests.faults.freezes import freezes
from tests.faults.hostile_input import schemathesis_cases
from tests.faults.kills import crashes, kills, kills_s3, points
from tests.faults.overload import crowd
from tests.faults.planted import BUGS, plant
from tests.faults.race import race
from tests.faults.rolls import rolls
from tests.faults.soak import soak
from tests.faults.storage_outage import outage
from tests.faults.walk import walk

PARTS: tuple[Part, ...] = (
    Part(
        "kills",
        "kill -9 of random replicas under a load of every kind of order, with a folder as storage",
        kills,
        pieces=9,
        times=100,
        times_short=50,
    ),
    Part(
        "kills-s3",
        "the same with a real S3 server as storage",
        kills_s3,
        pieces=2,
        times=50,
        times_short=0,
    ),
    Part(
        "points",
        "kill -9 at each of the named points: reserved, answered, generated, image_got, stored, settled",
        points,
        pieces=5,
        times=10,
        times_short=2,
    ),
    Part(
        "crashes",
        "Postgres stopped at once and started again, with kill -9 of replicas before, meanwhile and after",
        crashes,
        pieces=4,
        times=5,
        times_short=2,
    ),
    Part(
        "freezes",
        "replicas stopped for longer than their leases, at random and at each named point, and woken again",
        freezes,
        pieces=4,
        times=10,
        times_short=4,
    ),
    Part(
        "rolls",
        "SIGTERM of one replica after the other under load, behind a balancer that goes by /readyz",
        rolls,
        pieces=4,
        times=10,
        times_short=4,
    ),
    Part(
        "race",
        "1,000 orders at once on a quota of 100, for each kind of limit, two processes: exactly 100 are taken",
        race,
        pieces=20,
        times=1,
        times_short=0,
    ),
    Part(
        "walk",
        "random orders, moves, limits and clock jumps over midnight and month ends, the statements beside a model",
        walk,
        pieces=40,
        times=2_500,
        times_short=800,
    ),
    Part(
        "overload",
        "1,000 clients on 64 slots: refusals come fast, what was taken completes, memory comes back",
        crowd,
        pieces=3,
        times=60,
        times_short=0,
    ),
    Part(
        "hostile",
        "requests generated from the schema, right and wrong, with a key and without: no 5xx, only what it declares",
        schemathesis_cases,
        pieces=10,
        times=1_000,
        times_short=200,
    ),
    Part(
        "planted",
        "bugs planted into a copy of the code: the part that guards against each has to see it within a minute",
        plant,
        pieces=len(BUGS),
        times=1,
        times_short=0,
    ),
    Part(
        "soak",
        "20 orders a second for half an hour: memory, files, sockets, tasks and connections stay flat",
        soak,
        pieces=1,
        times=1_800,
        times_short=0,
        piece_seconds_max=2_400,
    ),
    Part(
        "outage",
        "storage away for longer than source URLs live, under load: nobody notices, until the spool is full",
        outage,
        pieces=4,
        times=400,
        times_short=24,
    ),
)
