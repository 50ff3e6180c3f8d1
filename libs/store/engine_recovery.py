"""The engine's procedures for a seizure (terms, the journal of conflicts) and for the fence of a whole store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from libs.ownership.model import BucketOwner, Record, Row
from libs.ownership.orders import Order, check_order
from libs.ownership.terms import seized_bucket, seized_row
from libs.ownership.wire import event_of
from libs.store.engine import entry_of, full, has_room, record_of, windows
from libs.store.recovery import Conflict, FencedAt, Identity, Standing, StillHidden, Why
from libs.store.transaction import Put, PutBucket, StartAgain, Transaction


async def seize(tx: Transaction, bucket: int, term: int) -> BucketOwner:
    """See `Seizures.seize`."""
    here = (await tx.buckets([bucket]))[bucket]
    if here.term == term:
        return here
    after = seized_bucket(here, tx.store, term)
    before = await tx.rows_of_bucket(bucket)
    rows = [seized_row(row, tx.store, term) for row in before]
    served = await windows(tx, rows)
    entries = [entry_of(record_of(tx, row, served.get(row.key, ()))) for row in rows]
    depth = await tx.depth()
    if not await has_room(tx, depth, len(entries), sum(len(entry.event) for entry in entries)):
        raise full(depth)
    if await tx.put([Put(row, was) for row, was in zip(rows, before, strict=True)], own=False):
        raise StartAgain
    await tx.enqueue(entries)
    await tx.put_buckets([PutBucket(after, here)])
    return after


async def take_terms(tx: Transaction, offered: Sequence[BucketOwner]) -> None:
    """See `Seizures.take_terms`."""
    here = await tx.buckets(sorted({one.bucket for one in offered}))
    newest: dict[int, BucketOwner] = {}
    for one in offered:
        known = newest.get(one.bucket, here[one.bucket])
        if (one.term, one.version) > (known.term, known.version):
            newest[one.bucket] = one
    await tx.put_buckets([PutBucket(one, here[bucket]) for bucket, one in sorted(newest.items())])


async def settle(tx: Transaction, limit: int) -> int:
    """See `Seizures.settle`."""
    hidden = await tx.hidden(limit)
    await journal_rows(tx, hidden, Why.LEFT)
    await tx.delete([row.key for row in hidden])
    return len(hidden)


async def journal_rows(tx: Transaction, rows: Sequence[Row], why: Why) -> None:
    """Journal rows that are about to be deleted or replaced. Their served requests are removed, so they no longer count
    as served."""
    if rows:
        served = await windows(tx, rows)
        await tx.journal([conflict_of(record_of(tx, row, served.get(row.key, ())), why) for row in rows])
        await tx.forget([row.key for row in rows])


def conflict_of(record: Record, why: Why) -> Conflict:
    return Conflict(record.row.key, record.row.version, why, event_of(record))


async def fence(tx: Transaction, reason: str, *, order: Order | None, since: Mapping[int, int] | None) -> None:
    """See `Recovery.fence`."""
    standing = await tx.standing()
    fenced_at = standing.fenced_at
    if since is None:
        fenced_at = None
    elif not standing.fence_reason:
        fenced_at = FencedAt(standing.now.changes, dict(since))
    after = replace(_with_order(standing, order), fence_reason=standing.fence_reason or reason, fenced_at=fenced_at)
    await tx.put_standing(after)


async def reopen(tx: Transaction, *, order: Order | None, seen: Standing | None) -> None:
    """See `Recovery.reopen`."""
    standing = await tx.standing()
    if seen is not None:
        seen.check_fence(standing.fence_reason, by_admission=standing.fenced_at is not None)
    opened = replace(_with_order(standing, order), opened_at=standing.now.database, fence_reason="", fenced_at=None)
    if await tx.hidden(1):
        raise StillHidden
    await tx.put_standing(opened)
    await tx.count_rows()
    if standing.fence_reason:
        # If the database was restored, positions that it issued before may now refer to other changes.
        await tx.invalidate_positions()


async def take_order(tx: Transaction, order: Order) -> None:
    """See `Recovery.take_order`."""
    await tx.put_standing(_with_order(await tx.standing(), order))


async def vouch(tx: Transaction, changes: int) -> None:
    """See `Recovery.vouch`."""
    standing = await tx.standing()
    known = standing.fenced_at
    if known is not None and changes > known.changes:
        await tx.put_standing(replace(standing, fenced_at=replace(known, changes=changes)))


async def note_other(tx: Transaction, other: Identity, *, anew: bool) -> None:
    """See `Recovery.note_other`."""
    standing = await tx.standing()
    known = standing.other
    if anew or known is None or (known.database == other.database and known.changes < other.changes):
        await tx.put_standing(replace(standing, other=other))


def _with_order(standing: Standing, order: Order | None) -> Standing:
    """Return the standing with this order. `order` is None if the change is not part of a recovery. Raises LateOrder,
    ForeignControl."""
    if order is None:
        return standing
    check_order(standing.order, order)
    return replace(standing, order=order)
