"""The procedures of the protocol over one open transaction (`libs.store.transaction`), written once for every store.

Each procedure locks and reads, asks the rules of `libs.ownership` for the decision, and stores exactly that decision.
It awaits only the operations of the transaction.

This module has the write, the release and the moves of a bucket. `engine_apply` has the apply of records from the other
store; `engine_recovery` has seizures and the fence of a whole store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from libs.errors import StoreNotReady
from libs.ownership.errors import NotOwner, OutboxFull
from libs.ownership.limits import (
    BULK_READ_BYTES,
    BULK_ROWS,
    MAX_EVENT_BYTES,
    MAX_PAYLOAD_BYTES,
    RELEASE_ENVELOPE_BYTES,
)
from libs.ownership.model import (
    Answered,
    BucketOwner,
    BulkEntry,
    BulkRelease,
    Call,
    Changed,
    Decide,
    Found,
    Outcome,
    Record,
    Row,
    Served,
    Store,
)
from libs.ownership.rules import bulk_entry, decide_bulk_release, decide_release, may_change, replaced
from libs.ownership.terms import adopted_bucket, declined_bucket
from libs.ownership.wire import bulk_entry_bytes, event_of, event_of_bulk
from libs.store.limits import HELD_NOTHING
from libs.store.outbox import ChangeEntry, Depth
from libs.store.port import BulkReleased, ReleaseResult
from libs.store.transaction import Owned, Put, PutBucket, PutHead, StartAgain, Transaction
from libs.store.window import effects_of, made_by, size_of, windows_of


def record_of(tx: Transaction, row: Row, served: Sequence[Served]) -> Record:
    return Record(row, tuple(served), made_by(row), tx.clock.now())


def entry_of(record: Record, traceparent: str = "") -> ChangeEntry:
    return ChangeEntry(record.row.key, record.row.version, event_of(record), traceparent)


async def windows(tx: Transaction, rows: Sequence[Row]) -> Mapping[str, tuple[Served, ...]]:
    """Return, by key, the requests of the retry window whose effects are in the row, newest last."""
    return windows_of(await tx.served(effects_of(rows)))


async def has_room(tx: Transaction, depth: Depth, entries: int, size: int) -> bool:
    """Return whether entries of releases or of a seizure fit into the outbox. `size`: their total in bytes."""
    held = await tx.held() if tx.limits.is_near(depth, entries, size) else HELD_NOTHING
    return tx.limits.fits_release(depth, entries, size, held)


def full(depth: Depth) -> OutboxFull:
    return OutboxFull(entries=str(depth.entries), bytes=str(depth.bytes))


async def write(tx: Transaction, call: Call, decide: Decide) -> Changed | Answered:
    """See `Records.write`."""
    found = await tx.find(call)
    decided = decide(found)
    if isinstance(decided, Changed):
        entry = entry_of(record_of(tx, decided.row, (decided.served,)), call.traceparent)
        depth = await tx.depth()
        if not tx.limits.fits(depth, len(entry.event)):
            raise full(depth)
        if await tx.put([Put(decided.row, found.row)], own=True):
            await refuse(tx, found)
        for served, known in replaced(found, call, decided.served):
            if not await tx.serve(call.key, served, known):
                raise StartAgain
        await tx.enqueue([entry])
    return decided


async def refuse(tx: Transaction, found: Found) -> NoReturn:
    """Raise the reason why `put` did not store a change of this store."""
    if not may_change(found, tx.store):
        raise NotOwner.of(found)
    await start_again(tx)


async def start_again(tx: Transaction) -> NoReturn:
    """Raise StartAgain, unless the store is fenced."""
    if reason := await tx.fence_reason():
        # A new attempt would fail too: the fence stays until the store is recovered.
        raise StoreNotReady(reason)
    raise StartAgain


@dataclass(frozen=True, slots=True)
class ReleaseOrder:
    """Parameters of a release."""

    to: Store
    create: bool
    room: int
    """Bytes left in the answer. The release stops after the record that exceeds them."""
    wait: bool = True
    """Whether to wait for a row that another transaction has locked. If False, its key is left out of the results."""


def decide_one(
    tx: Transaction, found: Found, served: Sequence[Served], order: ReleaseOrder
) -> tuple[ReleaseResult, ChangeEntry | None]:
    """Decide on the release of one record. Returns also the entry to store with its row; None if nothing changes.

    `served`: the requests of the retry window whose effects are in the row.
    """
    decided = decide_release(found, tx.store, order.to, create=order.create)
    if decided.row is None:
        return ReleaseResult(found.key, decided.outcome, None, found.bucket_owner), None
    record = record_of(tx, decided.row, served)
    entry = entry_of(record) if decided.outcome is Outcome.RELEASE else None
    return ReleaseResult(found.key, decided.outcome, record, found.bucket_owner), entry


async def release(tx: Transaction, keys: Sequence[str], order: ReleaseOrder) -> list[ReleaseResult]:
    """See `Transfers.release`. `keys` are distinct. The results are in their order and end where the answer is full."""
    founds = await tx.found(keys, create=order.create, wait=order.wait)
    served = await windows(tx, [found.row for found in founds.values() if found.row is not None])
    depth = await tx.depth()
    results: list[ReleaseResult] = []
    released: list[tuple[Found, Row, ChangeEntry]] = []
    size, room = 0, order.room
    for found in (founds[key] for key in keys if key in founds):
        if room <= 0:
            break
        result, entry = decide_one(tx, found, served.get(found.key, ()), order)
        if entry is not None and result.record is not None:
            if not await has_room(tx, depth, len(released) + 1, size + len(entry.event)):
                results.append(ReleaseResult(found.key, None, None, found.bucket_owner))
                continue
            size += len(entry.event)
            released.append((found, result.record.row, entry))
        room -= size_of(result.record) if result.record is not None else 0
        results.append(result)
    refused = await tx.put([Put(row, found.row) for found, row, _ in released], own=True)
    for found, _, _ in released:
        if found.key in refused:
            await refuse(tx, found)
    await tx.enqueue([entry for _, _, entry in released])
    return results


async def release_bulk(
    tx: Transaction, buckets: Sequence[int], to: Store, after: str, most: int = BULK_ROWS
) -> BulkReleased:
    """See `Transfers.release_bulk`. `most`: maximum number of records."""
    found = await tx.owned(buckets, after, most)
    keys, last = _of_size([one for one in found if one.size <= MAX_PAYLOAD_BYTES], BULK_READ_BYTES)
    if last is None:
        # All of these fit; others may follow.
        last = found[-1].key if len(found) == most else ""
    began = tx.clock.monotonic()
    rows = {row.key: row for row in await tx.lock_owned(sorted(keys, key=str.encode))} if keys else {}
    served = windows_of(await tx.served(effects_of(rows.values()), answers=False))
    released: list[PutHead] = []
    entries: list[BulkEntry] = []
    room = MAX_EVENT_BYTES - RELEASE_ENVELOPE_BYTES
    for key in keys:
        row = rows.get(key)
        heads = decide_bulk_release(row, tx.store, to) if row is not None else None
        if heads is None:
            continue
        before_release, after_release = heads
        entry = bulk_entry(before_release, after_release, served.get(key, ()))
        room -= bulk_entry_bytes(entry)
        if room < 0:
            last = entries[-1].key
            break
        entries.append(entry)
        released.append(PutHead(after_release, before_release))
    if not entries:
        return BulkReleased(last=last)
    event = event_of_bulk(BulkRelease(to, tuple(entries), tx.clock.now()))
    if not await has_room(tx, await tx.depth(), 1, len(event)):
        return BulkReleased(last=after, is_full=True)
    if await tx.put_heads(released, own=True):
        await start_again(tx)
    # The event is acknowledged under the name of its first record: no other event has that record's version.
    await tx.enqueue([ChangeEntry(entries[0].key, entries[0].version, event)])
    return BulkReleased(event, len(entries), last, locked_seconds=tx.clock.monotonic() - began)


def _of_size(found: Sequence[Owned], most: int) -> tuple[list[str], str | None]:
    """Return the first keys whose payloads have at most this size together, but at least one, and the last of them if
    others are left out."""
    keys: list[str] = []
    for one in found:
        if keys and most < one.size:
            return keys, keys[-1]
        most -= one.size
        keys.append(one.key)
    return keys, None


async def release_buckets(tx: Transaction, buckets: Sequence[int], to: Store) -> list[BucketOwner]:
    """See `Transfers.release_buckets`."""
    here = dict(await tx.buckets(sorted(set(buckets))))
    mine = [bucket for bucket, one in here.items() if one.owner is tx.store]
    disputed = await tx.disputed(mine)
    released = {
        bucket: replace(here[bucket], version=here[bucket].version + 1, owner=to)
        for bucket in mine
        if bucket not in disputed
    }
    await tx.put_buckets([PutBucket(after, here[bucket]) for bucket, after in released.items()])
    here.update(released)
    return [here[bucket] for bucket in buckets]


async def adopt_buckets(
    tx: Transaction, offered: Sequence[BucketOwner], *, despite_conflicts: bool
) -> list[tuple[bool, BucketOwner]]:
    """See `Transfers.adopt_buckets`. Each bucket is in `offered` once."""
    here = dict(await tx.buckets(sorted(one.bucket for one in offered)))
    disputed = set() if despite_conflicts else await tx.disputed(sorted(here))
    adopted: dict[int, BucketOwner] = {}
    for one in offered:
        kept = here[one.bucket]
        if one.bucket in disputed or not adopted_bucket(one, kept, tx.store):
            continue
        # In term 0 no row can be of a lower term.
        if not kept.term or not await tx.hidden(1, one.bucket):
            adopted[one.bucket] = one
    await tx.put_buckets([PutBucket(after, here[bucket]) for bucket, after in adopted.items()])
    here.update(adopted)
    return [(one.bucket in adopted, here[one.bucket]) for one in offered]


async def decline_bucket(tx: Transaction, offered: BucketOwner) -> BucketOwner | None:
    """See `Transfers.return_bucket`."""
    here = (await tx.buckets([offered.bucket]))[offered.bucket]
    declined = declined_bucket(offered, here, tx.store)
    if declined is not None:
        await tx.put_buckets([PutBucket(declined, here)])
    return declined
