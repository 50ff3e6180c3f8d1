"""Recognising the loss of a store and making it good, for a store in memory. It has no backups, so it goes nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import uuid4

from libs.ownership.model import BUCKETS, Absence, Record, Version, bucket_of
from libs.ownership.orders import Order, check_order
from libs.ownership.terms import seized_absence, seized_row
from libs.ownership.wire import event_of
from libs.store.recovery import Conflict, FencedAt, Identity, Standing, StillHidden, Why

if TYPE_CHECKING:
    from libs.store.memory import _State


@dataclass
class Memories:
    """What a store knows beside its records."""

    place: str = field(default_factory=lambda: uuid4().hex)
    changes: int = 0
    gone: str = ""
    order: Order | None = None
    fenced_at: FencedAt | None = None
    other: Identity | None = None
    journal: dict[tuple[str, Version], Conflict] = field(default_factory=dict)

    def take(self, order: Order | None) -> None:
        """None: no order of a recovery. Raises LateOrder, ForeignControl."""
        if order is not None:
            check_order(self.order, order)
            self.order = order

    def note(self, record: Record, why: Why) -> None:
        row = record.row
        self.journal.setdefault((row.key, row.version), Conflict(row.key, row.version, why, event_of(record)))

    def disputed(self, bucket: int) -> bool:
        return any(not one.resolution and bucket_of(one.key) == bucket for one in self.journal.values())


@dataclass(frozen=True)
class MemoryRecovery:
    state: _State

    async def standing(self) -> Standing:
        known = self.state.memories
        open_ones = sum(not one.resolution for one in known.journal.values())
        now = Identity(known.place, known.changes)
        return Standing(now, known.place, known.gone, known.other, open_ones, known.order, known.fenced_at)

    async def fence(self, reason: str, *, order: Order | None = None, since: Mapping[int, int] | None = None) -> None:
        known = self.state.memories
        known.take(order)
        if since is None:
            known.fenced_at = None
        elif not known.gone:
            known.fenced_at = FencedAt(known.changes, dict(since))
        known.gone = known.gone or reason

    async def take_order(self, order: Order) -> None:
        self.state.memories.take(order)

    async def vouch(self, changes: int) -> None:
        known = self.state.memories
        if known.fenced_at is not None:
            known.fenced_at = replace(known.fenced_at, changes=max(changes, known.fenced_at.changes))

    async def reopen(self, *, order: Order | None = None, seen: Standing | None = None) -> None:
        state = self.state
        async with state.turn:
            if seen is not None:
                seen.check_fence(state.memories.gone, by_admission=state.memories.fenced_at is not None)
            state.memories.take(order)
            if len(state.visible_rows()) != len(state.rows):
                raise StillHidden
            if state.memories.gone:
                state.changes.of = uuid4().hex
            state.memories.gone, state.memories.fenced_at = "", None
            state.counted = Counter(map(bucket_of, state.rows))

    async def note_other(self, other: Identity, *, anew: bool = False) -> None:
        known = self.state.memories
        if anew or known.other is None or (known.other.place == other.place and known.other.changes < other.changes):
            known.other = other

    async def skip_to(self, next_offsets: Mapping[int, int]) -> None:
        feed = self.state.feed
        known = feed.next_offsets
        further = {part: max(offset, known.get(part, 0)) for part, offset in next_offsets.items()}
        marks = {part: "" if further.get(part, 0) > known.get(part, 0) else mark for part, mark in feed.marks.items()}
        self.state.feed = replace(feed, next_offsets={**known, **further}, marks=marks)


@dataclass(frozen=True)
class MemorySeizures:
    state: _State

    async def seize(self, bucket: int, term: int) -> Absence:
        state = self.state
        async with state.turn:
            here = state.absences[bucket]
            if here.term == term:
                return here
            after = seized_absence(here, state.store, term)
            before = dict(state.rows), dict(state.outbox)
            try:
                for key in sorted(key for key in state.visible_rows() if bucket_of(key) == bucket):
                    row = seized_row(state.rows[key], state.store, term)
                    state.put(state.record(row, state.window(row)), "", reserve=True)
            except BaseException:
                state.rows, state.outbox = before
                raise
            state.absences[bucket] = after
            return after

    async def take_terms(self, absences: Sequence[Absence]) -> None:
        here = self.state.absences
        async with self.state.turn:
            for one in absences:
                if (one.term, one.version) > (here[one.bucket].term, here[one.bucket].version):
                    here[one.bucket] = one

    async def settle(self, limit: int) -> int:
        state = self.state
        async with state.turn:
            hidden = [key for key in sorted(state.rows) if state.shown(key) is None][:limit]
            for key in hidden:
                state.journal(state.rows.pop(key), Why.LEFT)
                state.counted[bucket_of(key)] -= 1
            return len(hidden)

    async def conflicts(self, limit: int) -> list[Conflict]:
        return sorted(self.state.memories.journal.values(), key=lambda one: bool(one.resolution))[:limit]

    async def disputed(self, buckets: Sequence[int] = ()) -> set[int]:
        memories = self.state.memories
        return {bucket for bucket in buckets or range(BUCKETS) if memories.disputed(bucket)}

    async def resolve(self, key: str, version: Version, resolution: str) -> bool:
        journal = self.state.memories.journal
        found = journal.get((key, version))
        if found is None or found.resolution or not resolution:
            return False
        journal[key, version] = replace(found, resolution=resolution)
        return True
