"""Takes what the log brings: changes made at the other store, applied in batches with the position they were read at.

Apply keeps the higher version, so order, repetition and lateness of events are harmless here; all that matters is that
none is passed over. So positions move only in the transaction that applies, an event that cannot be read is parked with
its reason, and when the log no longer has what comes next the feed stands still and says so.

How far the store is behind is counted on the monotonic clock of this process, from the age that an event had when it
was read. A time that is ahead of this process's clock counts as now, and is shown: one of the two clocks is wrong.

The feed stands still until the store is admitted or fenced: events beyond its position are evidence for admission.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from libs.backend.arrivals import Arrivals, heed_terms, why_unconfirmed
from libs.backend.evidence import read_terms
from libs.backend.marks import marks_of
from libs.clock import Clock
from libs.eventlog.cloudevents import HeadersInvalid, read_headers
from libs.eventlog.headers import pack
from libs.eventlog.identity import LogReplaced, check_log, mark_of
from libs.eventlog.port import Event, EventLog, LogReader, OffsetGone, Stored
from libs.ownership.model import Record
from libs.ownership.wire import STORES, UnreadableRecord, maker_of_event
from libs.rpc.errors import cut
from libs.store.port import FeedStep, Parked, Position, StorePorts
from libs.tasks import Loop

logger = logging.getLogger(__name__)

BATCH = 200
"""Events applied in one transaction."""

SYSTEM_PREFIX = "baton."
"""Of the type of events without a key: heartbeats, and what later versions may say to each other."""

POLL_SECONDS = 0.5
CLAIM_SECONDS = 2.0
UNPARK_SECONDS = 30.0
UNPARK_EVENTS = 200
NOTHING_CLAIMED_SECONDS = 0.5
COMPARE_SECONDS = 5.0
_REASON_BYTES = 500
_BEFORE_ALL = (-1, -1)
"""Before the place of each event."""


@dataclass(slots=True)
class _Batch:
    """Events of one poll, sorted by what becomes of them."""

    arrived: list[tuple[Stored, Record]] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    skipped: int = 0
    terms: dict[int, int] = field(default_factory=dict)
    """By bucket: the highest term of which a terms event of the batch tells."""
    positions: dict[int, Position] = field(default_factory=dict)
    last: dict[int, Stored] = field(default_factory=dict)
    """By partition."""
    oldest_seconds: float | None = None
    """Age of the oldest record."""
    youngest_seconds: float = 0.0
    """Age of the youngest event, if it is below 0: its time is ahead of this process's clock."""

    @property
    def records(self) -> list[Record]:
        return [record for _, record in self.arrived]

    def step(self) -> FeedStep:
        return FeedStep(tuple(self.positions.values()), tuple(self.parked), self.skipped)


class ApplyLoop:
    """One store's apply. `open_log` gives the log, opened by the first call and kept by its owner."""

    def __init__(
        self,
        ports: StorePorts,
        open_log: Callable[[], Awaitable[EventLog]],
        clock: Clock,
        arrivals: Arrivals,
        is_admitted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_admitted`: whether this process has been admitted, or has found its store fenced."""
        self.loop = Loop("feed", self._run)
        self.last_event_age_seconds = 0.0
        """Age of the oldest event of the last batch, when it was read; 0 when idle."""
        self._ports = ports
        self._open_log = open_log
        self._clock = clock
        self._is_admitted = is_admitted
        self.clock_ahead_seconds = 0.0
        """How far the times in the last batch were ahead of this process's clock; 0 if they were not."""
        self.arrivals = arrivals
        self.replaced = ""
        """Why the log is another one than this store has read so far, until it is the former one again or `restart`."""
        self.adopted = ""
        """Which log this process has taken for the one that was read, without a mark to compare; a router writes it to
        the journal."""
        self._topic = ""
        self._epoch: int | None = None
        """The reader's, when the log was compared last."""
        self._compare_at = 0.0
        self._newest_made: float | None = None
        """By the monotonic clock."""
        self._known_until: float | None = None
        self._unpark_at = clock.monotonic() + UNPARK_SECONDS
        self._unpark_after = _BEFORE_ALL

    def __repr__(self) -> str:
        return f"<ApplyLoop {self._ports.store} {self.loop!r}>"

    @property
    def trouble(self) -> str:
        """Why the feed stands still, in words; "" when it runs."""
        return self.loop.trouble

    def behind_seconds(self) -> float | None:
        """About how far this store is behind the other one; None when nothing of the other one has been seen."""
        if self._known_until is None:
            return None
        return self._clock.monotonic() - self._known_until

    async def _run(self, loop: Loop) -> None:
        """Read the partitions that are this process's until they change."""
        log = await self._open_log()
        self._topic = log.name
        if not self._is_admitted():
            loop.well()
            await asyncio.sleep(NOTHING_CLAIMED_SECONDS)
            return
        feed = self._ports.feed
        claimed = tuple(await feed.claim(log.partitions))
        if not claimed:
            await self._compare_idle(log)
            loop.well()
            await asyncio.sleep(NOTHING_CLAIMED_SECONDS)
            return
        known = (await feed.state()).next_offsets
        positions = {partition: known.get(partition, 0) for partition in claimed}
        self._epoch = None
        async with log.reader(positions) as reader:
            claim_at = self._clock.monotonic() + CLAIM_SECONDS
            while True:
                await self.read_once(log, reader, positions)
                loop.well()
                await self._unpark_when_due()
                if self._clock.monotonic() >= claim_at:
                    if tuple(await feed.claim(log.partitions)) != claimed:
                        return
                    claim_at = self._clock.monotonic() + CLAIM_SECONDS

    async def read_once(self, log: EventLog, reader: LogReader, positions: dict[int, int]) -> None:
        """One poll and what it brought. `positions`: where each partition is read next; moved when it is committed.

        Raises UnknownPartition when another process has a partition now, LogReplaced: then nothing was applied.
        """
        try:
            found = await reader.poll(BATCH, POLL_SECONDS)
        except OffsetGone:
            await self._compare(log, positions)
            raise
        if reader.epoch != self._epoch:
            # Before anything is applied that another log may have brought.
            epoch = reader.epoch
            await self._compare(log, positions)
            self._epoch = epoch
        if found:
            batch = self._sort(log.id, found, positions)
            self.clock_ahead_seconds = max(-batch.youngest_seconds, 0.0)
            await heed_terms(self._ports, batch.terms)
            await self._park_unconfirmed(batch)
            await self._ports.transfers.apply(batch.records, batch.step())
            for position in batch.positions.values():
                positions[position.partition] = position.after
            if batch.oldest_seconds is not None:
                self.last_event_age_seconds = batch.oldest_seconds
        else:
            self.last_event_age_seconds = 0.0
        if len(found) < BATCH:
            # A short poll has taken what was there: all that is older than the newest event has been seen.
            self._known_until = self._newest_made

    async def restart(self) -> dict[int, int]:
        """Go on at the end of the log as it is now, whichever it is. What is before that end is never read: the caller
        copies the records between the stores. Returns the new offsets. Raises what the log and the store raise."""
        log = await self._open_log()
        ends = {partition: end for partition, (_, end) in (await log.ends()).items()}
        await self._ports.feed.restart(ends)
        self.replaced = ""
        return ends

    async def _compare_idle(self, log: EventLog) -> None:
        """A process that has no partition reports a log that was replaced all the same."""
        if self._clock.monotonic() >= self._compare_at:
            await self._compare(log, ())
            self._compare_at = self._clock.monotonic() + COMPARE_SECONDS

    async def _compare(self, log: EventLog, mine: Collection[int]) -> None:
        """Raises LogReplaced. `mine`: partitions of which this process notes the mark if it was not known."""
        state = await self._ports.feed.state()
        marks = marks_of(state)
        try:
            adopted = await check_log(log, marks)
        except LogReplaced as error:
            if not self.replaced:
                logger.error("the feed stops: %s", error.message)
            self.replaced = error.message
            raise
        self.replaced = ""
        own = {part: text for part, text in adopted.items() if part in mine}
        if own:
            logger.warning("the log's identity was not known in partitions %s: it is taken as it is", sorted(own))
            first = min(own)
            self.adopted = (
                f"{len(own)} partitions of the log, the first is {first}, read up to {marks[first].next}: {own[first]}"
            )
            steps = [Position(part, marks[part].next, marks[part].next, text) for part, text in own.items()]
            await self._ports.transfers.apply([], FeedStep(tuple(steps)))

    def _sort(self, log_id: str, found: Sequence[Stored], positions: dict[int, int]) -> _Batch:
        batch = _Batch()
        for stored in found:
            partition = stored.partition
            before = batch.positions.get(partition)
            start = before.before if before is not None else positions[partition]
            batch.positions[partition] = Position(partition, start, stored.offset + 1)
            batch.last[partition] = stored
            self._sort_event(batch, stored)
        for partition, stored in batch.last.items():
            batch.positions[partition] = batch.positions[partition]._replace(mark=mark_of(log_id, stored))
        return batch

    def _sort_event(self, batch: _Batch, stored: Stored) -> None:
        event = stored.event
        if not event.key and self._is_system(batch, event):
            batch.skipped += 1
            self._note_terms(batch, event)
            return
        try:
            # Half of the log is this store's own. The event itself says so, not its headers: those are the relay's.
            if maker_of_event(event.value) == (event.key, self._ports.store):
                batch.skipped += 1
                return
            record = self.arrivals.read(event)
        except UnreadableRecord as error:
            batch.parked.append(self._parked(stored, error.message))
            return
        batch.arrived.append((stored, record))
        age = self._saw(batch, record.made_seconds)
        batch.oldest_seconds = max(age, batch.oldest_seconds or 0.0)

    async def _park_unconfirmed(self, batch: _Batch) -> None:
        unconfirmed = {id(record) for record in await self.arrivals.unconfirmed(batch.records)}
        for stored, record in batch.arrived if unconfirmed else ():
            if id(record) in unconfirmed:
                batch.parked.append(self._parked(stored, why_unconfirmed(record)))
        batch.arrived = [one for one in batch.arrived if id(one[1]) not in unconfirmed]

    def _parked(self, stored: Stored, reason: str) -> Parked:
        event = stored.event
        # A key with a zero is only shown: not every database keeps one.
        key, reason = event.key.replace("\0", "\ufffd"), cut(reason, _REASON_BYTES)
        return Parked(stored.partition, stored.offset, key, reason, event.value, pack(event.headers), self._topic)

    def _is_system(self, batch: _Batch, event: Event) -> bool:
        """Whether it is no record's event. A heartbeat of the other store tells how far it has been heard."""
        try:
            attributes = read_headers(event.headers)
        except HeadersInvalid:
            return False
        if not attributes.type.startswith(SYSTEM_PREFIX):
            return False
        if attributes.store == self._ports.store.other:
            self._saw(batch, attributes.time)
        return True

    def _note_terms(self, batch: _Batch, event: Event) -> None:
        terms = read_terms(event)
        if terms is not None and STORES.get(terms.store) is self._ports.store.other:
            for one in terms.buckets:
                _note_term(batch, one.bucket, one.term)

    def _saw(self, batch: _Batch, made_seconds: float) -> float:
        """Returns the event's age, at least 0."""
        age = self._clock.now() - made_seconds
        batch.youngest_seconds = min(age, batch.youngest_seconds)
        age = max(age, 0.0)
        made = self._clock.monotonic() - age
        if self._newest_made is None or made > self._newest_made:
            self._newest_made = made
        return age

    async def _unpark_when_due(self) -> None:
        if self._clock.monotonic() < self._unpark_at:
            return
        self._unpark_at = self._clock.monotonic() + UNPARK_SECONDS
        # In rounds, so that events that can never be applied do not keep the others from being tried.
        found = await self._ports.feed.parked_after(self._unpark_after, UNPARK_EVENTS)
        for parked in found:
            self._unpark_after = parked.partition, parked.offset
            await self.arrivals.retry(parked)
        if len(found) < UNPARK_EVENTS:
            self._unpark_after = _BEFORE_ALL


def _note_term(batch: _Batch, bucket: int, term: int) -> None:
    batch.terms[bucket] = max(term, batch.terms.get(bucket, 0))
