"""State that the ports of one open store share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from libs.clock import Clock
from libs.ownership.model import BucketOwner, Row, Store, bucket_of
from libs.store.columns import ColumnsOf
from libs.store.concurrency import Notifier
from libs.store.limits import HELD_NOTHING, HELD_SECONDS, Held, OutboxLimits
from libs.store.outbox import Depth
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_identity import Anchor
from services.service_layer.store.postgres_pool import Connection, Pool
from services.service_layer.store.postgres_rows import bucket_owner_of, record_values

_log = logging.getLogger(__name__)


class Gauge:
    """Depth of the outbox: counted in the database from time to time, and updated here in between.

    Counting a long outbox is slow. So the time between two counts grows with the duration of a count, up to two
    seconds, the maximum age of a depth. Entries that other processes add show up at the next count.
    """

    _LEAST_SECONDS = 0.2
    _MOST_SECONDS = 2.0
    _COST_FACTOR = 20.0
    _TOO_OLD_SECONDS = 10.0

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._refresh: asyncio.Task[Depth] | None = None
        self._depth = Depth(0, 0, 0.0)
        self._counted = float("-inf")
        self._valid_seconds = 0.0
        self._is_exact = True
        """No change by this process fell into the last count."""
        self._changes = 0
        self._added = Depth(0, 0, 0.0)
        """All additions of this process."""
        self._removed = Depth(0, 0, 0.0)
        """All removals of this process."""
        self._doubtful = Depth(0, 0, 0.0)
        """Entries that the depth has too many at most: those of changes that fell into the last count."""
        self._held = HELD_NOTHING
        self._held_until = float("-inf")
        self._lock = asyncio.Lock()
        self.changed = asyncio.Event()
        """Set at each commit of this process that added to the outbox. Clear it before you wait for it."""

    def added(self, entries: int, size: int) -> None:
        """Count a commit of this process at once, and wake the waiting reader of the outbox."""
        self._depth = _plus(self._depth, entries, size)
        self._added = _plus(self._added, entries, size)
        self._changes += 1
        self.changed.set()

    def removed(self, entries: int, size: int) -> None:
        depth = self._depth
        self._removed = _plus(self._removed, entries, size)
        self._changes += 1
        left = max(0, depth.entries - entries)
        oldest = depth.oldest_seconds if left else 0.0
        self._depth = Depth(left, max(0, depth.bytes - size), oldest)

    async def depth(self) -> Depth:
        """Return the depth, at most two seconds old, with all changes of this process."""
        if not (self._is_fresh() and self._is_exact):
            async with self._lock:
                if not (self._is_fresh() and self._is_exact):
                    await self._count()
        return self._depth

    async def recent(self) -> Depth:
        """Return the depth for the check before a commit. Wait for a count only if the last one is over 10 s old."""
        if asyncio.get_running_loop().time() - self._counted > self._TOO_OLD_SECONDS:
            return await self.depth()
        if not self._is_fresh() and (self._refresh is None or self._refresh.done()):
            self._refresh = asyncio.get_running_loop().create_task(self.depth())
            self._refresh.add_done_callback(_note_failure)
        return self._depth

    @property
    def is_doubtful(self) -> bool:
        """Whether the depth may have entries too many."""
        return self._doubtful.entries > 0

    async def before_refusal(self, fits: Callable[[Depth], bool]) -> Depth:
        """Return the depth for a change that did not fit the recent one.

        It is counted again if the change would fit without the entries that may be in it by mistake.
        """
        entries, size, _ = self._doubtful
        if self.is_doubtful and fits(_plus(self._depth, -entries, -size)):
            return await self.depth()
        return self._depth

    async def held(self) -> Held:
        """Return an upper bound of the store's rows and bytes, counted at most HELD_SECONDS ago."""
        loop = asyncio.get_running_loop()

        async def count(connection: Connection) -> Held:
            return Held(*await connection.fetchrow(sql.HELD))

        async with self._lock:
            if loop.time() >= self._held_until:
                self._held = await self._pool.run(count)
                self._held_until = loop.time() + HELD_SECONDS
            return self._held

    async def close(self) -> None:
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.wait([self._refresh])

    def _is_fresh(self) -> bool:
        return asyncio.get_running_loop().time() - self._counted < self._valid_seconds

    async def _count(self) -> None:
        loop = asyncio.get_running_loop()

        async def count(connection: Connection) -> tuple[Depth, Depth, Depth, int, float]:
            began, added, removed, changes = loop.time(), self._added, self._removed, self._changes
            row = await connection.fetchrow(sql.DEPTH)
            depth = Depth(row["entries"], row["bytes"], row["age"] / 1000)
            return depth, added, removed, changes, loop.time() - began

        depth, added, removed, changes, cost = await self._pool.run(count)
        # A commit during the count may be in it or not. Counted twice it does less harm than not at all.
        self._is_exact = changes == self._changes
        meanwhile = self._added.entries - added.entries, self._added.bytes - added.bytes
        self._depth = _plus(depth, *meanwhile)
        removed_meanwhile = self._removed.entries - removed.entries, self._removed.bytes - removed.bytes
        self._doubtful = _plus(Depth(*meanwhile, 0.0), *removed_meanwhile)
        self._counted = loop.time()
        self._valid_seconds = min(self._MOST_SECONDS, max(self._LEAST_SECONDS, cost * self._COST_FACTOR))


def _plus(depth: Depth, entries: int, size: int) -> Depth:
    return depth._replace(entries=depth.entries + entries, bytes=depth.bytes + size)


def _note_failure(refresh: asyncio.Task[Depth]) -> None:
    # No caller waits for this count. The next caller that needs the depth counts again and gets the error.
    if not refresh.cancelled() and (error := refresh.exception()) is not None:
        _log.warning("the outbox could not be counted: %s", error)


@dataclass(frozen=True, slots=True)
class Context:
    """Shared state of one open store."""

    me: Store
    clock: Clock
    limits: OutboxLimits
    columns_of: ColumnsOf
    requests: Pool
    apply: Pool
    control: Pool
    gauge: Gauge
    anchor: Anchor
    connections: int
    """Maximum number of connections of this process: all its pools full."""
    written: Notifier = field(default_factory=Notifier)
    """Notified after each commit of this process that may have written a record."""

    def values(self, row: Row) -> tuple[object, ...]:
        """Values of a row for the columns of `record`."""
        return record_values(row, bucket_of(row.key), self.columns_of(row))


async def buckets_at(connection: Connection, buckets: Iterable[int]) -> dict[int, BucketOwner]:
    rows = await connection.fetch(sql.SOME_BUCKETS, sorted(set(buckets)))
    return {row["bucket"]: bucket_owner_of(row) for row in rows}
