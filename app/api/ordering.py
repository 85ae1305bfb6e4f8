"""How is an order placed and waited for, in whatever wire format it came?

No answer that comes of it invites a client to pay for the same again: what was placed is never refused as if it had not
been, and whoever leaves without an answer is written down, so that their repeat gets it.
"""

import asyncio
import time
from dataclasses import dataclass
from functools import partial

from fastapi import Request

from app.accounts.keys import Caller
from app.api.prefer import read_idempotency_key, read_retry_count
from app.api.surface import answering, request_id_of, wiring_of
from app.errors import (
    AnswerUnavailable,
    AppError,
    DatabaseUnavailable,
    ImageDeleted,
    InternalError,
    NotFound,
    Overloaded,
    StorageUnavailable,
    UpstreamOutcomeUnknown,
    error_of_code,
)
from app.generations import records
from app.generations.order import Order
from app.generations.records import Generation
from app.generations.repeats import Attempt, Placed

# Failures that cost nothing and pass: worth another try after this long.
_FAILURE_RETRY_SECONDS = {"upstream_busy": 5, "upstream_unreachable": 2, "database_unavailable": 2}
# How often a client that is waited with through recovery is looked at again: whether there is room, or time, for it.
_LOOK_SECONDS = 2
_CROWDED_RETRY_SECONDS = 5
_CROWDED = "Too many clients wait here already. Your order is in work; try again shortly, and you get its image."


@dataclass(frozen=True)
class Taken:
    """An order that was placed, and how its generation stood when the wait for it was over.

    `waited` is False where nobody waited, because too many wait here already.
    """

    placed: Placed
    generation: Generation
    waited: bool


async def take_order(
    request: Request, caller: Caller, order: Order, *, wait_seconds: float | None = None, through_recovery: bool = False
) -> Taken:
    """Place an order, or find the one that it repeats, and wait for its end, or for `wait_seconds`.

    None waits as Runner.wait does: not for what was left to recovery, unless `through_recovery`. The request's body
    must be read. Raises what Runner.place does, and InvalidValue for an Idempotency-Key that is none; once it is
    placed, nothing but AnswerUnavailable.
    """
    wiring = wiring_of(request)
    attempt = Attempt(read_idempotency_key(request), read_retry_count(request), request_id_of(request))
    placing = asyncio.create_task(wiring.runner.place(caller, order, attempt))
    async with answering(request, or_else=partial(wiring.runner.leave, caller, order, placing)):
        placed = await placing
        waited = not (placed.known and wait_seconds != 0 and wiring.runner.crowded)
        try:
            generation = await wiring.runner.wait(
                placed.generation_id,
                caller.user_id,
                seconds=wait_seconds if waited else 0,
                has_slot=not placed.known,
            )
            if waited and through_recovery:
                generation = await _wait_on(request, caller, generation)
        except (DatabaseUnavailable, InternalError, NotFound) as error:
            # It is paid for, or about to be: an answer that invites another try would be paid for twice.
            raise AnswerUnavailable(details={"id": str(placed.generation_id)}) from error
    return Taken(placed, generation, waited)


async def _wait_on(request: Request, caller: Caller, generation: Generation) -> Generation:
    """Wait on for what was left to recovery, while there is room for one who waits, and this process stays."""
    wiring = wiring_of(request)
    give_up_at = request.state.started_at + wiring.settings.recovery_wait_seconds_max
    while generation.state in records.RUNNING and (seconds_left := give_up_at - time.monotonic()) > 0:
        if wiring.runner.crowded or wiring.departure.announced():
            break
        seconds = min(_LOOK_SECONDS, seconds_left)
        generation = await wiring.runner.wait(generation.id, caller.user_id, seconds=seconds)
    return generation


def completed(request: Request, taken: Taken) -> Generation:
    """Return the generation of an order that has its images, for a client that is answered with nothing else.

    Raises ImageDeleted, the failure that it ended with, or, for one that runs on: Overloaded where nobody waited for
    it; AnswerUnavailable when its image was made and is still being fetched; UpstreamOutcomeUnknown when its runner is
    gone. The next try of who is told so joins it.
    """
    generation = taken.generation
    if generation.state in records.RUNNING:
        wiring_of(request).runner.leave_unanswered(taken.placed)
        raise _running(taken)
    if generation.deleted_at is not None:
        raise ImageDeleted
    if generation.state != "completed":
        raise failure_of(generation)
    return generation


def _running(taken: Taken) -> AppError:
    generation = taken.generation
    details = {"id": str(generation.id), "state": generation.state}
    if not taken.waited:
        return Overloaded(_CROWDED, retry_after_seconds=_CROWDED_RETRY_SECONDS, details=details)
    if generation.state == "generated":
        return AnswerUnavailable(
            "The image was made, but could not be fetched yet. Imagekeep goes on trying. Don't order again: "
            f"GET /images/{generation.id} has it then.",
            details=details,
        )
    return UpstreamOutcomeUnknown(details=details)


def not_readable(request: Request, taken: Taken) -> AppError:
    """Return what is said when the picture that was ordered is kept, but can't be read to be sent.

    Another try gets it and costs nothing, so it is invited, unless nobody would know it for a repeat.
    """
    wiring = wiring_of(request)
    wiring.runner.leave_unanswered(taken.placed)
    details = {"id": str(taken.generation.id)}
    if taken.placed.repeats is not None and wiring.settings.join_within_seconds == 0:
        return AnswerUnavailable(details=details)
    return StorageUnavailable(retry_after_seconds=10, details=details)


def told_headers(generation: Generation) -> dict[str, str]:
    """Return what a generation cost and, where the order has other words for it, what was made.

    In headers, for answers that have no other place. The catalog's words are letters, digits and a few signs, none of
    which a header's string would have to escape.
    """
    told = {"imagekeep-price-micros": str(charged_micros(generation))}
    if generation.asked is not None:
        made = {"model": generation.model, "size": generation.size, "quality": generation.quality}
        told["imagekeep-made"] = ", ".join(f'{name}="{word}"' for name, word in made.items())
    return told


def charged_micros(generation: Generation) -> int:
    """Return what its user is charged for a generation, in micros: what is held, until it is settled."""
    if generation.state == "lost":
        return 0
    return generation.held_micros if generation.settled_micros is None else generation.settled_micros


def failure_of(generation: Generation) -> AppError:
    """Return the error that a generation ended with."""
    return error_of_code(generation.failure_code)(
        retry_after_seconds=_FAILURE_RETRY_SECONDS.get(generation.failure_code or ""),
        details={"id": str(generation.id), "state": generation.state},
    )
