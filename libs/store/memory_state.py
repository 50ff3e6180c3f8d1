"""The whole state of a store in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from libs.clock import Clock
from libs.ownership.limits import RETRY_WINDOW_SECONDS
from libs.ownership.model import BucketOwner, Call, Found, Record, Row, Served, Store, Version, bucket_of, visible
from libs.ownership.orders import Order
from libs.store.aside import AsideEntry
from libs.store.columns import ColumnsOf
from libs.store.limits import Held, OutboxLimits
from libs.store.memory_watch import Changes
from libs.store.outbox import ChangeEntry, Depth
from libs.store.port import FeedState, Parked
from libs.store.recovery import Conflict, FencedAt, Identity
from libs.store.window import effects_of, made_by, size_of, windows_of


@dataclass
class Metadata:
    """State of a store that belongs to no single record."""

    database: str = field(default_factory=lambda: uuid4().hex)
    changes: int = 0
    fence_reason: str = ""
    order: Order | None = None
    fenced_at: FencedAt | None = None
    other: Identity | None = None
    journal: dict[tuple[str, Version], Conflict] = field(default_factory=dict)

    def disputed(self, bucket: int) -> bool:
        return any(not one.resolution and bucket_of(one.key) == bucket for one in self.journal.values())


@dataclass
class MemoryState:
    store: Store
    clock: Clock
    limits: OutboxLimits
    columns: ColumnsOf
    bucket_owners: list[BucketOwner]
    rows: dict[str, Row] = field(default_factory=dict)
    counted: Counter[int] = field(default_factory=Counter)
    """Rows by bucket, counted as they are added and removed. If `rows` has fewer, some are lost."""
    served: dict[tuple[str, str, str], tuple[Served, float]] = field(default_factory=dict)
    """The request and the ticks when it was learned, by key, principal and request id, oldest first."""
    outbox: dict[tuple[str, Version], tuple[ChangeEntry, float]] = field(default_factory=dict)
    aside: dict[tuple[str, Version], tuple[AsideEntry, float]] = field(default_factory=dict)
    feed: FeedState = field(default_factory=FeedState)
    parked: dict[tuple[int, int], Parked] = field(default_factory=dict)
    leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    """The mark of the lease that the row shows, and the ticks when it was learned, by key."""
    seconds: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    changes: Changes = field(default_factory=Changes)
    metadata: Metadata = field(default_factory=Metadata)

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Undo the block's changes to the tables if it raises."""
        tables: tuple[dict[Any, Any], ...] = (
            self.rows,
            self.counted,
            self.served,
            self.outbox,
            self.parked,
            self.leases,
            self.metadata.journal,
        )
        kept = [dict(table) for table in tables]
        bucket_owners, feed, metadata = list(self.bucket_owners), self.feed, copy(self.metadata)
        try:
            yield
        except BaseException:
            for table, before in zip(tables, kept, strict=True):
                table.clear()
                table.update(before)
            self.bucket_owners[:], self.feed, self.metadata = bucket_owners, feed, metadata
            raise

    def find(self, key: str, call: Call | None = None) -> Found:
        served: tuple[Served, ...] = ()
        if call is not None:
            served = tuple(one for name, (one, _) in self.served.items() if name[::2] == (key, call.request_id))
        row = self.shown(key)
        if row is not None and key in self.leases:
            row = replace(row, lease_seconds=self.seconds - self.leases[key][1])
        return Found(key, row, self.bucket_owners[bucket_of(key)], served)

    def shown(self, key: str) -> Row | None:
        """Return the row unless it is hidden."""
        return visible(self.rows.get(key), self.bucket_owners[bucket_of(key)])

    def visible_rows(self) -> dict[str, Row]:
        return {key: row for key, row in self.rows.items() if self.shown(key) is not None}

    def served_up_to(self, effects: Sequence[tuple[str, Version]]) -> list[tuple[str, Served]]:
        """See `Transaction.served`."""
        wanted: dict[str, list[Version]] = {}
        for key, version in effects:
            wanted.setdefault(key, []).append(version)
        since = self.seconds - RETRY_WINDOW_SECONDS
        return [
            (key, served)
            for (key, _, _), (served, learned) in self.served.items()
            if key in wanted
            and learned >= since
            and any(served.version.term == up_to.term and served.version <= up_to for up_to in wanted[key])
        ]

    def with_served(self, rows: Sequence[Row]) -> list[Record]:
        """Return records of these rows, with the requests of the retry window whose effects the rows contain."""
        windows = windows_of(self.served_up_to(effects_of(rows)))
        now = self.clock.now()
        return [Record(row, windows.get(row.key, ()), made_by(row), now) for row in rows]

    def depth(self) -> Depth:
        oldest = next(iter(self.outbox.values()), None)
        size = sum(len(entry.event) for entry, _ in self.outbox.values())
        return Depth(len(self.outbox), size, self.seconds - oldest[1] if oldest else 0.0)

    def held(self) -> Held:
        return Held(len(self.rows), sum(map(size_of, self.with_served(list(self.rows.values())))))
