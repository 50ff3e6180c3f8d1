"""The feed: applies changes of the other store from the log, in batches with their positions.

Apply keeps the higher version, so order, repetition and delay of events are harmless; but no event may be skipped. So
positions move only in the transaction that applies the events, an unreadable event is parked with the reason, and if
the log no longer has the next event the feed stops and reports it.

The lag is measured on this process's monotonic clock, from the age of an event when it was read. A time ahead of this
process's clock counts as now, and is reported: one of the two clocks is wrong.

Half of the log's events are this store's own. They change nothing here, so their positions wait a moment for events
that do: a transaction for each few of them would cost as much as the writes that made them. After a crash they are read
again.

The feed waits until the store is admitted or fenced: events beyond its position are evidence for admission.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace

from libs.backend.admission import marks_of
from libs.backend.arrivals import Arrivals, fence_if_seized, why_unconfirmed
from libs.backend.evidence import read_terms
from libs.backend.feed_batch import Batch, note_term
from libs.clock import Clock
from libs.eventlog.cloudevents import HeadersInvalid, read_headers, traceparent_of
from libs.eventlog.headers import pack
from libs.eventlog.identity import LogReplaced, check_log
from libs.eventlog.port import Event, EventLog, EventLogError, LogReader, OffsetGone, Stored
from libs.ownership.model import BulkEntry, BulkRelease
from libs.ownership.wire import STORES, UnreadableRecord, maker_of_event
from libs.rpc.errors import cut
from libs.store.port import FeedStep, Parked, Position, StorePorts
from libs.tasks import Loop
from libs.telemetry.tracing import Span, Spans, ending

logger = logging.getLogger(__name__)

BATCH = 200
"""Maximum number of events in one transaction."""

SYSTEM_PREFIX = "baton."
"""Prefix of the types of events without a key: heartbeats, and messages between later releases."""

POLL_SECONDS = 0.5
HOLD_SECONDS = 0.1
"""Maximum time for which the positions of events without an effect wait for others."""
CLAIM_SECONDS = 2.0
WAITING_SECONDS = 10.0
"""Time for which an entry of a bulk release waits for its record."""
WAITING_ENTRIES = 1000
UNPARK_SECONDS = 30.0
UNPARK_EVENTS = 200
NOTHING_CLAIMED_SECONDS = 0.5
COMPARE_SECONDS = 5.0
_REASON_BYTES = 500
_BEFORE_ALL = (-1, -1)
"""A position before every event."""


class ApplyLoop:
    """Applies the log to one store. `open_log` returns the log, which the first call opens and its owner closes."""

    def __init__(
        self,
        ports: StorePorts,
        open_log: Callable[[], Awaitable[EventLog]],
        clock: Clock,
        arrivals: Arrivals,
        is_admitted: Callable[[], bool] = lambda: True,
        spans: Spans | None = None,
    ) -> None:
        """`is_admitted`: whether this process was admitted, or found its store fenced. `spans`: None if changes are not
        traced."""
        self._spans = spans
        self.loop = Loop("feed", self._run)
        self.last_event_age_seconds = 0.0
        """Age of the oldest event of the last batch when it was read; 0 if idle."""
        self._ports = ports
        self._open_log = open_log
        self._clock = clock
        self._is_admitted = is_admitted
        self.clock_ahead_seconds = 0.0
        """Seconds by which times in the last batch were ahead of this process's clock; 0 if they were not."""
        self.arrivals = arrivals
        self.replaced = ""
        """Why the log is not the one that this store has read so far, until the former log is back or `restart`; else
        ""."""
        self.adopted = ""
        """Log that this process adopted without a mark to compare. A router writes it to the journal."""
        self._topic = ""
        self._epoch: int | None = None
        """The reader's epoch at the last comparison of the log."""
        self._compare_at = 0.0
        self._newest_made: float | None = None
        """Time at which the newest event that was read was made, on the monotonic clock."""
        self._known_until: float | None = None
        self._held: Batch | None = None
        """Events without an effect that were read, and whose positions are not stored yet."""
        self._waiting: list[tuple[float, BulkRelease]] = []
        """Entries of bulk releases that could not be taken yet, one in each, with the time of the attempt."""
        self._unpark_at = clock.monotonic() + UNPARK_SECONDS
        self._unpark_after = _BEFORE_ALL

    def __repr__(self) -> str:
        return f"<ApplyLoop {self._ports.store} {self.loop!r}>"

    @property
    def trouble(self) -> str:
        """Why the feed does not advance, in words; "" if it does."""
        return self.loop.trouble

    def behind_seconds(self) -> float | None:
        """Approximate lag behind the other store in seconds; None before the first event of the other store."""
        if self._known_until is None:
            return None
        return self._clock.monotonic() - self._known_until

    async def _run(self, loop: Loop) -> None:
        """Read this process's partitions until they change."""
        log = await self._open_log()
        self._topic = log.name
        if not self._is_admitted():
            loop.well()
            await asyncio.sleep(NOTHING_CLAIMED_SECONDS)
            return
        await self.arrivals.auth.begin(log)
        feed = self._ports.feed
        claimed = tuple(await feed.claim(log.partitions))
        if not claimed:
            await self._compare_idle(log)
            loop.well()
            await asyncio.sleep(NOTHING_CLAIMED_SECONDS)
            return
        known = (await feed.state()).next_offsets
        positions = {partition: known.get(partition, 0) for partition in claimed}
        self._epoch = self._held = None
        async with log.reader(positions) as reader:
            claim_at = self._clock.monotonic() + CLAIM_SECONDS
            while True:
                await self.read_once(log, reader, positions)
                loop.well()
                await self._unpark_when_due()
                if self._clock.monotonic() >= claim_at:
                    if tuple(await feed.claim(log.partitions)) != claimed:
                        return
                    await self.arrivals.auth.begin(log)
                    claim_at = self._clock.monotonic() + CLAIM_SECONDS

    async def read_once(self, log: EventLog, reader: LogReader, positions: dict[int, int]) -> None:
        """Poll once and apply the events. `positions`: next offset of each partition in the store, updated after the
        commit.

        Raises UnknownPartition if another process has a partition now, and LogReplaced; then nothing was applied.
        """
        now, held = self._clock.monotonic(), self._held
        try:
            found = await reader.poll(BATCH, POLL_SECONDS if held is None else max(held.until - now, 0.0))
        except EventLogError as error:
            await self._store_held(positions)
            if isinstance(error, OffsetGone):
                await self._compare(log, positions)
            raise
        if reader.epoch != self._epoch:
            # Compare before applying events that may come from another log, with all that was read of this one.
            await self._store_held(positions)
            epoch = reader.epoch
            await self._compare(log, positions)
            self._epoch = epoch
        batch = self._held or Batch(log.id, self._clock.monotonic() + HOLD_SECONDS)
        self._held = None
        if found:
            await self._sort(batch, found, positions)
            self.clock_ahead_seconds = max(-batch.youngest_seconds, 0.0)
        if batch.has_effect or (batch.positions and (not found or self._clock.monotonic() >= batch.until)):
            await self._apply(batch, positions)
        elif batch.positions:
            self._held = batch
        if not found:
            self.last_event_age_seconds = 0.0
        elif batch.oldest_seconds is not None:
            self.last_event_age_seconds = batch.oldest_seconds
        if len(found) < BATCH:
            # A short poll has returned all existing events, so every event older than the newest was seen.
            self._known_until = self._newest_made

    async def _store_held(self, positions: dict[int, int]) -> None:
        held, self._held = self._held, None
        if held is not None:
            await self._apply(held, positions)

    async def _apply(self, batch: Batch, positions: dict[int, int]) -> None:
        await fence_if_seized(self._ports, batch.terms)
        await self._park_unconfirmed(batch)
        for bulk in batch.bulk:
            self._wait_for(bulk, (await self._ports.transfers.take(bulk)).missing)
        with ending(self._begin_spans(batch)):
            await self._ports.transfers.apply(batch.records, batch.step())
        await self._take_waiting()
        for position in batch.positions.values():
            positions[position.partition] = position.after

    async def restart(self) -> dict[int, int]:
        """Continue at the end of the current log, even if it is another one. Earlier events are never read: the caller
        copies the records between the stores. Returns the new offsets. Raises the errors of the log and the store."""
        log = await self._open_log()
        ends = {partition: end for partition, (_, end) in (await log.ends()).items()}
        await self._ports.feed.restart(ends)
        await self.arrivals.auth.learn()
        self.replaced = ""
        return ends

    async def _compare_idle(self, log: EventLog) -> None:
        """A process without partitions reports a replaced log, too."""
        if self._clock.monotonic() >= self._compare_at:
            await self._compare(log, ())
            self._compare_at = self._clock.monotonic() + COMPARE_SECONDS

    async def _compare(self, log: EventLog, mine: Collection[int]) -> None:
        """Raises LogReplaced. `mine`: partitions for which this process records missing marks."""
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

    async def _sort(self, batch: Batch, found: Sequence[Stored], positions: dict[int, int]) -> None:
        batch.youngest_seconds = 0.0
        for stored in found:
            partition = stored.partition
            before = batch.positions.get(partition)
            start = before.before if before is not None else positions[partition]
            batch.positions[partition] = Position(partition, start, stored.offset + 1)
            batch.last[partition] = stored
            released = len(batch.bulk)
            self._sort_event(batch, stored)
            if len(batch.bulk) > released:
                # To decode a thousand entries takes a millisecond, and a poll may return a hundred such events.
                await asyncio.sleep(0)

    def _sort_event(self, batch: Batch, stored: Stored) -> None:
        event = stored.event
        if why := self.arrivals.auth.why_refused(stored):
            batch.parked.append(self._parked(stored, why, unauthenticated=True))
            return
        if not event.key and self._is_system(batch, event):
            batch.skipped += 1
            self._note_terms(batch, event)
            return
        try:
            # Half of the log's events are this store's own. The event's value identifies them, since the relay wrote
            # the headers.
            if maker_of_event(event.value) == (event.key, self._ports.store):
                batch.skipped += 1
                return
            if (bulk := self.arrivals.read_bulk(event)) is not None:
                self._sort_bulk(batch, bulk)
                return
            record = self.arrivals.read(event)
        except UnreadableRecord as error:
            batch.parked.append(self._parked(stored, error.message))
            return
        batch.arrived.append((stored, record))
        age = self._saw(batch, record.made_seconds)
        batch.oldest_seconds = max(age, batch.oldest_seconds or 0.0)

    def _begin_spans(self, batch: Batch) -> list[Span | None]:
        """Spans of the records that are applied, as far as their writes were traced."""
        if self._spans is None:
            return []
        spans: list[Span | None] = []
        for stored, record in batch.arrived:
            if traceparent := traceparent_of(stored.event.headers):
                attributes: dict[str, str | int] = {
                    "messaging.destination.name": self._topic,
                    "messaging.destination.partition.id": str(stored.partition),
                    "messaging.kafka.offset": stored.offset,
                    "baton.record": record.row.key,
                }
                spans.append(self._spans.consumer(f"process {self._topic}", traceparent, attributes))
        return spans

    def _sort_bulk(self, batch: Batch, bulk: BulkRelease) -> None:
        if bulk.origin is self._ports.store:
            batch.skipped += 1
            return
        batch.bulk.append(bulk)
        age = self._saw(batch, bulk.made_seconds)
        batch.oldest_seconds = max(age, batch.oldest_seconds or 0.0)

    def _wait_for(self, bulk: BulkRelease, missing: Sequence[BulkEntry]) -> None:
        """Keep entries whose records have not arrived: the write before a release may be in another partition. The
        mover brings those that are not taken in time."""
        self._waiting += [(self._clock.monotonic(), replace(bulk, entries=(one,))) for one in missing]
        del self._waiting[:-WAITING_ENTRIES]

    async def _take_waiting(self) -> None:
        if not self._waiting:
            return
        since = self._clock.monotonic() - WAITING_SECONDS
        by_entry = {one.entries[0]: (at, one) for at, one in self._waiting if at > since}
        self._waiting.clear()
        if by_entry:
            some = next(iter(by_entry.values()))[1]
            taken = await self._ports.transfers.take(replace(some, entries=tuple(by_entry)))
            self._waiting += [by_entry[one] for one in taken.missing]

    async def _park_unconfirmed(self, batch: Batch) -> None:
        unconfirmed = {id(record) for record in await self.arrivals.unconfirmed(batch.records)}
        for stored, record in batch.arrived if unconfirmed else ():
            if id(record) in unconfirmed:
                batch.parked.append(self._parked(stored, why_unconfirmed(record)))
        batch.arrived = [one for one in batch.arrived if id(one[1]) not in unconfirmed]

    def _parked(self, stored: Stored, reason: str, *, unauthenticated: bool = False) -> Parked:
        event = stored.event
        # Replace NUL in the key, which is only shown: not every database stores it.
        key, reason = event.key.replace("\0", "\ufffd"), cut(reason, _REASON_BYTES)
        headers = pack(event.headers)
        return Parked(stored.partition, stored.offset, key, reason, event.value, headers, self._topic, unauthenticated)

    def _is_system(self, batch: Batch, event: Event) -> bool:
        """Whether the event is not of a record. A heartbeat of the other store shows how far its events were read."""
        try:
            attributes = read_headers(event.headers)
        except HeadersInvalid:
            return False
        if not attributes.type.startswith(SYSTEM_PREFIX):
            return False
        if attributes.store == self._ports.store.other:
            self._saw(batch, attributes.time)
        return True

    def _note_terms(self, batch: Batch, event: Event) -> None:
        terms = read_terms(event)
        if terms is not None and STORES.get(terms.store) is self._ports.store.other:
            for one in terms.buckets:
                note_term(batch, one.bucket, one.term)

    def _saw(self, batch: Batch, made_seconds: float) -> float:
        """Record the event's time, and return its age, at least 0."""
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
