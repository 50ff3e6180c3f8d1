"""A store in the memory of one process: for tests and for trying things out. Nothing survives the process, so here
"durable" means: as long as the process lives. Everything else that the ports promise holds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from libs.clock import Clock
from libs.contract.pages import Page
from libs.errors import StoreNotReady
from libs.ownership.errors import NotOwner, OutboxFull
from libs.ownership.limits import RELEASE_ANSWER_BYTES, RETRY_WINDOW_SECONDS
from libs.ownership.model import (
    BUCKETS,
    Absence,
    Answered,
    Call,
    Changed,
    Decide,
    Found,
    Record,
    Row,
    Served,
    Store,
    Version,
    bucket_of,
    visible,
)
from libs.ownership.rules import Outcome, Release, decide_release, may_change
from libs.ownership.terms import Fate, adopted_absence, contains, decide_apply, declined_absence
from libs.ownership.wire import event_of
from libs.store.aside import Aside, AsideEntry
from libs.store.columns import ColumnsOf, matches
from libs.store.limits import LIST_ROWS, PULL_BYTES, Held, OutboxLimits
from libs.store.memory_aside import MemoryAside
from libs.store.memory_inspection import MemoryInspection
from libs.store.memory_recovery import Memories, MemoryRecovery, MemorySeizures
from libs.store.memory_upkeep import MemoryUpkeep
from libs.store.memory_watch import Changes, MemoryWatch
from libs.store.port import (
    Applied,
    ChangeEntry,
    Depth,
    Feed,
    FeedState,
    FeedStep,
    Inspection,
    Listed,
    Outbox,
    Parked,
    Records,
    Released,
    ReleaseResult,
    Transfers,
    UnknownPartition,
    Upkeep,
    Watch,
)
from libs.store.recovery import Recovery, Seizures, Why
from libs.store.window import made_by, newest, size_of, up_to_other


@dataclass
class _State:
    store: Store
    clock: Clock
    limits: OutboxLimits
    columns: ColumnsOf
    rows: dict[str, Row] = field(default_factory=dict)
    counted: Counter[int] = field(default_factory=Counter)
    """Rows by bucket, as they came and went: fewer `rows` mean that some are lost."""
    absences: list[Absence] = field(default_factory=list)
    served: dict[tuple[str, str, str], tuple[Served, float]] = field(default_factory=dict)
    """By key, principal and request id, oldest first: the request, and the ticks when it was learned."""
    outbox: dict[tuple[str, Version], tuple[ChangeEntry, float]] = field(default_factory=dict)
    aside: dict[tuple[str, Version], tuple[AsideEntry, float]] = field(default_factory=dict)
    feed: FeedState = field(default_factory=FeedState)
    parked: dict[tuple[int, int], Parked] = field(default_factory=dict)
    leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By key: the mark of the lease that the row shows, and the ticks when it was learned."""
    seconds: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    changes: Changes = field(default_factory=Changes)
    memories: Memories = field(default_factory=Memories)

    def find(self, key: str, call: Call | None = None) -> Found:
        served = self.served.get((key, call.principal, call.request_id)) if call else None
        row = self.shown(key)
        if row is not None and key in self.leases:
            row = replace(row, lease_seconds=self.seconds - self.leases[key][1])
        return Found(key, row, self.absences[bucket_of(key)], served[0] if served else None)

    def shown(self, key: str) -> Row | None:
        """The row, unless it is hidden."""
        return visible(self.rows.get(key), self.absences[bucket_of(key)])

    def visible_rows(self) -> dict[str, Row]:
        return {key: row for key, row in self.rows.items() if self.shown(key) is not None}

    def window(self, row: Row) -> tuple[Served, ...]:
        """Requests of the retry window whose effects are in the row."""
        since = self.seconds - RETRY_WINDOW_SECONDS
        known = (served for (key, _, _), (served, at) in self.served.items() if key == row.key and at >= since)
        return newest(served for served in known if contains(row, served.version))

    def record(self, row: Row, served: tuple[Served, ...]) -> Record:
        return Record(row, served, made_by(row), self.clock.now())

    def serve(self, key: str, served: Served) -> None:
        """An entry for the same request, whose effect is not in the row, is replaced."""
        name = key, served.principal, served.request_id
        self.served.pop(name, None)
        self.served[name] = served, self.seconds

    def learn(self, key: str, served: Served) -> None:
        """The entry with the higher version stays."""
        known = self.served.get((key, served.principal, served.request_id))
        if known is None or known[0].version < served.version:
            self.serve(key, served)

    def depth(self) -> Depth:
        oldest = next(iter(self.outbox.values()), None)
        size = sum(len(entry.event) for entry, _ in self.outbox.values())
        return Depth(len(self.outbox), size, self.seconds - oldest[1] if oldest else 0.0)

    def fence(self, key: str) -> None:
        """Raises NotOwner, StoreNotReady unless this store accepts a write to the record, whatever was decided."""
        found = self.find(key)
        if not may_change(found, self.store):
            raise NotOwner.of(found)
        if self.memories.gone:
            raise StoreNotReady(self.memories.gone)

    def held(self) -> Held:
        size = sum(size_of(self.record(row, self.window(row))) for row in self.rows.values())
        return Held(len(self.rows), size)

    def put(self, record: Record, traceparent: str, *, reserve: bool = False) -> None:
        """The row and its event. Raises OutboxFull with nothing changed."""
        event = event_of(record)
        depth = self.depth()
        if reserve:
            fits = self.limits.fits_release(depth, 1, len(event), self.held())
        else:
            fits = self.limits.fits(depth, len(event))
        if not fits:
            raise OutboxFull
        row = record.row
        self.keep(row)
        self.outbox[row.key, row.version] = ChangeEntry(row.key, row.version, event, traceparent), self.seconds
        self.memories.changes += 1
        self.changed.set()

    def keep(self, row: Row) -> None:
        self.changes.note(self.rows.get(row.key), row)
        self.counted[bucket_of(row.key)] += row.key not in self.rows
        self.rows[row.key] = row
        mark = self.columns(row).lease
        if not mark:
            self.leases.pop(row.key, None)
        elif mark != self.leases.get(row.key, ("", 0.0))[0]:
            self.leases[row.key] = mark, self.seconds

    def take(self, record: Record) -> Fate:
        """Apply."""
        key = record.row.key
        bucket = bucket_of(key)
        verdict = decide_apply(record, self.rows.get(key), self.absences[bucket], self.store)
        self.absences[bucket] = verdict.absence
        if verdict.journal is not None:
            self.journal(verdict.journal, Why.REPLACED)
        if verdict.fate is Fate.CONFLICT:
            self.memories.note(record, Why.LATE)
        for served in record.served if verdict.learn else ():
            self.learn(key, served)
        if verdict.fate is Fate.NEWER:
            self.keep(record.row)
        return verdict.fate

    def journal(self, row: Row, why: Why) -> None:
        """A row that is about to go. The requests that it has served are not done any more, as far as anybody sees."""
        self.memories.note(self.record(row, self.window(row)), why)
        self.served = {name: served for name, served in self.served.items() if name[0] != row.key}


@dataclass(frozen=True)
class _Records:
    state: _State

    async def read(self, key: str) -> Found:
        return self.state.find(key)

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        return [self.state.find(key) for key in keys]

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        state = self.state
        async with state.turn:
            decided = decide(state.find(call.key, call))
            if isinstance(decided, Changed):
                state.fence(call.key)
                state.put(state.record(decided.row, (decided.served,)), call.traceparent)
                state.serve(call.key, decided.served)
            return decided

    async def page(self, page: Page) -> list[Listed]:
        rows = self.state.visible_rows()
        keys = [key for key in sorted(page.keys or rows) if key in rows and (page.keys or key > page.after)]
        listed = (Listed(rows[key], matches(rows[key], self.state.columns(rows[key]), page.filter)) for key in keys)
        if page.keys:
            return [one for one in listed if one.row.write_version.revision]
        found = [one for one in islice(listed, LIST_ROWS) if one.matches]
        return found[: page.limit] if len(found) >= page.limit else up_to_other(found, listed, page.limit)


@dataclass(frozen=True)
class _Transfers:
    state: _State

    async def release(self, keys: Sequence[str], to: Store, *, create: bool) -> Released:
        results: list[ReleaseResult] = []
        size = 0
        async with self.state.turn:
            for position, key in enumerate(keys):
                if size >= RELEASE_ANSWER_BYTES:
                    return Released(tuple(results), tuple(keys[position:]))
                result = self._release(key, to, create=create)
                size += size_of(result.record) if result.record else 0
                results.append(result)
        return Released(tuple(results))

    def _release(self, key: str, to: Store, *, create: bool) -> ReleaseResult:
        state = self.state
        found = state.find(key)
        release: Release = decide_release(found, state.store, to, create=create)
        if release.row is None:
            return ReleaseResult(key, release.outcome, None, found.absence)
        record = state.record(release.row, state.window(found.row or release.row))
        if release.outcome is Outcome.RELEASE:
            state.fence(key)
            try:
                state.put(record, "", reserve=True)
            except OutboxFull:
                return ReleaseResult(key, None, None, found.absence)
        return ReleaseResult(key, release.outcome, record, found.absence)

    async def apply(self, records: Sequence[Record], step: FeedStep | None = None) -> Applied:
        state = self.state
        async with state.turn:
            if step is not None:
                self._check(step)
            fates = [state.take(record) for record in records]
            counts = Applied(fates.count(Fate.NEWER), fates.count(Fate.OLD))
            if step is not None:
                self._move(step, counts, fates.count(Fate.CONFLICT))
            return counts

    def _check(self, step: FeedStep) -> None:
        offsets = self.state.feed.next_offsets
        for position in step.positions:
            if offsets.get(position.partition, 0) != position.before:
                raise UnknownPartition

    def _move(self, step: FeedStep, counts: Applied, journaled: int) -> None:
        feed = self.state.feed
        moved = {position.partition: position.after for position in step.positions}
        marks = {position.partition: position.mark for position in step.positions}
        self.state.parked.update({(parked.partition, parked.offset): parked for parked in step.parked})
        self.state.feed = replace(
            feed,
            next_offsets={**feed.next_offsets, **moved},
            marks={**feed.marks, **marks},
            applied=feed.applied + counts.applied,
            old=feed.old + counts.old + step.skipped,
            parked=feed.parked + len(step.parked),
            journaled=feed.journaled + journaled,
        )

    async def absences(self, buckets: Sequence[int] = ()) -> list[Absence]:
        return [self.state.absences[bucket] for bucket in (sorted(set(buckets)) or range(BUCKETS))]

    async def release_absence(self, bucket: int, to: Store) -> Absence:
        state = self.state
        if to is state.store:
            raise ValueError(f"store {to} cannot release an absence to itself")
        async with state.turn:
            here = state.absences[bucket]
            if here.owner is state.store and not state.memories.disputed(bucket):
                state.memories.changes += 1
                state.absences[bucket] = replace(here, version=here.version + 1, owner=to)
            return state.absences[bucket]

    async def adopt_absence(self, absence: Absence, *, despite_conflicts: bool = False) -> tuple[bool, Absence]:
        state = self.state
        async with state.turn:
            here = state.absences[absence.bucket]
            if not adopted_absence(absence, here, state.store):
                return False, here
            hidden = any(bucket_of(key) == here.bucket and state.shown(key) is None for key in state.rows)
            if hidden or (state.memories.disputed(here.bucket) and not despite_conflicts):
                return False, here
            state.memories.changes += 1
            state.absences[absence.bucket] = absence
            return True, absence

    async def return_absence(self, absence: Absence) -> Absence | None:
        state = self.state
        async with state.turn:
            declined = declined_absence(absence, state.absences[absence.bucket], state.store)
            if declined is not None:
                state.memories.changes += 1
                state.absences[absence.bucket] = declined
            return declined


@dataclass(frozen=True)
class _Outbox:
    state: _State

    async def pull(self, limit: int, wait_seconds: float) -> list[ChangeEntry]:
        state = self.state
        try:
            async with asyncio.timeout(wait_seconds):
                while not state.outbox:
                    state.changed.clear()
                    await state.changed.wait()
        except TimeoutError:
            return []
        entries: list[ChangeEntry] = []
        size = 0
        for entry, _ in state.outbox.values():
            size += len(entry.event)
            if entries and (len(entries) >= limit or size > PULL_BYTES):
                break
            entries.append(entry)
        return entries

    async def ack(self, changes: Sequence[tuple[str, Version]]) -> int:
        async with self.state.turn:
            return sum(self.state.outbox.pop(change, None) is not None for change in changes)

    async def unlogged(self, changes: Sequence[tuple[str, Version]]) -> set[tuple[str, Version]]:
        return {change for change in changes if change in self.state.outbox or change in self.state.aside}

    async def depth(self) -> Depth:
        return self.state.depth()


@dataclass(frozen=True)
class _Feed:
    memory: _State

    async def state(self) -> FeedState:
        return replace(self.memory.feed, parked_now=len(self.memory.parked))

    async def parked(self, limit: int, place: tuple[int, int] | None = None) -> list[Parked]:
        parked = self.memory.parked
        return [parked[at] for at in (parked if place is None else (place,)) if at in parked][:limit]

    async def parked_after(self, place: tuple[int, int], limit: int) -> list[Parked]:
        return [self.memory.parked[at] for at in sorted(self.memory.parked) if at > place][:limit]

    async def unpark(self, partition: int, offset: int, record: Record) -> Applied:
        async with self.memory.turn:
            if self.memory.parked.pop((partition, offset), None) is None:
                return Applied(0, 0)
            fate = self.memory.take(record)
            return Applied(int(fate is Fate.NEWER), int(fate is Fate.OLD))

    async def drop(self, partition: int, offset: int) -> bool:
        async with self.memory.turn:
            return self.memory.parked.pop((partition, offset), None) is not None

    async def restart(self, next_offsets: Mapping[int, int]) -> None:
        async with self.memory.turn:
            self.memory.feed = replace(self.memory.feed, next_offsets=dict(next_offsets), marks={})

    async def claim(self, partitions: int) -> Sequence[int]:
        return range(partitions)


class MemoryStore:
    """An open store, as `StorePorts`. Its buckets begin as those of a store of its kind: (0, 1, A) or (0, 0, A)."""

    backend = "memory"

    def __init__(self, store: Store, clock: Clock, columns: ColumnsOf, limits: OutboxLimits | None = None) -> None:
        version = 1 if store is Store.A else 0
        absences = [Absence(bucket, 0, version, Store.A) for bucket in range(BUCKETS)]
        state = _State(store, clock, limits or OutboxLimits(), columns, absences=absences)
        self.store = store
        self._state = state
        self.records: Records = _Records(state)
        self.transfers: Transfers = _Transfers(state)
        self.outbox: Outbox = _Outbox(state)
        self.aside: Aside = MemoryAside(state)
        self.feed: Feed = _Feed(state)
        self.inspection: Inspection = MemoryInspection(state)
        self.watch: Watch = MemoryWatch(state.changes)
        self.upkeep: Upkeep = MemoryUpkeep(state)
        self.recovery: Recovery = MemoryRecovery(state)
        self.seizures: Seizures = MemorySeizures(state)
        self.connections_in_use = 0

    def __repr__(self) -> str:
        return f"<MemoryStore {self.store} records={len(self._state.rows)}>"
