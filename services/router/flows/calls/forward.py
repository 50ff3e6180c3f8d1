"""One call of a client, from the plan to an answer.

The plan names a target, and the target's row decides. What the rounds below may do is safe at any store, at any time,
any number of times, because a store takes a write only as the record's owner, and recognises a request that has had its
effect, wherever the record has moved since.

A write goes to the target. Not its owner: the record is brought there and the write sent again, with the same request
id. If the record cannot be brought, the owner does the write where the record is. If the target is out of reach, the
write is sent again at once, which reaches another process of the store if there is one; then the other store is asked,
which takes the write only if it owns the record; then the write waits for the target and is sent again (`patience`).

A read goes to the target, else to the other store. When both say that they are not the owner, the record is on its way:
then both rows are read and the higher version is the answer, which is never older than what was acknowledged before.
When the owner has just been lost, a read waits too, so that a restart makes no answer stale: for at most half of the
time that its caller gives it, and only in the first seconds of an outage. Then, and when the owner fails, the answer is
the other store's row, marked stale.

A refusal counts only if no earlier attempt of the call can still be carried out. An attempt whose connection broke may
be under way in a process that lives, so a refusal after it leaves the outcome unknown.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
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
from services.router.flows.moving.handoff import Handoffs, Moved
from services.router.flows.stores import Answer, Away, Metadata, Refused, StoreClient, Stores, read_version
from services.router.flows.traffic import Traffic

ROUNDS = 5
"""How often a record is brought to the target for one call."""

FIRST_PAUSE_SECONDS = 0.005
"""Before a second try to bring a record; then twice as long each time."""

ATTEMPT_SHARE = 0.4
"""Of the time that is left, for one attempt at a store that may be out of reach: so that there is time for another."""

LEAST_SECONDS = 0.001

MARGIN_SECONDS = 0.2
"""Before its caller's deadline a call stops waiting for a store: an error that says why is better than none."""

READ_SHARE = 0.5
"""Of the time that is left, for a read to wait for its owner."""


@dataclass(slots=True)
class Course:
    """How a call has fared so far."""

    doubt: set[Store] = field(default_factory=set)
    """Stores that may still carry out an earlier attempt."""
    again: bool = False
    """The store that is asked did not answer before."""
    failed_at: float | None = None


@dataclass(frozen=True, slots=True)
class ClientCall:
    """A call as it came in."""

    method: Method
    request: bytes
    key: str
    bucket: int
    may_create: bool
    extra: Metadata
    """For the stores: principal, request id, made id, trace context."""
    deadline: float
    """By the monotonic clock."""
    answer_by: float = 0.0
    """When the caller must have an answer, by the monotonic clock; a write is finished after that."""
    course: Course = field(default_factory=Course, compare=False)


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    stale_reads: bool = True
    """Answer from the replica, marked stale, when the owner is out of reach."""


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
        """`chosen`: what the plan says."""
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
        """How long a call waits for its store: by its caller's deadline, and by this router's patience."""
        if call.course.failed_at is None:
            call.course.failed_at = self._clock.monotonic()
        call.course.again = True
        return min(call.answer_by, call.course.failed_at + self._patience.seconds)

    def _read_until(self, call: ClientCall, away: Away) -> float:
        """A read has another answer to give than an error, so it waits less, and not in an outage that lasts."""
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
                # Without the hint the plan says the other one.
                to = to.other
            except Away as away:
                return await self._write_elsewhere(call, away)
        for number in range(ROUNDS):
            try:
                return await self._send_write(to, call)
            except NotOwner as denied:
                if number:
                    # Others want it elsewhere at the same moment, or it is busy: not all at once again.
                    await asyncio.sleep(FIRST_PAUSE_SECONDS * 2**number)
                moved = await self._bring(call, to, denied)
            except Away as away:
                return await self._write_elsewhere(call, away)
            if moved is Moved.HERE:
                continue
            try:
                return await self._send_write(to.other, call)
            except NotOwner:
                # It has moved meanwhile, or its bucket's absence has: the next round meets it at the target.
                continue
        raise OwnerUnavailable("the record is moving from store to store: retry with the same request_id")

    async def _bring(self, call: ClientCall, to: Store, denied: NotOwner) -> Moved:
        try:
            async with asyncio.timeout(self._left(call)):
                return await self._handoffs.bring(call.key, to, denied, create=call.may_create)
        except (Refused, NotOwner, TimeoutError):
            return Moved.BUSY

    async def _send_write(self, store: Store, call: ClientCall) -> Answer:
        """To another process of the store, if the first one does not answer."""
        try:
            return await self._send(store, call)
        except Away as away:
            if not self._patience.seconds or not may_return(away) or self._traffic.waiting[store]:
                # Where calls wait already, no process of the store has answered.
                raise
        call.course.again = True
        return await self._send(store, call)

    async def _write_elsewhere(self, call: ClientCall, away: Away) -> Answer:
        """The store that may have done it keeps the outcome; the other one does it only if it is the owner. A refusal
        there is not the last word: the first store may still carry the request out, when the record has moved to it."""
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
        """Raises Refused; if it is a fault, of the store that may own the record."""
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
        """One store, once more if it does not answer at first, or fails."""
        try:
            return await self._send(store, call, ATTEMPT_SHARE)
        except Refused as refused:
            if not refused.is_fault:
                raise
            return await self._send(store, call, ATTEMPT_SHARE)

    async def _newest(self, call: ClientCall) -> Answer:
        """Both stores' rows, the higher version. Since every acknowledged write is in at least one of the two rows when
        the call begins, and versions only grow, the higher one is not older than any of them."""
        answers = await asyncio.gather(*(self._look(store, call) for store in self._stores), return_exceptions=True)
        found: list[tuple[Answer | Refused, tuple[int, int]]] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                if not isinstance(answer, Refused):
                    raise answer
                trailers = dict(answer.error.trailing_metadata() or ())
                if metadata.VERSION not in trailers:
                    # It failed, or says nothing of its row, which may be the newest: the other one alone is no answer.
                    raise answer
                found.append((answer, read_version(trailers)))
            else:
                found.append((answer, answer.version))
        newest, version = max(found, key=lambda entry: entry[1])
        if isinstance(newest, Refused):
            raise newest
        return Answer(newest.store, newest.data, {metadata.VERSION: f"{version[0]}-{version[1]}"})

    async def _replica(self, call: ClientCall, failed: Refused) -> Answer:
        """What the store that does not fail has: its own, or marked stale."""
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
        """What a store has, whoever owns it."""
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
                # Its listener is gone, and what answers next is another process. One that stands still may go on.
                course.doubt.discard(store)
            raise
        except (NotOwner, Refused):
            self._patience.heard(store, None)
            raise
        self._patience.heard(store, None)
        return answer

    def _left(self, call: ClientCall) -> float:
        return max(call.deadline - self._clock.monotonic(), LEAST_SECONDS)
