"""What happens to a generation, from where it stands to its end?

`Driver.drive` is the one way: the request that ordered it, the order that nobody waits for, and recovery after a crash
all go through it.
"""

import time
from asyncio import sleep
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app import telemetry
from app.accounts.keys import scopes_of
from app.database.pool import Database
from app.errors import DatabaseUnavailable
from app.generations import records, risk
from app.generations.leases import Leases, pauses, within
from app.generations.records import Generation, Image, Move
from app.generations.rehost import Rehost, RehostFailed, in_order
from app.generations.settling import settlement, used_micros
from app.generations.telling import tell_answer, tell_move, tell_unforeseen, tell_vanished
from app.upstream.breaker import Breaker
from app.upstream.catalog import Catalog
from app.upstream.client import Upstream
from app.upstream.outcome import BytesSource, Generated, Refused, UrlSource
from app.upstream.retirement import RetirementNotices, today
from app.upstream.room import Hold

log = structlog.get_logger(__name__)

# What a statement raises that may work later: the database is away, or says what nobody foresaw.
_NOT_DONE = (DatabaseUnavailable, SQLAlchemyError)
# How long a MOVE that fails by what nobody foresaw is tried: time for a person to mend it. For ever, a row that can't
# be moved would have one of this process's slots for ever.
_UNFORESEEN_SECONDS_MAX = 3600


@dataclass(frozen=True)
class Unsent:
    """A generation that RESERVE may have made, although its answer was lost. It was not sent."""

    id: UUID
    user_id: UUID
    api_key_id: UUID


class Driver:
    """What driving needs, and `drive`."""

    def __init__(
        self,
        *,
        database: Database,
        upstream: Upstream,
        breaker: Breaker,
        catalog: Catalog,
        rehost: Rehost,
        leases: Leases,
    ) -> None:
        self._database = database
        self._upstream = upstream
        self._breaker = breaker
        self._catalog = catalog
        self._rehost = rehost
        self._leases = leases
        self._retirements = RetirementNotices()

    async def drive(self, generation: Generation, *, held_seconds: Callable[[], float] = lambda: 0) -> Generation:
        """Take a generation from where it stands to its end, and return it as it stands then.

        It comes from RESERVE or from CLAIM, so nobody else runs it. One that could not be rehosted within its lease
        is returned as it is: recovery goes on with it. `held_seconds` tells for how long it has been reserved.
        """
        with structlog.contextvars.bound_contextvars(generation_id=str(generation.id)):
            while not generation.ended:
                moved = await self._step(generation, held_seconds)
                if moved is None:
                    return await self._reread(generation) or tell_vanished(generation)
                tell_move(moved)
                generation = moved
            return generation

    async def _step(self, generation: Generation, held_seconds: Callable[[], float]) -> Generation | None:
        """Go one state on. None when it stays, or when someone else moved it."""
        if generation.state == "generated":
            assert generation.source_urls, "a generated row has its sources"
            return await self._bring_home(generation, generation.source_urls)
        if generation.attempts == 0:
            if held_seconds() > self._leases.send_within_seconds:
                detail = "its runner stood still and did not send it"
                return await self._fail(generation, "upstream_unreachable", detail)
            # Pictures that come in the answer are in memory until they are kept.
            with self._rehost.hold() as held:
                return await self._send(generation, held)
        # Somebody may have sent it, so it is never sent again.
        return await self._look_for_pictures(generation)

    async def _send(self, generation: Generation, held: Hold) -> Generation | None:
        model = self._catalog.find(generation.model)
        if model is None:
            return await self._fail(generation, "upstream_model_gone", "the catalog no longer has its model")
        assert generation.prompt is not None, "a running generation can't be deleted"
        self._retirements.ordered(model, today())
        started = time.monotonic()
        outcome = await self._upstream.generate(
            model=model,
            prompt=generation.prompt,
            size=generation.size,
            quality=generation.quality,
            n=generation.held_images,
            held=held,
        )
        self._breaker.hear(outcome, sent_at=started)
        tell_answer(generation, outcome, time.monotonic() - started)
        if isinstance(outcome, Generated):
            used = used_micros(generation, model, outcome.usage)
            # A copy of thirty fields, which most models give no reason for.
            answered = generation if used == generation.used_micros else replace(generation, used_micros=used)
            return await self._take(answered, outcome)
        if isinstance(outcome, Refused):
            return await self._fail(generation, outcome.code, outcome.detail)
        return await self._leave_unknown(generation, outcome.detail)

    async def _fail(self, generation: Generation, code: str, detail: str) -> Generation | None:
        """End what surely cost nothing: upstream refused it, or it is not sent.

        Also of a process that stood still between RESERVE and here, or while upstream worked. Others may have taken it
        for dead, a person may have resolved it and a retry may have been sent: sent now, it could be paid for twice.
        """
        failed = Move(
            "failed", leaving=("pending", "unknown"), settled=(0, 0), failure_code=code, failure_detail=detail
        )
        return await self._move_surely(generation, failed)

    async def _take(self, generation: Generation, answer: Generated) -> Generation | None:
        # Pictures beyond the order were not paid for by its price, and would not fit what is held.
        made = answer.sources[: generation.held_images]
        revised_prompt = made[0].revised_prompt
        urls = [source for source in made if isinstance(source, UrlSource)]
        sources = [source.body if isinstance(source, BytesSource) else source.url for source in made]
        generated: Move | None = None
        if len(urls) == len(sources):
            generated = Move(
                "generated",
                leaving=("pending", "unknown"),
                source_urls=[source.url for source in urls],
                source_expires_at=min((source.expires_at for source in urls if source.expires_at), default=None),
                source_lifetime_seconds=self._leases.source_lifetime_seconds,
                lease_seconds=self._leases.generated_seconds,
                used_micros=generation.used_micros,
                revised_prompt=revised_prompt,
            )
            try:
                moved = await self._move(generation, generated)
                if moved is not None or await self._reread(generation) is not None:
                    return moved
                # Paid for, and no row to keep its source in. Stored all the same, `verify` lists it as an orphan.
            except _NOT_DONE:
                log.warning("answer_not_committed", then="storing the picture first")
        # Bytes can't be committed as a source, and sources can't be committed to a database that is away. The pictures
        # are safer in storage than in this process's memory, under keys where recovery looks for them.
        return await self._bring_home(generation, sources, revised_prompt=revised_prompt, uncommitted=generated)

    async def _bring_home(
        self,
        generation: Generation,
        sources: Sequence[str | bytes],
        *,
        revised_prompt: str | None = None,
        uncommitted: Move | None = None,
    ) -> Generation | None:
        """Keep the pictures and complete. `uncommitted` is the MOVE that would let others go on, for as long as it is
        not done: one that works between two tries ends this step.
        """
        kept: dict[int, Image] = {}
        began, step_seconds = time.monotonic(), self._leases.step_seconds(generation)
        give_up_at = began + step_seconds
        if generation.attempts > 0:
            # A runner that was killed between storing and settling left the picture, and perhaps a source that is dead.
            await self._find_or_go_on(generation, kept)
        for pause_seconds in pauses():
            try:
                async with within(min(step_seconds, give_up_at - time.monotonic())):
                    pictures = await self._rehost.keep(generation, sources, kept)
            except RehostFailed as failure:
                telemetry.rehost_failures_total.labels(failure.what).inc()
                log.warning("rehost_failed", detail=str(failure), final=failure.final)
                moved = await self._end_without(generation, sources, kept, failure, revised_prompt)
                if moved is None and uncommitted is not None:
                    moved = await self._try_move(generation, uncommitted)
                in_hand = not failure.final and _any_bytes_missing(sources, kept)
                give_up_at = began + self._leases.patience_seconds(generation, in_hand=in_hand)
                if moved is not None or time.monotonic() + pause_seconds > give_up_at:
                    return moved
                if time.monotonic() > began + step_seconds and await self._settled(generation):
                    return None
                await sleep(pause_seconds)
            else:
                return await self._complete(generation, pictures, made=len(sources), revised_prompt=revised_prompt)
        raise AssertionError("pauses do not end")

    async def _settled(self, generation: Generation) -> bool:
        """Whether somebody has ended it meanwhile: what is in hand here would keep its slot for nothing."""
        now = await self._reread(generation)
        return now is not None and now.state in ("completed", "failed", "lost")

    async def _find_or_go_on(self, generation: Generation, kept: dict[int, Image]) -> None:
        """Look for what is stored already. A storage that doesn't answer is no reason not to fetch."""
        try:
            async with within(self._leases.look_seconds(generation)):
                await self._rehost.find(generation, kept)
        except RehostFailed as failure:
            log.warning("stored_pictures_not_looked_for", detail=str(failure))

    async def _end_without(
        self,
        generation: Generation,
        sources: Sequence[str | bytes],
        kept: dict[int, Image],
        failure: RehostFailed,
        revised_prompt: str | None,
    ) -> Generation | None:
        """End a generation that has a picture which can't be had any more: with those that came, else as `lost`.

        None while it may still be had. What a URL gives now is no proof of what it gives later: a host that answered
        200 with an error page for two seconds lost a paid picture here once. Only the end of the source decides.
        """
        if failure.what == "storage" or not (failure.final or await self._source_expired(generation)):
            return None
        if any(isinstance(source, str) for source in sources):
            try:
                async with within(self._leases.look_seconds(generation)):
                    await self._rehost.find(generation, kept)
            except RehostFailed as unanswered:
                # The picture may be in there: a storage that is silent must not make it lost.
                log.warning("loss_postponed", detail=str(unanswered))
                return None
        if kept:
            return await self._complete(generation, in_order(kept), made=len(sources), revised_prompt=revised_prompt)
        return await self._lose(generation, str(failure), if_source_expired=not failure.final)

    async def _source_expired(self, generation: Generation) -> bool:
        try:
            async with self._database.statement() as connection:
                return await risk.source_expired(connection, generation.id)
        except DatabaseUnavailable:
            return False
        except SQLAlchemyError as error:
            tell_unforeseen("expiry_not_read", error)
            return False

    async def _complete(
        self,
        generation: Generation,
        pictures: tuple[Image, ...],
        *,
        made: int | None = None,
        revised_prompt: str | None = None,
    ) -> Generation | None:
        completed = Move(
            "completed",
            leaving=("pending", "generated", "unknown"),
            settled=settlement(generation, len(pictures), made=made),
            used_micros=generation.used_micros,
            revised_prompt=revised_prompt,
            pictures=pictures,
        )
        moved = await self._move_surely(generation, completed, known_only_here=_first_run(generation))
        if moved is None and (now := await self._reread(generation)) is not None and now.deleted_at is not None:
            # Another runner was first and the image was deleted since: what was just stored would stay for ever.
            await self._rehost.discard(pictures)
        return moved

    async def _lose(self, generation: Generation, detail: str, *, if_source_expired: bool) -> Generation | None:
        lost = Move(
            "lost",
            leaving=("pending", "generated", "unknown"),
            settled=(generation.held_images, generation.held_micros),
            failure_code="image_unavailable",
            failure_detail=detail,
            if_source_expired=if_source_expired,
        )
        return await self._try_move(generation, lost)

    async def _leave_unknown(self, generation: Generation, detail: str) -> Generation | None:
        unknown = Move("unknown", leaving=("pending",), failure_code="upstream_outcome_unknown", failure_detail=detail)
        return await self._move_surely(generation, unknown, known_only_here=_first_run(generation))

    async def _look_for_pictures(self, generation: Generation) -> Generation | None:
        try:
            pictures = await self._find_kept(generation)
        except RehostFailed as failure:
            log.warning("recovery_postponed", detail=str(failure))
            return None
        if pictures:
            return await self._complete(generation, pictures)
        return await self._leave_unknown(generation, "its runner died before upstream's answer was committed")

    async def _find_kept(self, generation: Generation) -> tuple[Image, ...]:
        """As Rehost.find_kept; a storage that hangs has a lease to answer in, or it would hold up all of recovery."""
        async with within(self._leases.step_seconds(generation)):
            return await self._rehost.find_kept(generation)

    async def resolve(self, generation: Generation, *, billed: bool, by: str) -> Generation | None:
        """Settle an `unknown` generation by a person's word: `lost` if it was billed, `failed` if it was not.

        `by` is who said so: that and the time stay with the row, before what was known until then. A picture that is
        found in storage outranks the word: then it is `completed`. None if it was not `unknown`. Raises RehostFailed
        when storage does not answer within a lease, and DatabaseUnavailable.
        """
        pictures = await self._find_kept(generation)
        log.info(
            "generation_resolved", generation_id=str(generation.id), billed=billed, by=by, pictures_found=len(pictures)
        )
        if pictures:
            return await self._complete(generation, pictures)
        word = "billed" if billed else "not billed"
        resolved = Move(
            "lost" if billed else "failed",
            leaving=("unknown",),
            settled=(generation.held_images, generation.held_micros) if billed else (0, 0),
            failure_code="image_unavailable" if billed else "upstream_failed",
            failure_detail=f"resolved as {word} by {by} at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC; before that:"
            f" {generation.failure_detail}",
        )
        return await self._move(generation, resolved)

    async def give_back_unsent(self, unsent: Unsent) -> Generation | None:
        """Fail a generation that may be there, as soon as the database can be asked.

        The statement may have been committed although its answer was lost. None when it was not.
        """
        failed = Move("failed", leaving=("pending", "unknown"), settled=(0, 0), failure_code="database_unavailable")
        given_back = await self._move_surely(unsent, failed)
        if given_back is None:
            # A server that was frozen, or a network that stalled, carries out later what it was sent before: once it
            # answers again, within the time that Postgres gives a statement. Missed here, it would stay held.
            await sleep(self._database.timeout_seconds)
            given_back = await self._move_surely(unsent, failed)
        return given_back

    async def _move(self, of: Generation | Unsent, to: Move) -> Generation | None:
        try:
            return await records.move(self._database.seat(scopes_of(of.user_id, of.api_key_id)), of.id, to)
        except SQLAlchemyError as error:
            tell_unforeseen("move_failed", error, state=to.state)
            raise

    async def _try_move(self, of: Generation | Unsent, to: Move) -> Generation | None:
        """Move if it can be done just now. None also when it can't."""
        try:
            return await self._move(of, to)
        except _NOT_DONE:
            return None

    async def _move_surely(
        self, of: Generation | Unsent, to: Move, *, known_only_here: bool = True
    ) -> Generation | None:
        """Move, however long the database is away: what is known here and nowhere else must not be dropped.

        Where the database fails by what nobody foresaw, up to an hour; and not twice for what anybody finds out again,
        so that one row that can't be moved holds up no recovery. None then too: recovery comes back to it.
        """
        unforeseen_until = time.monotonic() + (_UNFORESEEN_SECONDS_MAX if known_only_here else 0)
        for pause_seconds in pauses():
            try:
                return await self._move(of, to)
            except DatabaseUnavailable:
                log.warning("move_postponed", state=to.state)
            except SQLAlchemyError:
                if time.monotonic() >= unforeseen_until:
                    return None
            await sleep(pause_seconds)
        raise AssertionError("pauses do not end")

    async def _reread(self, generation: Generation) -> Generation | None:
        """Return how it stands now, or was last known to while that can't be read; None if its row is gone."""
        try:
            async with self._database.statement() as connection:
                return await records.find(connection, generation.id)
        except DatabaseUnavailable:
            return generation
        except SQLAlchemyError as error:
            tell_unforeseen("row_not_read", error)
            return generation


def _first_run(generation: Generation) -> bool:
    """Whether this is the runner that ordered it, who alone knows what upstream answered."""
    return generation.attempts == 0 and not generation.ended


def _any_bytes_missing(sources: Sequence[str | bytes], kept: Mapping[int, Image]) -> bool:
    return any(isinstance(source, bytes) for position, source in enumerate(sources) if position not in kept)
