"""Bulk releases: many records in one event without payloads, on every adapter. The other store is in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.errors import StoreNotReady
from libs.ownership.errors import NotOwner
from libs.ownership.limits import (
    BULK_LOCK_SECONDS,
    BULK_ROWS,
    MAX_EVENT_BYTES,
    MAX_KEY_BYTES,
    MAX_PAYLOAD_BYTES,
    RETRY_WINDOW_SECONDS,
)
from libs.ownership.model import Answered, BucketOwner, BulkRelease, Row, bucket_of
from libs.ownership.terms import next_term
from libs.ownership.wire import read_bulk, record_of_event
from libs.store.engine_ports import FEWEST_BULK_ROWS, EngineTransfers, next_bulk_rows
from libs.store.inspection import ExportQuery
from libs.store.limits import OutboxLimits
from libs.store.memory import MemoryStore
from libs.store.port import BulkReleased, StorePorts
from libs.store.transaction import Lane, Procedure, T, Transactions
from tests.contracts.conftest import MakeStore
from tests.contracts.store_adapters import own, put, record_of, row_of, served_of

KEYS = sorted((f"sandboxes/{number:02d}" for number in range(12)), key=lambda key: (bucket_of(key), key))
KEY = KEYS[0]
BUCKETS = sorted({bucket_of(key) for key in KEYS})


async def follow(store: StorePorts, across: StorePorts) -> None:
    """The other store applies all events of single records."""
    entries = await store.outbox.pull(500, 0)
    await across.transfers.apply(
        [record_of_event(one.event) for one in entries if read_bulk(one.key, one.event) is None]
    )
    await store.outbox.ack([(entry.key, entry.version) for entry in entries])


async def released(store: StorePorts, after: str = "") -> tuple[BulkReleased, BulkRelease]:
    done = await store.transfers.release_bulk(BUCKETS, store.store.other, after)
    bulk = read_bulk("", done.event)
    assert bulk is not None
    return done, bulk


async def row_at(store: StorePorts, key: str = KEY) -> Row:
    row = (await store.records.read(key)).row
    assert row is not None
    return row


async def written(store: StorePorts, across: StorePorts) -> None:
    """Each record was written, and the other store has followed."""
    await own(store, KEYS)
    for key in KEYS:
        await put(store, key, f"r-{key}", "one")
    await follow(store, across)


async def test_many_records_move_in_one_event_without_payloads(store: StorePorts, across: StorePorts) -> None:
    await written(store, across)
    done, bulk = await released(store)
    assert (done.released, done.last, [one.key for one in bulk.entries]) == (len(KEYS), "", KEYS)
    (entry,) = await store.outbox.pull(10, 0)
    assert (entry.key, entry.version, entry.event) == (KEY, (0, 2), done.event)
    assert b"word" not in done.event, "a payload"
    assert await across.transfers.take(bulk) == (len(KEYS), 0, ())
    for key in KEYS:
        here, there = await row_at(store, key), await row_at(across, key)
        assert here == there, "the rows are equal"
        assert (here.version, here.owner, here.write_version) == ((0, 2), across.store, (0, 1))
    assert await store.inspection.digests() == [one._replace(owned=0) for one in await across.inspection.digests()]
    assert await across.outbox.pull(10, 0) == [], "to take a record makes no event"


async def test_a_record_that_was_taken_is_written_by_its_new_owner_alone(store: StorePorts, across: StorePorts) -> None:
    await written(store, across)
    _, bulk = await released(store)
    await across.transfers.take(bulk)
    with pytest.raises(NotOwner):
        await put(store, KEY, "r2", "two")
    assert (await put(across, KEY, "r2", "two")).version == (0, 3)


async def test_a_store_takes_what_the_other_one_released(store: StorePorts, across: StorePorts) -> None:
    """The same, with the adapter as the new owner."""
    await written(across, store)
    _, bulk = await released(across)
    assert await store.transfers.take(bulk) == (len(KEYS), 0, ())
    assert await row_at(store) == await row_at(across)
    assert await store.inspection.digests() == [
        one._replace(owned=len_of(one.bucket)) for one in await across.inspection.digests()
    ]
    assert await store.outbox.pull(10, 0) == []
    assert (await put(store, KEY, "r2", "two")).version == (0, 3)
    with pytest.raises(NotOwner):
        await put(across, KEY, "r3", "three")


def len_of(bucket: int) -> int:
    return sum(bucket_of(key) == bucket for key in KEYS)


async def test_a_bulk_release_that_comes_again_or_late_is_old(store: StorePorts, across: StorePorts) -> None:
    await written(across, store)
    _, bulk = await released(across)
    await store.transfers.take(bulk)
    assert await store.transfers.take(bulk) == (0, len(KEYS), ())
    await put(store, KEY, "r2", "two")
    await store.transfers.release([KEY], across.store, create=False)
    assert await store.transfers.take(bulk) == (0, len(KEYS), ())
    assert ((await row_at(store)).version, (await row_at(store)).owner) == ((0, 4), across.store)


async def test_a_retry_at_the_new_owner_has_no_second_effect(store: StorePorts, across: StorePorts) -> None:
    await written(across, store)
    _, bulk = await released(across)
    await store.transfers.take(bulk)
    again = await put(store, KEY, f"r-{KEY}", "one")
    assert isinstance(again, Answered)
    assert again.version == (0, 1)


@pytest.mark.parametrize("lacks", ["the row", "the last write", "the request", "an earlier request", "the payload"])
async def test_a_store_that_lacks_something_does_not_take_the_record(
    store: StorePorts, across: StorePorts, lacks: str
) -> None:
    await own(across, KEYS)
    first = await put(across, KEY, "r1", "one")
    second = await put(across, KEY, "r2", "two")
    served = [served_of("r1", first.version), served_of("r2", second.version)]
    row = await row_at(across)
    if lacks == "the last write":
        row = row_of(KEY, (0, 1), across.store, "one")
    if lacks == "the payload":
        row = replace(row, payload=row_of(KEY, (0, 2), across.store, "another").payload)
    kept = {"the request": served[:1], "an earlier request": served[1:]}.get(lacks, served)
    if lacks != "the row":
        await store.transfers.apply([record_of(row, *kept)])
    done = await across.transfers.release_bulk(BUCKETS, store.store)
    bulk = read_bulk(KEY, done.event)
    assert bulk is not None
    assert await store.transfers.take(bulk) == (0, 0, bulk.entries)
    found = await store.records.read(KEY)
    assert found.row == (None if lacks == "the row" else row)
    # The whole release brings the rest.
    whole = await across.transfers.release([KEY], store.store, create=False)
    await store.transfers.apply([one.record for one in whole.results if one.record is not None])
    assert await store.transfers.take(bulk) == (0, 1, ())
    assert await row_at(store) == await row_at(across)


async def test_requests_older_than_the_retry_window_need_not_be_known(store: StorePorts, across: StorePorts) -> None:
    await own(across, KEYS)
    await put(across, KEY, "r1", "one")
    await store.transfers.apply([record_of(await row_at(across))])
    await across.upkeep.tick(RETRY_WINDOW_SECONDS + 1)
    _, bulk = await released(across)
    assert bulk.entries[0].requests == ()
    assert await store.transfers.take(bulk) == (1, 0, ())


async def test_an_entry_of_a_lower_term_than_its_bucket_has_no_effect(store: StorePorts, across: StorePorts) -> None:
    await written(across, store)
    _, bulk = await released(across)
    term = next_term(0, store.store)
    await store.seizures.seize(bucket_of(KEY), term)
    before = await row_at(store)
    taken = await store.transfers.take(bulk)
    assert (taken.taken, taken.old) == (len(KEYS) - len_of(bucket_of(KEY)), len_of(bucket_of(KEY)))
    assert await row_at(store) == before
    assert not (await store.recovery.standing()).conflicts


async def test_an_entry_of_an_unknown_term_proves_no_seizure(store: StorePorts, across: StorePorts) -> None:
    await written(across, store)
    _, bulk = await released(across)
    term = next_term(0, across.store)
    forged = replace(bulk, entries=tuple(one._replace(version=one.version._replace(term=term)) for one in bulk.entries))
    assert await store.transfers.take(forged) == (0, 0, tuple(sorted(forged.entries)))
    assert {one.term for one in await store.transfers.bucket_owners()} == {0}


async def test_a_fenced_store_releases_nothing(store: StorePorts, across: StorePorts) -> None:
    await written(store, across)
    await store.recovery.fence("restored")
    with pytest.raises(StoreNotReady):
        await released(store)
    assert (await row_at(store)).owner is store.store
    assert await store.outbox.pull(10, 0) == []


async def test_records_that_another_store_owns_or_that_are_hidden_stay(store: StorePorts, across: StorePorts) -> None:
    await written(store, across)
    await store.transfers.release([KEYS[1]], across.store, create=False)
    await store.seizures.take_terms([BucketOwner(bucket_of(KEY), next_term(0, across.store), 9, across.store)])
    _, bulk = await released(store)
    gone = {key for key in KEYS if bucket_of(key) == bucket_of(KEY)} | {KEYS[1]}
    assert [one.key for one in bulk.entries] == [key for key in KEYS if key not in gone]


async def test_a_release_goes_on_after_the_last_key(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libs.store.engine_ports.BULK_ROWS", 20)
    monkeypatch.setattr("libs.store.engine_ports.BULK_LOCK_SECONDS", 1e9)
    async with make_store() as store:
        await own(store, KEYS)
        for key in KEYS:
            await put(store, key, f"r-{key}", "one")
        moved: list[str] = []
        after = ""
        for _ in range(3):
            done, bulk = await released(store, after)
            moved += [one.key for one in bulk.entries]
            after = done.last
        assert (moved, after) == (KEYS, "")
        assert await store.transfers.release_bulk(BUCKETS, store.store.other) == BulkReleased()


async def test_an_event_of_a_bulk_release_fits_the_log(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libs.store.engine.MAX_EVENT_BYTES", 700)
    async with make_store() as store:
        await own(store, KEYS)
        for key in KEYS:
            await put(store, key, f"r-{key}", "one")
        first, some = await released(store)
        assert len(first.event) <= 700
        assert first.last == some.entries[-1].key
        assert 0 < len(some.entries) < len(KEYS)
        _, rest = await released(store, first.last)
        assert [one.key for one in (*some.entries, *rest.entries)] == KEYS[: len(some.entries) + len(rest.entries)]


async def test_a_record_that_is_too_large_for_an_event_stays(store: StorePorts) -> None:
    await own(store, KEYS)
    large = row_of(KEY, (0, 1), store.store, padding=str(MAX_PAYLOAD_BYTES))
    await store.transfers.apply([record_of(large), record_of(row_of(KEYS[1], (0, 1), store.store))])
    done, bulk = await released(store)
    assert ([one.key for one in bulk.entries], done.last) == ([KEYS[1]], "")


async def test_payloads_that_one_release_reads_are_bounded(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libs.store.engine.BULK_READ_BYTES", 2500)
    async with make_store() as store:
        await own(store, KEYS)
        for key in KEYS[:3]:
            await put(store, key, f"r-{key}", "one", padding="1000")
        done, bulk = await released(store)
        assert (len(bulk.entries), done.last) == (2, KEYS[1])


async def test_a_full_outbox_still_takes_a_bulk_release_in_its_reserve(make_store: MakeStore) -> None:
    async with make_store(OutboxLimits(entries=len(KEYS))) as store:
        await own(store, KEYS)
        for key in KEYS:
            await put(store, key, f"r-{key}", "one")
        done, _ = await released(store)
        assert (done.released, done.is_full) == (len(KEYS), False)


async def test_a_bulk_release_beyond_the_reserve_releases_nothing(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OutboxLimits, "fits_release", lambda *_: False)
    async with make_store() as store:
        await own(store, KEYS)
        await put(store, KEY, "r1", "one")
        assert await store.transfers.release_bulk(BUCKETS, store.store.other) == BulkReleased(is_full=True)
        assert (await row_at(store)).owner is store.store


def test_a_full_release_of_records_without_requests_fits_an_event() -> None:
    assert BULK_ROWS * (MAX_KEY_BYTES + 48) + 256 < MAX_EVENT_BYTES


async def test_keys_are_those_of_an_export(store: StorePorts) -> None:
    await own(store, KEYS)
    for key in KEYS:
        await put(store, key, f"r-{key}", "one")
    await store.transfers.release([KEYS[2]], store.store.other, create=False)
    buckets = tuple(BUCKETS)
    for query in (
        ExportQuery(buckets=buckets),
        ExportQuery(buckets=buckets, limit=5),
        ExportQuery(after=KEYS[4], buckets=tuple(one for one in BUCKETS if one >= bucket_of(KEYS[4]))),
        ExportQuery(buckets=buckets, owned_only=True),
        ExportQuery(after="sandboxes/04", limit=3),
    ):
        records, more = await store.inspection.export(query)
        assert await store.inspection.keys(query) == ([record.row.key for record in records], more)


class _Counted:
    """Transactions, with the lane of each."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self.lanes: list[Lane] = []

    async def run(self, procedure: Procedure[T], lane: Lane = Lane.CALL) -> T:
        self.lanes.append(lane)
        return await self._transactions.run(procedure, lane)


async def test_a_bulk_release_is_taken_in_several_transactions(store: StorePorts, across: StorePorts) -> None:
    """A client's write waits for one of them at most."""
    await written(store, across)
    _, bulk = await released(store)
    transfers = across.transfers
    assert isinstance(transfers, EngineTransfers)
    transfers._take_rows = 5
    transfers._transactions = counted = _Counted(transfers._transactions)
    lacking = KEYS[0], KEYS[-1]
    assert isinstance(across, MemoryStore)
    for key in lacking:
        del across._state.rows[key]
    taken, old, missing = await transfers.take(bulk)
    assert (taken, old, [one.key for one in missing]) == (len(KEYS) - 2, 0, [*lacking])
    assert counted.lanes == [Lane.COPY] * 3


def test_a_store_releases_fewer_records_at_once_while_its_locks_last_too_long() -> None:
    slow, quick = BULK_LOCK_SECONDS * 1.5, BULK_LOCK_SECONDS / 4
    assert next_bulk_rows(400, 400, slow) == 200
    assert next_bulk_rows(120, 120, slow) == FEWEST_BULK_ROWS
    assert next_bulk_rows(400, 400, quick) == 500
    assert next_bulk_rows(900, 900, quick) == BULK_ROWS
    assert next_bulk_rows(400, 399, quick) == 400, "a short release shows nothing"
    assert next_bulk_rows(400, 400, BULK_LOCK_SECONDS * 0.7) == 400
