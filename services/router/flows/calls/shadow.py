"""Shadow reads: some of the clients' reads are asked again at the other store, and both answers are compared.

What a client gets, and when, does not depend on any of this: an answer is offered here when it is on its way. It is
taken into a bounded queue, or counted as dropped. A few workers ask the other store for what it has, whoever owns the
record, with a short deadline of their own. These questions are no traffic: they are in no count of calls or failures.
Writes are never asked again.

The rows of a strict list are at hand from both stores already, so they are compared at once.

Two answers that differ are no finding yet, since each store follows the other one with some delay. Both stores are
looked at, which tells the versions, and once more when everything that was made until then has reached both. Only a
difference that is still there counts (see `core.compare` for what it counts as). What waits for this is bounded too.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from libs.clock import Clock
from libs.contract.descriptors import Contract, Method
from libs.ownership.model import Store, Version
from libs.tasks import Loop
from services.router.core.compare import Comparison, Kind, Seen, Sight, gravest, pairs_of, seen_of
from services.router.core.measure import ShadowCounts
from services.router.core.merge import Half, Item
from services.router.core.tally import Difference, Side, Tally, hashed, sides_of
from services.router.flows.calls.forward import ClientCall
from services.router.flows.calls.shadow_looks import OneRecord, SomeRows, Subject, Unanswered, seen_in
from services.router.flows.steering_view import Steering
from services.router.flows.stores import Answer, Refused, Stores, StoreView

ALWAYS = 1000
"""Permille."""

MAX_REQUEST_BYTES = 64 * 1024
"""Larger requests are not asked again: many of them may wait."""

MAX_NAMES = 10
"""Of a page: how many rows that differ are looked into."""

_TICK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ShadowLimits:
    queue: int = 256
    queue_bytes: int = 16 * 1024 * 1024
    """Of requests and answers that wait to be compared."""
    workers: int = 4
    waiting: int = 1000
    """Differences that wait to be looked at again; further ones are dropped, and counted."""
    kept: int = 50
    """Differences of each kind that are kept, the latest ones."""
    call_seconds: float = 1.0
    settle_seconds: float = 2.0
    """The least time between two looks: more than the lag may be misjudged by."""
    patience_seconds: float = 300.0
    """While the lag is not known or not over by then, older rows are no finding."""


@dataclass(frozen=True, slots=True)
class Job:
    """A read to compare. `run`: see `Setting.shadow_since`."""

    subject: Subject
    stores: tuple[Store, Store]
    """Which one the client's answer is from, and which one is asked: the same in a comparison of A with A."""
    run: int
    began: float
    told: Mapping[str, Seen]
    """What the client was told, by name."""
    shown: Mapping[str, Seen]
    """What the other store has shown already; empty: it is to be asked."""

    @property
    def size(self) -> int:
        replies = sum(len(seen.reply) for seen in (*self.told.values(), *self.shown.values()))
        return len(self.subject.request) + replies


@dataclass(frozen=True, slots=True)
class Suspect:
    """A difference that waits to be looked at again."""

    job: Job
    looked_at: float
    due: Mapping[str, Version]
    """By name: the version that both stores should have when what was made until `looked_at` has reached them."""
    missed: bool = False
    """A due version was missing already when it should have been there."""


class Report(NamedTuple):
    """What one router has compared since the setting's last change of it."""

    counts: ShadowCounts
    operations: Mapping[str, ShadowCounts]
    skipped: int
    """Reads that were sampled while the other store was known to be out of reach."""
    same: bool
    """A store was compared with itself."""
    queued: int
    waiting: int
    differences: Sequence[Difference]
    """Newest first."""


class Neighbours(Protocol):
    """What is known of the stores and of the log between them."""

    log_trouble: str

    def view(self, store: Store) -> StoreView: ...


class Shadow:
    """`loops` are the caller's to run."""

    def __init__(
        self,
        contract: Contract,
        stores: Stores,
        steering: Steering,
        neighbours: Neighbours,
        clock: Clock,
        limits: ShadowLimits = ShadowLimits(),
    ) -> None:
        """Raises UnfitContract."""
        self._comparisons = {
            method.name: Comparison.of(method)
            for method in contract.methods.values()
            if method.is_read and method.watch is None
        }
        self._stores = stores
        self._steering = steering
        self._neighbours = neighbours
        self._clock = clock
        self._limits = limits
        self._tally = Tally(0, limits.kept)
        self._queue: asyncio.Queue[Job] = asyncio.Queue(limits.queue)
        self._held_bytes = 0
        self._waiting: deque[Suspect] = deque()
        self._random = random.Random().random
        self._secret = secrets.token_bytes(16)
        self.loops = [Loop(f"shadow {number}", self._work) for number in range(1, limits.workers + 1)]
        self.loops.append(Loop("shadow, second looks", self._tick))

    def __repr__(self) -> str:
        return f"<Shadow {self.counts} queued={self._queue.qsize()} waiting={len(self._waiting)}>"

    @property
    def counts(self) -> ShadowCounts:
        """For gates: nothing while a store is compared with itself."""
        tally = self._follow()
        return ShadowCounts() if self._steering.current.shadow_same else tally.counts(tally.operations)

    def report(self) -> Report:
        tally = self._follow()
        kept = [difference for kind in tally.differences.values() for difference in kind]
        return Report(
            counts=tally.counts(tally.operations),
            operations={operation: tally.counts([operation]) for operation in tally.operations},
            skipped=tally.skipped.total(),
            same=self._steering.current.shadow_same,
            queued=self._queue.qsize(),
            waiting=len(self._waiting),
            differences=sorted(kept, key=lambda difference: -difference.time_seconds),
        )

    def offer(self, call: ClientCall, outcome: Answer | Refused) -> None:
        """A read's answer, on its way to the client. Returns at once, for most calls after one comparison."""
        permille = self._steering.current.shadow_permille
        if not permille or self._random() * ALWAYS >= permille:
            return
        if isinstance(outcome, Answer):
            if outcome.is_stale:
                # The owner is away: there is nobody to compare with.
                return
            seen = Seen(None, outcome.data)
        else:
            try:
                seen = seen_in(outcome)
            except Unanswered:
                return
        same = self._steering.current.shadow_same
        stores = (outcome.store, outcome.store if same else outcome.store.other)
        self._put(OneRecord(call), stores, {call.key: seen}, {})

    def offer_page(self, page: tuple[Method, bytes], halves: tuple[Half, Half], looked_up: Mapping[str, Item]) -> None:
        """A strict list's rows, A's and B's; `page`: its method and request. Rows that are all the same cost little."""
        setting = self._steering.current
        permille = setting.shadow_permille
        if not permille or setting.shadow_same or self._random() * ALWAYS >= permille:
            return
        method, request = page
        told: dict[str, Seen] = {}
        shown: dict[str, Seen] = {}
        for name, one, other in pairs_of(*halves, looked_up):
            told[name], shown[name] = seen_of(one), seen_of(other)
            if len(told) == MAX_NAMES:
                break
        if told:
            self._put(SomeRows(method, request, tuple(told)), (Store.A, Store.B), told, shown)
        else:
            self._follow().count(method.operation, Kind.MATCH)

    def _follow(self) -> Tally:
        """What is counted now: anew when the setting of the shadow was changed."""
        since = self._steering.current.shadow_since
        if since != self._tally.run:
            self._tally = Tally(since, self._limits.kept)
            self._waiting.clear()
        return self._tally

    def _put(
        self, subject: Subject, stores: tuple[Store, Store], told: Mapping[str, Seen], shown: Mapping[str, Seen]
    ) -> None:
        tally = self._follow()
        job = Job(subject, stores, tally.run, self._clock.monotonic(), told, shown)
        if not self._neighbours.view(stores[1]).reachable:
            tally.skipped[subject.method.operation] += 1
        elif not self._has_room(job):
            tally.dropped[subject.method.operation] += 1
        else:
            self._held_bytes += job.size
            self._queue.put_nowait(job)

    def _has_room(self, job: Job) -> bool:
        fits = self._held_bytes + job.size <= self._limits.queue_bytes
        return fits and len(job.subject.request) <= MAX_REQUEST_BYTES and not self._queue.full()

    async def _work(self, loop: Loop) -> None:
        job = await self._queue.get()
        self._held_bytes -= job.size
        if job.run == self._follow().run:
            await self._compare(job)
        loop.well()

    async def _compare(self, job: Job) -> None:
        """The first looks."""
        subject, comparison = job.subject, self._comparisons[job.subject.method.name]
        try:
            theirs = job.shown or await self._look(subject, job.stores[1])
            if not any(comparison.fields(seen, theirs[name]) for name, seen in job.told.items()):
                self._count(job, Kind.MATCH)
                return
            looked_at = self._clock.monotonic()
            sights = await self._sights(subject, job.stores, {})
        except Unanswered as error:
            self._count_error(job, error)
            return
        if gravest(sight.kind for sight in sights.values()) is Kind.MATCH:
            # It was on its way when the client's answer was made.
            self._count(job, Kind.STALE)
            return
        due = {name: sight.newest for name, sight in sights.items()}
        # The answers themselves are not needed any more.
        self._wait(Suspect(replace(job, told={}, shown={}), looked_at, due))

    async def _look(self, subject: Subject, store: Store) -> Mapping[str, Seen]:
        return await subject.look(store, self._stores, self._limits.call_seconds)

    async def _sights(
        self, subject: Subject, stores: tuple[Store, Store], due: Mapping[str, Version]
    ) -> Mapping[str, Sight]:
        """Both stores now, by name. Raises Unanswered."""
        comparison = self._comparisons[subject.method.name]
        looks = await asyncio.gather(*(self._look(subject, store) for store in stores), return_exceptions=True)
        for failure in looks:
            if isinstance(failure, BaseException):
                raise failure
        one, other = (look for look in looks if not isinstance(look, BaseException))
        return {name: comparison.sight(one[name], other[name], due.get(name)) for name in subject.names}

    def _wait(self, suspect: Suspect) -> None:
        tally = self._follow()
        if suspect.job.run != tally.run:
            return
        if len(self._waiting) >= self._limits.waiting:
            tally.dropped[suspect.job.subject.method.operation] += 1
        else:
            self._waiting.append(suspect)

    async def _tick(self, loop: Loop) -> None:
        """One round over what waits, in order."""
        await asyncio.sleep(min(_TICK_SECONDS, self._limits.settle_seconds))
        self._follow()
        waiting = self._waiting
        for _ in range(len(waiting)):
            if not waiting:
                # They are of no interest any more.
                break
            suspect = waiting.popleft()
            if self._is_ripe(suspect):
                await self._look_again(suspect)
            else:
                waiting.append(suspect)
        loop.well()

    def _is_ripe(self, suspect: Suspect) -> bool:
        waited = self._clock.monotonic() - suspect.job.began
        return waited > self._limits.patience_seconds or self._has_arrived(suspect)

    def _has_arrived(self, suspect: Suspect) -> bool:
        """What was made until the last look is at both stores, as far as the lag tells."""
        one, other = suspect.job.stores
        now = self._clock.monotonic()
        known = now if one is other else min(map(self._followed_until, (one, other)))
        return known - suspect.looked_at > self._limits.settle_seconds

    def _followed_until(self, store: Store) -> float:
        """What the other store made before this monotonic time is here; minus infinity when nothing is known."""
        view = self._neighbours.view(store)
        if view.seen_at is None or view.lag_seconds is None or self._neighbours.log_trouble:
            return float("-inf")
        return view.seen_at - view.lag_seconds

    async def _look_again(self, suspect: Suspect) -> None:
        job = suspect.job
        looked_at = self._clock.monotonic()
        arrived = self._has_arrived(suspect)
        try:
            sights = await self._sights(job.subject, job.stores, suspect.due if arrived else {})
        except Unanswered as error:
            self._count_error(job, error)
            return
        kind = gravest(sight.kind for sight in sights.values())
        if kind is Kind.MISSING and not suspect.missed:
            # The lag was read at a moment between outbox and log, maybe: once more.
            self._wait(replace(suspect, looked_at=looked_at, missed=True))
            return
        self._count(job, Kind.STALE if kind is Kind.MATCH else kind)
        for name, sight in sights.items():
            if sight.kind is kind is not Kind.MATCH:
                self._keep(job, name, kind, sight.fields, sides_of(sight, job.stores, self._secret))

    def _count(self, job: Job, kind: Kind) -> None:
        tally = self._follow()
        if job.run == tally.run:
            tally.count(job.subject.method.operation, kind)

    def _count_error(self, job: Job, error: Unanswered) -> None:
        self._count(job, Kind.ERROR)
        one, other = job.stores
        told = [hashed(seen, self._secret) for seen in job.told.values()]
        sides = (Side(one, None, told[0] if told else ""), Side(other, None, ""))
        shown = tuple(side._replace(content=error.status) if side.store is error.store else side for side in sides)
        self._keep(job, job.subject.names[0], Kind.ERROR, (), (shown[0], shown[1]))

    def _keep(self, job: Job, name: str, kind: Kind, fields: tuple[str, ...], sides: tuple[Side, Side]) -> None:
        tally = self._follow()
        if job.run == tally.run:
            waited = self._clock.monotonic() - job.began
            operation = job.subject.method.operation
            tally.keep(Difference(self._clock.now(), operation, name, kind, fields, sides, waited))
