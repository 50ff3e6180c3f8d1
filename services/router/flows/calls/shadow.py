"""Shadow reads: repeat a share of the clients' reads at the other store, and compare both answers.

They affect neither the answer to a client nor its latency: an answer is offered here while it is sent. A bounded queue
takes it, or it counts as dropped. A few workers ask the other store for its row, with a short deadline of their own.
These queries are not traffic: they are not counted as calls or failures. Writes are never repeated.

A strict list already has the rows of both stores, so they are compared at once.

Two answers that differ are not yet a finding, since each store follows the other one with some delay. The router reads
both stores with their versions, and again when every change made until then has reached both. Only a difference that
remains counts (`core.compare` has the kinds). The number of differences that wait for this is bounded too.
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
from services.router.core.compare import (
    AGREEING,
    Comparison,
    Kind,
    RecordComparison,
    ShownRecord,
    gravest,
    pairs_of,
    seen_of,
)
from services.router.core.difference_evidence import Example, example_of
from services.router.core.measure import ShadowCounts
from services.router.core.merge import HalfPage, Item
from services.router.core.tally import Difference, Side, Tally, hashed, sides_of
from services.router.flows.calls.difference_book import DifferenceBook
from services.router.flows.calls.forward import ClientCall
from services.router.flows.calls.shadow_looks import OneRecord, SomeRows, Subject, Unanswered, seen_in
from services.router.flows.steering_view import Steering
from services.router.flows.stores import Answer, Refused, Stores, StoreView

ALWAYS = 1000
"""All reads, in thousandths."""

MAX_REQUEST_BYTES = 64 * 1024
"""Larger requests are not repeated: the queue may hold many."""

MAX_NAMES = 10
"""Maximum number of differing rows of one page to examine."""

_TICK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ShadowLimits:
    queue: int = 256
    queue_bytes: int = 16 * 1024 * 1024
    """Size of the requests and answers in the queue."""
    workers: int = 4
    waiting: int = 1000
    """Differences that wait for a second comparison; further ones are dropped and counted."""
    kept: int = 50
    """Differences of each kind to keep, the latest ones."""
    call_seconds: float = 1.0
    settle_seconds: float = 2.0
    """Minimum time between two comparisons: more than the possible error of the lag."""
    patience_seconds: float = 300.0
    """Time to wait for a lag to end. If the lag is unknown or lasts longer, older rows are not a finding."""


@dataclass(frozen=True, slots=True)
class Job:
    """A read to compare. `run`: see `Setting.shadow_since`."""

    subject: Subject
    stores: tuple[Store, Store]
    """The store of the client's answer, and the store to compare with: the same one to measure noise."""
    run: int
    began: float
    answered: Mapping[str, ShownRecord]
    """The client's answer, by name."""
    shown: Mapping[str, ShownRecord]
    """Rows of the other store, if they are known already; empty: ask it."""

    @property
    def size(self) -> int:
        replies = sum(len(seen.reply) for seen in (*self.answered.values(), *self.shown.values()))
        return len(self.subject.request) + replies


@dataclass(frozen=True, slots=True)
class Suspect:
    """A difference that waits for a second comparison."""

    job: Job
    looked_at: float
    due: Mapping[str, Version]
    """Version that both stores should have once changes made until `looked_at` have reached them, by name."""
    missed: bool = False
    """A due version was already missing once when it should have been there."""


class Report(NamedTuple):
    """One router's comparisons since the last change of the setting of shadow reads."""

    counts: ShadowCounts
    operations: Mapping[str, ShadowCounts]
    skipped: int
    """Sampled reads that were skipped because the other store was out of reach."""
    same: bool
    """Whether a store was compared with itself."""
    queued: int
    waiting: int
    differences: Sequence[Difference]
    """Newest first."""


class Neighbours(Protocol):
    """The state of the stores and of the log between them."""

    log_trouble: str

    def view(self, store: Store) -> StoreView: ...


class Shadow:
    """Shadow reads of one router. The caller runs `loops`."""

    def __init__(
        self,
        contract: Contract,
        stores: Stores,
        steering: Steering,
        neighbours: Neighbours,
        clock: Clock,
        limits: ShadowLimits = ShadowLimits(),
        book: DifferenceBook | None = None,
    ) -> None:
        """`book`: keeps examples of differences. Raises UnfitContract."""
        self.book = book
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
        self.loops.append(Loop("shadow, second comparisons", self._tick))
        if book is not None:
            self.loops.append(book.loop)

    def __repr__(self) -> str:
        return f"<Shadow {self.counts} queued={self._queue.qsize()} waiting={len(self._waiting)}>"

    @property
    def counts(self) -> ShadowCounts:
        """The counts for the gates; empty while a store is compared with itself."""
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
        """Offer a read's answer while it is sent to the client. Returns at once."""
        permille = self._steering.current.shadow_permille
        if not permille or self._random() * ALWAYS >= permille:
            return
        if isinstance(outcome, Answer):
            if outcome.is_stale:
                # The owner is unreachable, so there is no second store to compare with.
                return
            seen = ShownRecord(None, outcome.data)
        else:
            try:
                seen = seen_in(outcome)
            except Unanswered:
                return
        same = self._steering.current.shadow_same
        stores = (outcome.store, outcome.store if same else outcome.store.other)
        self._put(OneRecord(call), stores, {call.key: seen}, {})

    def offer_page(
        self, page: tuple[Method, bytes], halves: tuple[HalfPage, HalfPage], looked_up: Mapping[str, Item]
    ) -> None:
        """Offer A's and B's rows of a strict list. `page`: its method and request. Equal rows cost little."""
        setting = self._steering.current
        permille = setting.shadow_permille
        if not permille or setting.shadow_same or self._random() * ALWAYS >= permille:
            return
        method, request = page
        answered: dict[str, ShownRecord] = {}
        shown: dict[str, ShownRecord] = {}
        for name, one, other in pairs_of(*halves, looked_up):
            answered[name], shown[name] = seen_of(one), seen_of(other)
            if len(answered) == MAX_NAMES:
                break
        if answered:
            self._put(SomeRows(method, request, tuple(answered)), (Store.A, Store.B), answered, shown)
        else:
            self._follow().count(method.operation, Kind.MATCH)

    def _follow(self) -> Tally:
        """Return the current tally; start a new one if the setting of shadow reads has changed."""
        since = self._steering.current.shadow_since
        if since != self._tally.run:
            self._tally = Tally(since, self._limits.kept)
            self._waiting.clear()
        return self._tally

    def _put(
        self,
        subject: Subject,
        stores: tuple[Store, Store],
        answered: Mapping[str, ShownRecord],
        shown: Mapping[str, ShownRecord],
    ) -> None:
        tally = self._follow()
        job = Job(subject, stores, tally.run, self._clock.monotonic(), answered, shown)
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
        """Make the first comparison."""
        subject, comparison = job.subject, self._comparisons[job.subject.method.name]
        try:
            theirs = job.shown or await self._look(subject, job.stores[1])
            answers = [comparison.kind_of_answers(seen, theirs[name]) for name, seen in job.answered.items()]
            if None not in answers:
                self._count(job, gravest(filter(None, answers)))
                return
            looked_at = self._clock.monotonic()
            sights = await self._sights(subject, job.stores, {})
        except Unanswered as error:
            self._count_error(job, error)
            return
        if gravest(sight.kind for sight in sights.values()) in AGREEING:
            # A change was under way when the client's answer was made.
            self._count(job, Kind.STALE)
            return
        due = {name: sight.newest for name, sight in sights.items()}
        # The answers themselves are no longer needed.
        self._wait(Suspect(replace(job, answered={}, shown={}), looked_at, due))

    async def _look(self, subject: Subject, store: Store) -> Mapping[str, ShownRecord]:
        return await subject.look(store, self._stores, self._limits.call_seconds)

    async def _sights(
        self, subject: Subject, stores: tuple[Store, Store], due: Mapping[str, Version]
    ) -> Mapping[str, RecordComparison]:
        """Read both stores now. Returns rows by name. Raises Unanswered."""
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
        """Go once over the waiting differences, in order."""
        await asyncio.sleep(min(_TICK_SECONDS, self._limits.settle_seconds))
        self._follow()
        waiting = self._waiting
        for _ in range(len(waiting)):
            if not waiting:
                # The setting has changed, so these differences no longer count.
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
        """Whether every change made until the last comparison is at both stores, judging by the lag."""
        one, other = suspect.job.stores
        now = self._clock.monotonic()
        known = now if one is other else min(map(self._followed_until, (one, other)))
        return known - suspect.looked_at > self._limits.settle_seconds

    def _followed_until(self, store: Store) -> float:
        """Return the monotonic time up to which the store has the other one's changes; minus infinity if unknown."""
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
            # The lag may have missed a change between outbox and log: compare once more.
            self._wait(replace(suspect, looked_at=looked_at, missed=True))
            return
        if kind in AGREEING:
            self._count(job, Kind.STALE)
            return
        self._count(job, kind)
        for name, sight in sights.items():
            if sight.kind is kind:
                found = self._keep(job, name, kind, sight.fields, sides_of(sight, job.stores, self._secret))
                if found is not None and self.book is not None:
                    self.book.offer(self._example(self.book.router, job, found, sight))

    def _example(self, router: str, job: Job, found: Difference, sight: RecordComparison) -> Example:
        method = job.subject.method
        answers, request = self._comparisons[method.name].kind, method.parse(job.subject.request)
        return example_of(found, job.run, router, request, answers, (sight.one, sight.other))

    def _count(self, job: Job, kind: Kind) -> None:
        tally = self._follow()
        if job.run == tally.run:
            tally.count(job.subject.method.operation, kind)

    def _count_error(self, job: Job, error: Unanswered) -> None:
        self._count(job, Kind.ERROR)
        one, other = job.stores
        answered = [hashed(seen, self._secret) for seen in job.answered.values()]
        sides = (Side(one, None, answered[0] if answered else ""), Side(other, None, ""))
        shown = tuple(side._replace(content=error.status) if side.store is error.store else side for side in sides)
        self._keep(job, job.subject.names[0], Kind.ERROR, (), (shown[0], shown[1]))

    def _keep(
        self, job: Job, name: str, kind: Kind, fields: tuple[str, ...], sides: tuple[Side, Side]
    ) -> Difference | None:
        """Return the difference, or None if the setting has changed meanwhile."""
        tally = self._follow()
        if job.run != tally.run:
            return None
        waited = self._clock.monotonic() - job.began
        operation = job.subject.method.operation
        found = Difference(self._clock.now(), operation, name, kind, fields, sides, waited)
        tally.keep(found)
        return found
