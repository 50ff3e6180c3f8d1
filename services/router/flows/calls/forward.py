"""One call of a client, from the plan to an answer.

The plan names a target, and the target's row decides. Each step below is safe at any store, at any time, and any number
of times: a store accepts a write only as the record's owner, and recognises a request that it has served, even after
the record has moved.

A write goes to the target. If the target is not the owner, the router hands the record over to it and sends the write
again with the same request id, and with the record if that is small. If the handoff fails, the owner does the write. If
the target is out of reach, the router sends the write again at once, which reaches another process of the store if
there is one; then to the other store, which accepts it only if it owns the record; then the write waits for the target
and is sent again (`patience`).

A read goes to the target, else to the other store. If both answer that they are not the owner, a handoff is under way:
then the router reads both rows and answers the higher version, which includes every write acknowledged before. If the
owner has just become unreachable, a read waits too, so that a restart does not make answers stale: at most half of its
caller's time, and only in the first seconds of an outage. After that, or if the owner fails, the answer is the other
store's row, marked stale.

A refusal counts only if no earlier attempt of the call may still be carried out. An attempt whose connection broke may
still run in a live process, so a refusal after it leaves the outcome unknown.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from libs.clock import Clock
from libs.contract.descriptors import Method
from libs.errors import BatonError, OwnerUnavailable
from libs.ownership.errors import NotOwner
from libs.ownership.model import Store
from libs.rpc import metadata
from services.router.core.plan import Target
from services.router.flows.calls.attempt import Attempt, measured
from services.router.flows.calls.patience import Patience, QueueFull, Waiting, may_return
from services.router.flows.moving.handoff import Arriving, Handoffs, Moved
from services.router.flows.stores import Answer, Away, Metadata, Refused, StoreClient, Stores, read_version
from services.router.flows.traffic import Traffic

ROUNDS = 5
"""Maximum number of handoffs for one call."""

FIRST_PAUSE_SECONDS = 0.005
"""Pause before the second try of a handoff; it doubles with each further try."""

ATTEMPT_SHARE = 0.4
"""Share of the time left for one attempt at a store that may be unreachable. It leaves time for another attempt."""

LEAST_SECONDS = 0.001

MARGIN_SECONDS = 0.2
"""A call stops waiting for a store this long before its deadline, so that its caller gets a specific error."""

READ_SHARE = 0.5
"""Share of the time left that a read waits for its owner."""


@dataclass(slots=True)
class Course:
    """The course of a call so far."""

    doubt: set[Store] = field(default_factory=set)
    """Stores that may still carry out an earlier attempt."""
    again: bool = False
    """The store did not answer this call before."""
    failed_at: float | None = None


@dataclass(frozen=True, slots=True)
class ClientCall:
    """A call from a client."""

    method: Method
    request: bytes
    key: str
    bucket: int
    may_create: bool
    extra: Metadata
    """Metadata for the stores: principal, request id, generated id, trace context."""
    deadline: float
    """Monotonic time."""
    answer_by: float = 0.0
    """Monotonic time at which the caller needs an answer. A write is finished even after that."""
    course: Course = field(default_factory=Course, compare=False)


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    stale_reads: bool = True
    """Answer from the replica, marked stale, if the owner is out of reach."""


class Forward:
    """Raises Refused with the store's own error, or OwnerUnavailable."""

    def __init__(
        self,
        stores: Stores,
        handoffs: Handoffs,
        traffic: Traffic,
        clock: Clock,
        policy: ReadPolicy,
        patience: Patience,
    ) -> None:
        self._stores = stores
        self._handoffs = handoffs
        self._traffic = traffic
        self._clock = clock
        self._policy = policy
        self._patience = patience

    async def call(self, call: ClientCall, chosen: Target) -> Answer:
        """Carry out a call. `chosen`: the target by the plan."""
        try:
            answered = await self._planned(call, chosen)
        except BatonError as error:
            self._traffic.note(call.bucket, failed=not isinstance(error, Refused) or error.counts_as_fault)
            raise
        self._traffic.note(call.bucket, failed=False)
        return answered

    async def _planned(self, call: ClientCall, chosen: Target) -> Answer:
        counted = self._traffic.reads if call.method.is_read else self._traffic.writes
        try:
            answer = await (self._read(call, chosen.store) if call.method.is_read else self._write(call, chosen))
        except Refused as refused:
            if refused.counts_as_fault:
                self._traffic.failures[refused.store] += 1
            elif not refused.is_fault:
                counted[refused.store] += 1
            raise
        counted[answer.store] += 1
        return answer

    async def _write(self, call: ClientCall, chosen: Target) -> Answer:
        waiting = Waiting(call.method.operation, False, len(call.request), partial(self._until, call))
        try:
            return await self._patience.call(lambda: self._write_now(call, chosen), waiting)
        except Away as away:
            self._traffic.failures[away.store] += away.counts_as_fault
            raise OwnerUnavailable(store=away.store.value) from None
        except (Refused, QueueFull) as refused:
            if call.course.doubt and not (isinstance(refused, Refused) and refused.is_fault):
                raise OwnerUnavailable(store=next(iter(call.course.doubt)).value) from None
            raise

    def _until(self, call: ClientCall, away: Away) -> float:
        """Return until when a call waits for its store, by its deadline and this router's patience."""
        if call.course.failed_at is None:
            call.course.failed_at = self._clock.monotonic()
        call.course.again = True
        return min(call.answer_by, call.course.failed_at + self._patience.seconds)

    def _read_until(self, call: ClientCall, away: Away) -> float:
        """Return until when a read waits: less than a write, only early in an outage. It has a stale answer."""
        until = self._until(call, away)
        if not self._policy.stale_reads:
            return until
        now = self._clock.monotonic()
        outage = self._patience.away_since(away.store, now) + self._patience.seconds
        return min(until, outage, now + READ_SHARE * (call.answer_by - now))

    async def _write_now(self, call: ClientCall, chosen: Target) -> Answer:
        to = chosen.store
        if not chosen.moves:
            try:
                return await self._send_write(to, call)
            except NotOwner:
                # Without the hint the plan's target is the other store.
                to = to.other
            except Away as away:
                return await self._write_elsewhere(call, away)
        return await self._write_moving(call, to)

    async def _write_moving(self, call: ClientCall, to: Store) -> Answer:
        """Send a write to its target, and hand its record over if it is not there."""
        arriving: Arriving | None = None
        for number in range(ROUNDS):
            try:
                return await self._send_write(to, call, arriving)
            except NotOwner as denied:
                if arriving is not None:
                    self._handoffs.left(arriving, denied, to)
                if number:
                    # Another call moves the record elsewhere, or it is busy: pause, so as not to collide again.
                    await asyncio.sleep(FIRST_PAUSE_SECONDS * 2**number)
                moved = await self._bring(call, to, denied)
            except Away as away:
                return await self._write_elsewhere(call, away)
            arriving = moved if isinstance(moved, Arriving) else None
            if arriving is not None or moved is Moved.HERE:
                continue
            try:
                return await self._send_write(to.other, call)
            except NotOwner as denied:
                # The record or its bucket has moved meanwhile: the next round finds it at the target.
                await self._finish_bucket(call, denied)
        raise OwnerUnavailable("the record is moving from store to store: retry with the same request_id")

    async def _bring(self, call: ClientCall, to: Store, denied: NotOwner) -> Moved | Arriving:
        if denied.hidden:
            # A record of another account stays where it is. As with an absent one, the owner of its bucket answers.
            return Moved.ABSENT
        try:
            async with asyncio.timeout(self._left(call)):
                return await self._handoffs.bring(call.key, to, denied, create=call.may_create, along=True)
        except (Refused, NotOwner, TimeoutError):
            return Moved.BUSY

    async def _finish_bucket(self, call: ClientCall, denied: NotOwner) -> None:
        """Let the bucket of a record that is hidden from the caller arrive, if no store owns it now."""
        if denied.hidden:
            with suppress(Refused, TimeoutError):
                async with asyncio.timeout(self._left(call)):
                    await self._handoffs.finish_bucket(call.key)

    async def _send_write(self, store: Store, call: ClientCall, arriving: Arriving | None = None) -> Answer:
        """Send a write, and again to another process of the store if the first one does not answer. `arriving`: the
        record to take along."""
        if arriving is not None:
            # Both calls have one course.
            call = replace(call, extra=(*call.extra, (metadata.ARRIVING_BIN, arriving.data)))
        try:
            return await self._send(store, call)
        except Away as away:
            if not self._patience.seconds or not may_return(away) or self._traffic.waiting[store]:
                # If calls wait for the store already, none of its processes has answered.
                raise
        call.course.again = True
        return await self._send(store, call)

    async def _write_elsewhere(self, call: ClientCall, away: Away) -> Answer:
        """Send a write to the other store, which does it only as the owner.

        The first store keeps the outcome if it has done the write. A refusal by the other one is not final: the first
        store may still carry the request out after the record has moved to it.
        """
        try:
            return await self._send(away.store.other, call)
        except (NotOwner, Refused):
            raise away from None

    async def _read(self, call: ClientCall, to: Store) -> Answer:
        waiting = Waiting(call.method.operation, True, len(call.request), partial(self._read_until, call))
        try:
            return await self._patience.call(lambda: self._read_now(call, to), waiting)
        except QueueFull as full:
            return await self._replica(call, full.away)
        except Refused as failed:
            if not failed.is_fault:
                raise
            return await self._replica(call, failed)

    async def _read_now(self, call: ClientCall, to: Store) -> Answer:
        """Raises Refused. A fault is that of a store that may own the record."""
        failed: Refused | None = None
        for store in (to, to.other):
            try:
                return await self._ask(store, call)
            except NotOwner:
                continue
            except Refused as error:
                if not error.is_fault:
                    raise
                failed = error
        if failed is not None:
            raise failed
        return await self._newest(call)

    async def _ask(self, store: Store, call: ClientCall) -> Answer:
        """Ask one store, and once more if it does not answer or fails."""
        try:
            return await self._send(store, call, ATTEMPT_SHARE)
        except Refused as refused:
            if not refused.is_fault:
                raise
            return await self._send(store, call, ATTEMPT_SHARE)

    async def _newest(self, call: ClientCall) -> Answer:
        """Read both stores' rows and return the higher version.

        When the call begins, every acknowledged write is in at least one of the two rows, and versions only grow. So
        the higher version includes all of them.
        """
        answers = await asyncio.gather(*(self._look(store, call) for store in self._stores), return_exceptions=True)
        found: list[tuple[Answer | Refused, tuple[int, int]]] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                if not isinstance(answer, Refused):
                    raise answer
                trailers = dict(answer.error.trailing_metadata() or ())
                if metadata.VERSION not in trailers:
                    # This store's row may be the newest, so the other row alone is no answer.
                    raise answer
                found.append((answer, read_version(trailers)))
            else:
                found.append((answer, answer.version))
        newest, version = max(found, key=lambda entry: entry[1])
        if isinstance(newest, Refused):
            raise newest
        return Answer(newest.store, newest.data, {metadata.VERSION: f"{version[0]}-{version[1]}"})

    async def _replica(self, call: ClientCall, failed: Refused) -> Answer:
        """Answer from the store that has not failed: as the owner, or marked stale."""
        if not self._policy.stale_reads:
            raise OwnerUnavailable(store=failed.store.value)
        try:
            answer = await self._look(failed.store.other, call)
        except Refused as refused:
            if not refused.is_fault:
                raise
            raise OwnerUnavailable("neither store answers: try again") from None
        if answer.is_stale:
            self._traffic.stale_reads += 1
        return answer

    async def _look(self, store: Store, call: ClientCall) -> Answer:
        """Read a store's row even if it does not own the record."""
        return await self._attempt(store, call, self._left(call), as_owner=False)

    async def _send(self, store: Store, call: ClientCall, share: float = 1.0) -> Answer:
        return await self._attempt(store, call, self._left(call) * share)

    async def _attempt(self, store: Store, call: ClientCall, seconds: float, *, as_owner: bool = True) -> Answer:
        client: StoreClient = self._stores[store]
        extra = call.extra if as_owner else (*call.extra, (metadata.REPLICA, "1"))
        method, course = call.method, call.course
        attempt = Attempt(store, method.operation, method.is_read, seconds, as_owner, again=course.again)
        answering = client.call(method.path, call.request, seconds, extra)
        try:
            answer = await measured(self._traffic.meter, self._clock, attempt, answering)
        except Away as away:
            self._patience.heard(store, away)
            if away.may_be_under_way:
                course.doubt.add(store)
            elif away.nothing_listens and client.is_one_process:
                # The process has ended. A process that only hangs may still carry the attempt out.
                course.doubt.discard(store)
            raise
        except (NotOwner, Refused):
            self._patience.heard(store, None)
            raise
        self._patience.heard(store, None)
        return answer

    def _left(self, call: ClientCall) -> float:
        return max(call.deadline - self._clock.monotonic(), LEAST_SECONDS)
