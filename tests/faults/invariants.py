"""Which promises must hold once everything was left alone for a while, and which were broken?

Each check returns one sentence for each broken promise, with the order's tag and the generation's id.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.faults.stage import Stage, expected_sha256
from tests.faults.told import DYING_SOURCES, Asked

# Of every order of the load: one picture of the usual size.
_PRICE_MICROS = 10_000


@dataclass(frozen=True)
class Evidence:
    """Everything that is known at the end: the rows, the witness, storage, and what clients were told."""

    generations: Sequence[Mapping[str, Any]]
    images: Sequence[Mapping[str, Any]]
    budgets: Sequence[Mapping[str, Any]]
    objects: Mapping[str, bytes]
    spooled: Sequence[str]
    asked_of_upstream: Mapping[str, int]
    billed: Mapping[str, int]
    orders: Mapping[str, Asked]
    # A generation's order, also when its prompt was deleted.
    tags: Mapping[Any, str] = field(repr=False)

    def of_tag(self) -> Mapping[str, list[Mapping[str, Any]]]:
        """The generations of each order."""
        found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for generation in self.generations:
            found[self.tags.get(generation["id"], "?")].append(generation)
        return found


def gather(stage: Stage, asked: Sequence[Asked]) -> Evidence:
    """Look at everything once."""
    generations = stage.rows("SELECT * FROM generations ORDER BY id")
    witness = stage.witness()["orders"]
    told = {told.id: order.tag for order in asked for told in order.told if told.id}
    return Evidence(
        generations,
        stage.rows("SELECT * FROM images"),
        stage.rows("SELECT * FROM budgets"),
        stage.objects(),
        [row["storage_key"] for row in stage.rows("SELECT storage_key FROM spool")],
        Counter(order["tag"] for order in witness),
        Counter(order["tag"] for order in witness if order["billed"]),
        {order.tag: order for order in asked},
        {
            row["id"]: tag
            for row in generations
            if (tag := row["prompt"].split()[0] if row["prompt"] else told.get(str(row["id"])))
        },
    )


def broken_promises(evidence: Evidence) -> list[str]:
    """Every promise that does not hold."""
    return [sentence for check in CHECKS for sentence in check(evidence)]


def _nothing_is_stuck(evidence: Evidence) -> Iterator[str]:
    for row in evidence.generations:
        if row["state"] in ("pending", "generated"):
            yield f"{_name(evidence, row)} is stuck in {row['state']} after {row['attempts']} attempts"


def _one_order_is_asked_and_billed_once(evidence: Evidence) -> Iterator[str]:
    of_tag = evidence.of_tag()
    for tag, count in evidence.asked_of_upstream.items():
        rows = of_tag.get(tag, [])
        if count > len(rows):
            yield f"{tag}: upstream was asked {count} times for {len(rows)} generations {_states(rows)}"
        failed = [row for row in rows if row["state"] == "failed"]
        if failed and evidence.billed[tag] > len(rows) - len(failed):
            yield f"{tag}: billed {evidence.billed[tag]} times, and given back: {_states(rows)}"
        if evidence.billed[tag] > 1:
            yield f"{tag}: billed {evidence.billed[tag]} times: {_states(rows)}"


def _one_key_is_one_generation(evidence: Evidence) -> Iterator[str]:
    for tag, rows in evidence.of_tag().items():
        order = evidence.orders.get(tag)
        if order is None:
            yield f"{tag}: nobody ordered {_states(rows)}"
            continue
        living = [row for row in rows if row["state"] != "failed"]
        if len(living) > 1 or (order.idempotency_key is None and len(rows) > 1):
            yield f"{tag}: {len(rows)} generations of one order: {_states(rows)}"
        if order.fault in ("revoked", "disabled"):
            yield f"{tag}: started after its key was {order.fault}: {_states(rows)}"


def _ends_are_as_upstream_was(evidence: Evidence) -> Iterator[str]:
    for tag, rows in evidence.of_tag().items():
        states = Counter(row["state"] for row in rows)
        if states["completed"] + states["lost"] > evidence.billed[tag]:
            yield f"{tag}: billed {evidence.billed[tag]} times, but {_states(rows)}"
        order = evidence.orders.get(tag)
        if states["lost"] and order is not None and order.fault not in DYING_SOURCES:
            yield f"{tag}: lost, although its source was alive"


def _amounts_are_what_came(evidence: Evidence) -> Iterator[str]:
    pictures = Counter(image["generation_id"] for image in evidence.images)
    for row in evidence.generations:
        came = {"completed": (1, _PRICE_MICROS), "failed": (0, 0), "lost": (1, _PRICE_MICROS)}.get(row["state"])
        settled = (row["settled_images"], row["settled_micros"])
        if settled != (came or (None, None)):
            yield f"{_name(evidence, row)} is {row['state']} and settled {settled}"
        if (row["held_images"], row["held_micros"]) != (1, _PRICE_MICROS):
            yield f"{_name(evidence, row)} holds {row['held_images']}, {row['held_micros']}"
        if pictures[row["id"]] != (row["state"] == "completed"):
            yield f"{_name(evidence, row)} is {row['state']} with {pictures[row['id']]} pictures"


def _no_scope_is_overspent(evidence: Evidence) -> Iterator[str]:
    """By the generations alone: what the counters say is compared with them elsewhere."""
    for budget in evidence.budgets:
        used: Counter[tuple[str, Any]] = Counter()
        for row in evidence.generations:
            if budget["scope"] not in row["scopes"] or (row["state"] == "lost" and budget["scope"] != "all"):
                continue
            images = row["held_images"] if row["settled_images"] is None else row["settled_images"]
            micros = row["held_micros"] if row["settled_micros"] is None else row["settled_micros"]
            month = row["day"].replace(day=1)
            used["images_per_day_max", row["day"]] += images
            used["images_per_month_max", month] += images
            used["micros_per_month_max", month] += micros
            used["images_total_max", None] += images
        for (limit, window), amount in used.items():
            if budget[limit] is not None and amount > budget[limit]:
                yield f"{budget['scope']}: {amount} of {limit} {budget[limit]} in {window or 'all time'}"


def _pictures_are_where_and_what_they_must_be(evidence: Evidence) -> Iterator[str]:
    rows = {row["id"]: row for row in evidence.generations}
    for image in evidence.images:
        row = rows[image["generation_id"]]
        stored = evidence.objects.get(image["storage_key"])
        order = evidence.orders.get(evidence.tags.get(row["id"], ""))
        if image["deleted_at"] is not None:
            if stored is not None:
                yield f"{_name(evidence, row)} was deleted, and its object {image['storage_key']} is still there"
        elif stored is None:
            yield f"{_name(evidence, row)} is completed without an object at {image['storage_key']}"
        elif order is not None and not (stored == image["sha256"] == expected_sha256(order.tag, order.image_format)):
            yield f"{_name(evidence, row)} has the bytes of something else"


def _no_object_is_without_its_row(evidence: Evidence) -> Iterator[str]:
    stems = {row["storage_stem"]: row for row in evidence.generations}
    for key in evidence.objects:
        row = stems.get(key.rpartition("-")[0])
        if row is None:
            yield f"the object {key} belongs to no generation"
        # A picture that was stored by a process that died before it could say so is found when a person looks.
        elif row["state"] not in ("completed", "unknown"):
            yield f"{_name(evidence, row)} is {row['state']}, and {key} is stored"


def _the_spool_is_empty(evidence: Evidence) -> Iterator[str]:
    stems = {row["storage_stem"]: row for row in evidence.generations}
    for key in evidence.spooled:
        row = stems.get(key.rpartition("-")[0])
        if row is None:
            yield f"{key} in the spool belongs to no generation"
        elif row["state"] != "unknown":
            yield f"{_name(evidence, row)} is {row['state']}, and {key} is in the spool"


def _clients_were_told_the_truth(evidence: Evidence) -> Iterator[str]:
    rows = {str(row["id"]): row for row in evidence.generations}
    urls = {f"/i/{image['id']}.{image['extension']}" for image in evidence.images}
    for order in evidence.orders.values():
        # One that was told while it ran, and has failed since, left its key free for the next.
        failed = {generation_id for generation_id, row in rows.items() if row["state"] == "failed"}
        named = {told.id for told in order.told if told.id} - failed
        if len(named) > 1:
            yield f"{order.tag}: its clients were told {len(named)} ids"
        for told in order.told:
            if told.id is None:
                continue
            row = rows.get(told.id)
            if row is None:
                yield f"{order.tag}: {told.id} was told to a client, and is not there"
            elif told.state in ("completed", "failed", "lost") and row["state"] != told.state:
                yield f"{order.tag}: {told.id} was told as {told.state}, and is {row['state']}"
            if told.url and urlsplit(told.url).path not in urls:
                yield f"{order.tag}: {told.url} was told to a client, and no image has it"


def _name(evidence: Evidence, row: Mapping[str, Any]) -> str:
    return f"{evidence.tags.get(row['id'], '?')} {row['id']}"


def _states(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['id']} {row['state']} ({row['failure_code']})" for row in rows) or "none"


CHECKS: Sequence[Callable[[Evidence], Iterator[str]]] = (
    _nothing_is_stuck,
    _one_order_is_asked_and_billed_once,
    _one_key_is_one_generation,
    _ends_are_as_upstream_was,
    _amounts_are_what_came,
    _no_scope_is_overspent,
    _pictures_are_where_and_what_they_must_be,
    _no_object_is_without_its_row,
    _the_spool_is_empty,
    _clients_were_told_the_truth,
)
