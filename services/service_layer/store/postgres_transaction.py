"""An open transaction of a store on PostgreSQL. Its statements are in `postgres_sql`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple

from libs.clock import Clock
from libs.errors import BatonError
from libs.ownership.errors import OutboxFull
from libs.ownership.limits import RETRY_WINDOW_SECONDS, SERVED_WINDOW
from libs.ownership.model import BucketOwner, Call, Found, Head, Row, Served, Store, Version, bases_text, bucket_of
from libs.ownership.orders import order_of, order_text
from libs.store.limits import Held, OutboxLimits
from libs.store.outbox import ChangeEntry, Depth
from libs.store.port import FeedStep, Parked, Position
from libs.store.recovery import Conflict, FencedAt, Identity, Standing
from libs.store.transaction import Counts, Lane, Owned, Procedure, Put, PutBucket, PutHead, StartAgain, T
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_guards import count_now, removing
from services.service_layer.store.postgres_pool import Connection, transaction
from services.service_layer.store.postgres_rows import (
    bucket_owner_of,
    columnar,
    found_for_write,
    found_of,
    head_of,
    row_of,
    served_of,
    served_values,
    signed,
)

_EMPTY = Depth(0, 0, 0.0)


class _HeldUnknown(BatonError):
    """The procedure needs the size of the store. The caller counts it and runs the procedure again."""


class PostgresTransactions:
    """`libs.store.transaction.Transactions`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pools = {Lane.FEED: context.apply, Lane.CONTROL: context.control}

    async def run(
        self, procedure: Procedure[T], lane: Lane = Lane.CALL, *, lock_timeout_seconds: float | None = None
    ) -> T:
        """`lock_timeout_seconds`: maximum wait for a row before LockTimeout. None: the pool's default."""
        gauge = self._context.gauge
        # Counted before the first lock is taken: counting the outbox or the rows of a large store is slow.
        depth, held, refused = await gauge.recent(), None, False
        while True:

            async def work(connection: Connection, depth: Depth = depth, held: Held | None = held) -> T:
                tx = PostgresTransaction(self._context, connection, depth, held)
                async with transaction(connection, lock_timeout_seconds=lock_timeout_seconds):
                    result = await procedure(tx)
                tx.committed()
                return result

            try:
                return await self._pools.get(lane, self._context.requests).run(work)
            except _HeldUnknown:
                held = await gauge.held()
            except OutboxFull:
                if refused or not gauge.is_doubtful:
                    raise
                refused, depth = True, await gauge.depth()


class PostgresTransaction:
    """`libs.store.transaction.Transaction`."""

    def __init__(
        self, context: Context, connection: Connection, depth: Depth = _EMPTY, held: Held | None = None
    ) -> None:
        self.context = context
        self.connection = connection
        self._depth = depth
        self._held = held
        self._enqueued: list[ChangeEntry] = []
        self.has_written = False

    @property
    def store(self) -> Store:
        return self.context.me

    @property
    def clock(self) -> Clock:
        return self.context.clock

    @property
    def limits(self) -> OutboxLimits:
        return self.context.limits

    def committed(self) -> None:
        if self._enqueued:
            self.context.gauge.added(len(self._enqueued), sum(len(one.event) for one in self._enqueued))
        if self.has_written:
            self.context.written.notify()

    async def find(self, call: Call) -> Found:
        lines = await self.connection.fetch(sql.READ_FOR_WRITE, call.key, bucket_of(call.key), call.request_id)
        return found_for_write(call.key, lines)

    async def found(self, keys: Sequence[str], *, create: bool, wait: bool) -> Mapping[str, Found]:
        if create:
            await self.connection.fetch(sql.SHARE_BUCKETS, sorted({bucket_of(key) for key in keys}))
        lock = sql.LOCK_FOR_RELEASE if wait else sql.LOCK_FOR_RELEASE_UNLESS_BUSY
        locked = await self.connection.fetch(lock, list(keys), self.store.value)
        founds = {columns["key"]: found_of(columns["key"], columns) for columns in locked}
        if others := [key for key in keys if key not in founds]:
            for columns in await self.connection.fetch(sql.READ_MANY, others, [bucket_of(key) for key in others]):
                found = found_of(columns["asked"], columns)
                if found.row is None or found.row.owner is not self.store:
                    founds[found.key] = found
                elif wait:
                    raise StartAgain  # the record has moved here since the first query
        return founds

    async def rows(self, keys: Sequence[str]) -> Mapping[str, Row]:
        return {row.key: row for row in await self._rows(sql.LOCK_ROWS, list(keys))}

    async def rows_of_bucket(self, bucket: int) -> Sequence[Row]:
        return await self._rows(sql.LOCK_ROWS_OF_BUCKET, bucket)

    async def hidden(self, limit: int, bucket: int | None = None) -> Sequence[Row]:
        return await self._rows(sql.LOCK_HIDDEN, bucket, limit)

    async def _rows(self, statement: str, *arguments: object) -> list[Row]:
        rows = map(row_of, await self.connection.fetch(statement, *arguments))
        return [row for row in rows if row is not None]

    async def put(self, puts: Sequence[Put], *, own: bool) -> set[str]:
        new = [put for put in puts if put.before is None]
        changed = [put for put in puts if put.before is not None and not put.keeps_payload]
        moved = [put for put in puts if put.keeps_payload]
        stored: set[str] = set()
        if moved:
            heads = [PutHead(row.head, before.head) for row, before in moved if before is not None]
            stored |= {head.key for head, _ in heads} - await self.put_heads(heads, own=own)
        if changed:
            rows = (self.context.values(put.row) for put in changed)
            stored |= await self._put(sql.UPDATE_ROWS[own], self._conditional(rows, changed, own=own), 19)
        if new:
            owner = (self.store.value,) if own else ()
            rows = (self.context.values(put.row) for put in new)
            stored |= await self._put(sql.INSERT_ROWS[own], rows, 16, *owner)
        self.has_written = self.has_written or bool(stored)
        return {put.row.key for put in puts} - stored

    async def owned(self, buckets: Sequence[int], after: str, limit: int) -> Sequence[Owned]:
        first = bucket_of(after) if after else -1
        some = [bucket for bucket in buckets if bucket >= first]
        found = await self.connection.fetch(sql.OWNED, some, first, after, self.store.value, limit)
        return [Owned(row["key"], row["size"]) for row in found]

    async def lock_owned(self, keys: Sequence[str]) -> Sequence[Row]:
        return await self._rows(sql.LOCK_OWNED, list(keys), self.store.value)

    async def heads(self, keys: Sequence[str], *, lock: bool) -> Mapping[str, Head]:
        found = await self.connection.fetch(sql.LOCK_HEADS if lock else sql.HEADS, list(keys))
        return {key: head_of(key, *columns) for key, *columns in found}

    async def put_heads(self, puts: Sequence[PutHead], *, own: bool) -> set[str]:
        if not puts:
            return set()
        me = self.store.value
        values = [
            (
                *(key, owner.value, *version, bases_text(bases), signed(digest)),
                *(me if own else before.owner.value, *before.version),
            )
            for (key, version, owner, digest, bases), before in puts
        ]
        stored = await self._put(sql.UPDATE_ENVELOPES[own], values, 9)
        self.has_written = self.has_written or bool(stored)
        return {put.head.key for put in puts} - stored

    def _conditional(
        self, values: Iterable[tuple[object, ...]], puts: Sequence[Put], *, own: bool
    ) -> Iterable[tuple[object, ...]]:
        """Append to each row's values the owner and the version that the stored row must have."""
        for one, (_, before) in zip(values, puts, strict=True):
            assert before is not None, "there is a row to change"
            yield (*one, self.store.value if own else before.owner.value, *before.version)

    async def _put(
        self, statement: str, values: Iterable[tuple[object, ...]], width: int, *arguments: object
    ) -> set[str]:
        return {row["key"] for row in await self.connection.fetch(statement, *columnar(values, width), *arguments)}

    async def delete(self, keys: Sequence[str]) -> None:
        async with removing(self.connection, "record"):
            await self.connection.execute(sql.DELETE_ROWS, list(keys))

    async def served(
        self, effects: Sequence[tuple[str, Version]], *, answers: bool = True
    ) -> Sequence[tuple[str, Served]]:
        return await served_up_to(self.connection, effects, answers=answers)

    async def serve(self, key: str, served: Served, known: Served | None) -> bool:
        values = (key, *served_values(served))
        if known is None:
            return await self.connection.fetchval(sql.SERVE, *values) is not None
        return await self.connection.fetchval(sql.SERVE_AGAIN, *values, *known.version) is not None

    async def learn(self, learned: Sequence[tuple[str, Served]]) -> None:
        if learned:
            values = [(key, *served_values(served)) for key, served in learned]
            await self.connection.execute(sql.LEARN_SERVED, *columnar(values, 7))

    async def forget(self, keys: Sequence[str]) -> None:
        async with removing(self.connection, "served"):
            await self.connection.execute(sql.FORGET, list(keys))

    async def buckets(self, numbers: Sequence[int], *, shared: bool = False) -> Mapping[int, BucketOwner]:
        statement = sql.READ_AND_SHARE_BUCKETS if shared else sql.HOLD_BUCKETS
        found = map(bucket_owner_of, await self.connection.fetch(statement, list(numbers)))
        return {one.bucket: one for one in found}

    async def put_buckets(self, puts: Sequence[PutBucket]) -> None:
        if not puts:
            return
        values = [
            (one.bucket, one.term, one.version, one.owner.value, before.term, before.version, before.owner.value)
            for one, before in puts
        ]
        if changed(await self.connection.execute(sql.PUT_BUCKETS, *columnar(values, 7))) != len(puts):
            raise StartAgain

    async def depth(self) -> Depth:
        return self._depth

    async def held(self) -> Held:
        if self._held is None:
            raise _HeldUnknown
        return self._held

    async def enqueue(self, entries: Sequence[ChangeEntry]) -> None:
        if entries:
            values = [(one.key, *one.version, one.event, one.traceparent) for one in entries]
            await self.connection.execute(sql.ENQUEUE, *columnar(values, 5))
            self._enqueued += entries

    async def move(self, positions: Sequence[Position]) -> bool:
        moved = changed(await self.connection.execute(sql.MOVE, *columnar(sorted(positions), 4))) if positions else 0
        if moved < len(positions):
            # A partition that was never read has no row. Its position is 0.
            parts = [position.partition for position in sorted(positions)]
            if changed(await self.connection.execute(sql.MAKE_PARTITIONS, parts)):
                unmoved = [position for position in sorted(positions) if position.before == 0]
                moved += changed(await self.connection.execute(sql.MOVE, *columnar(unmoved, 4)))
        return moved == len(positions)

    async def park(self, parked: Sequence[Parked]) -> None:
        if parked:
            await self.connection.execute(sql.PARK, *columnar([astuple(one) for one in parked], 8))

    async def trim_unauthenticated(self, events: int, size: int) -> None:
        await self.connection.execute(sql.TRIM_UNAUTHENTICATED, events, size)

    async def unpark(self, partition: int, offset: int) -> bool:
        return await self.connection.fetchval(sql.UNPARK, partition, offset) is not None

    async def count(self, step: FeedStep, counts: Counts) -> None:
        # Counted at the first partition of the step, because `Feed.state` adds up all partitions.
        partition = min((position.partition for position in step.positions), default=0)
        await self.connection.execute(sql.COUNT, partition, *counts)

    async def disputed(self, buckets: Sequence[int]) -> set[int]:
        return {row["bucket"] for row in await self.connection.fetch(sql.DISPUTED, list(buckets))}

    async def journal(self, conflicts: Sequence[Conflict]) -> None:
        if conflicts:
            values = [(bucket_of(one.key), one.key, *one.version, one.why.value, one.event) for one in conflicts]
            await self.connection.execute(sql.JOURNAL, *columnar(values, 6))

    async def fence_reason(self) -> str:
        return str(await self.connection.fetchval(sql.FENCE_REASON))

    async def standing(self) -> Standing:
        return await standing_of(self.context, self.connection, sql.LOCK_STANDING)

    async def put_standing(self, standing: Standing) -> None:
        order, fenced_at = order_text(standing.order), standing.fenced_at.encode() if standing.fenced_at else ""
        other = standing.other or (None, None)
        fence = standing.opened_at, standing.fence_reason
        await self.connection.execute(sql.PUT_STANDING, *fence, *other, order, fenced_at)

    async def count_rows(self) -> None:
        await count_now(self.connection)

    async def invalidate_positions(self) -> None:
        await self.connection.execute("UPDATE standing SET watched = gen_random_uuid()")


async def served_up_to(
    connection: Connection, effects: Sequence[tuple[str, Version]], *, answers: bool = True
) -> list[tuple[str, Served]]:
    """See `Transaction.served`."""
    if not effects:
        return []
    versions = [(key, *version) for key, version in effects]
    limits = RETRY_WINDOW_SECONDS * 1000, SERVED_WINDOW
    found: list[tuple[str, Served]] = []
    statement = sql.SERVED_WINDOW if answers else sql.SERVED_WITHOUT_ANSWERS
    for columns in await connection.fetch(statement, *columnar(versions, 3), *limits):
        served = served_of(columns)
        assert served is not None, "an inner join"
        found.append((columns["key"], served))
    return found


async def standing_of(context: Context, connection: Connection, statement: str) -> Standing:
    now = await context.anchor.ask(connection)
    row = await connection.fetchrow(statement)
    other = None if row["other_place"] is None else Identity(row["other_place"], row["other_changes"])
    order, fenced_at = order_of(row["recovery_order"]), FencedAt.decode(row["fenced_at"])
    return Standing(now, row["place"], row["gone"], other, row["conflicts"], order, fenced_at)


def changed(status: str) -> int:
    """Number of rows that a statement changed, from the server's answer: "INSERT 0 3", "UPDATE 3"."""
    return int(status.rsplit(" ", 1)[1])
