"""The contract of stores beyond transcripts: concurrent writes, limits, pages, both stores together."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from functools import cache

import pytest

from libs.backend.write_locks import WriteLocks
from libs.contract.pages import Filter, Page
from libs.locks.memory import MemoryLocks
from libs.ownership.errors import NotOwner
from libs.ownership.limits import MAX_EVENT_BYTES, MAX_PAYLOAD_BYTES, RELEASE_ANSWER_BYTES, SERVED_WINDOW
from libs.ownership.model import BUCKETS, Answered, BucketOwner, Changed, Found, Outcome, Store, bucket_of
from libs.ownership.rules import Resource, decide_write
from libs.ownership.wire import record_of_event
from libs.store.inspection import PARTS, ExportQuery
from libs.store.port import StorePorts
from tests.contracts.store_adapters import (
    call_of,
    everything,
    names,
    own,
    put,
    putting,
    record_of,
    row_of,
    sandbox,
    served_of,
    write,
)
from tests.waiting import eventually

KEY = "sandboxes/a"
KEYS = [f"sandboxes/{number:03d}" for number in range(30)]


async def test_a_new_store_has_the_bucket_owners_of_its_kind(store: StorePorts) -> None:
    version = 1 if store.store is Store.A else 0
    assert await store.transfers.bucket_owners() == [
        BucketOwner(bucket, 0, version, Store.A) for bucket in range(BUCKETS)
    ]
    census = await store.inspection.census()
    assert census[:3] == (0, 0, BUCKETS if store.store is Store.A else 0)


async def test_writes_of_one_key_at_once_each_have_their_revision(store: StorePorts) -> None:
    await own(store, [KEY])
    outcomes = await asyncio.gather(*(put(store, KEY, f"r{number}", f"w{number}") for number in range(20)))
    assert sorted(outcome.version.revision for outcome in outcomes) == list(range(1, 21))
    entries = await store.outbox.pull(100, 0)
    assert [entry.version.revision for entry in entries] == list(range(1, 21))


async def test_a_tombstone_of_what_never_was_is_in_no_list(store: StorePorts) -> None:
    """It remembers that a name was deleted that was not there."""
    await own(store, [KEY, "sandboxes/b", "sandboxes/c"])
    await write(store, call_of(KEY, "r1"), lambda row, version: Resource(b"", False, 1, answer=b""))
    await put(store, "sandboxes/b", "r2", "one", deleted="yes")
    await put(store, "sandboxes/c", "r3", "one")
    assert (await store.records.read(KEY)).row is not None
    assert await names(store, Page(Filter(show_deleted=True))) == ["sandboxes/b", "sandboxes/c"]
    assert await names(store, Page(Filter())) == ["sandboxes/c"]
    looked = await store.records.page(Page(Filter(show_deleted=True), keys=(KEY, "sandboxes/b")))
    assert [(one.row.key, bool(one.matches)) for one in looked] == [(KEY, False), ("sandboxes/b", True)]


async def test_a_write_under_a_lock_leaves_no_stack_trace_in_the_log(
    store: StorePorts, caplog: pytest.LogCaptureFixture
) -> None:
    await own(store, [KEY])
    call = call_of(KEY, "r1")

    def decide(found: Found) -> Changed | Answered:
        return decide_write(found, store.store, call, putting(sandbox(KEY, "one")))

    outcome = await WriteLocks(store, MemoryLocks()).write(call, decide, under_lock=True)
    assert isinstance(outcome, Changed)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


async def test_one_request_at_once_many_times_has_one_effect(store: StorePorts) -> None:
    await own(store, [KEY])
    outcomes = await asyncio.gather(*(put(store, KEY, "r1", "one") for _ in range(10)))
    assert {outcome.version for outcome in outcomes} == {(0, 1)}
    assert sum(isinstance(outcome, Changed) for outcome in outcomes) == 1
    assert (await store.records.read(KEY)).version == (0, 1)


async def test_writes_and_a_release_at_once_end_with_the_release(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r0", "zero")

    async def attempt(number: int) -> bool:
        try:
            await put(store, KEY, f"r{number}", "w")
        except NotOwner:
            return False
        return True

    release = asyncio.create_task(store.transfers.release([KEY], store.store.other, create=False))
    written = sum(await asyncio.gather(*(attempt(number) for number in range(1, 20))))
    (result,) = (await release).results
    row = (await store.records.read(KEY)).row
    assert result.record is not None and row == result.record.row
    assert row.version == (0, written + 2)
    assert len(result.record.served) == written + 1


async def test_read_many_answers_in_the_order_of_the_keys_and_for_absent_ones(store: StorePorts) -> None:
    await own(store, KEYS)
    for key in KEYS[:5]:
        await put(store, key, "r", key)
    asked = [KEYS[3], KEYS[20], KEYS[1], KEYS[3]]
    found = await store.records.read_many(asked)
    assert [one.key for one in found] == asked
    assert [one.row is not None for one in found] == [True, False, True, True]
    assert [one.bucket_owner.bucket for one in found] == [bucket_of(key) for key in asked]
    assert await store.records.read_many([]) == []


async def test_the_traceparent_of_a_call_travels_with_its_change(store: StorePorts) -> None:
    await own(store, [KEY])
    call = call_of(KEY, "r1")
    traced = type(call)(call.key, call.principal, call.request_id, call.request_hash, traceparent="00-ab-cd-01")
    await write(store, traced, putting(sandbox(KEY, "one")))
    (entry,) = await store.outbox.pull(10, 0)
    assert entry.traceparent == "00-ab-cd-01"


async def test_a_release_carries_the_newest_requests_only(store: StorePorts) -> None:
    await own(store, [KEY])
    for number in range(SERVED_WINDOW + 5):
        await put(store, KEY, f"r{number}", "w")
    (result,) = (await store.transfers.release([KEY], store.store.other, create=False)).results
    assert result.record is not None
    assert [one.request_id for one in result.record.served] == [f"r{number}" for number in range(5, SERVED_WINDOW + 5)]
    assert [one.version.revision for one in result.record.served] == list(range(6, SERVED_WINDOW + 6))


async def test_the_event_of_a_release_with_large_answers_fits_the_log(store: StorePorts) -> None:
    await own(store, [KEY])
    for number in range(SERVED_WINDOW):
        await put(store, KEY, f"r{number}", f"w{number}", padding="15000")
    await store.transfers.release([KEY], store.store.other, create=False)
    entries = []
    while found := await store.outbox.pull(100, 0):
        entries += found
        await store.outbox.ack([(entry.key, entry.version) for entry in found])
    event = record_of_event(entries[-1].event)
    assert len(entries[-1].event) <= MAX_EVENT_BYTES
    assert len(event.served) == SERVED_WINDOW
    assert event.served[-1].answer is not None


async def test_a_large_release_says_which_keys_remain(store: StorePorts) -> None:
    await own(store, KEYS)
    for key in KEYS:
        await put(store, key, "r", "w", padding="100000")
    released = await store.transfers.release(KEYS, store.store.other, create=False)
    done = [result.key for result in released.results]
    assert done + list(released.remaining) == KEYS
    assert RELEASE_ANSWER_BYTES // 100_000 <= len(done) < 20
    owners = {key: (await store.records.read(key)).owner is store.store for key in KEYS}
    assert [key for key in KEYS if owners[key]] == list(released.remaining)


async def test_a_record_that_is_too_large_for_an_event_is_kept_and_the_others_go(store: StorePorts) -> None:
    large = row_of(KEY, (0, 1), store.store, padding=str(MAX_PAYLOAD_BYTES))
    await store.transfers.apply([record_of(large), *(record_of(row_of(key, (0, 1), store.store)) for key in KEYS[:2])])
    released = await store.transfers.release([KEYS[0], KEY, KEYS[1]], store.store.other, create=False)
    assert {result.key: result.outcome for result in released.results} == {
        KEYS[0]: Outcome.RELEASE,
        KEY: Outcome.TOO_LARGE,
        KEYS[1]: Outcome.RELEASE,
    }
    assert (await store.records.read(KEY)).row == large
    assert {entry.key for entry in await store.outbox.pull(10, 0)} == set(KEYS[:2])


@pytest.mark.parametrize(("account", "label"), [("a\0b", "k:a\0b"), ("".join(map(chr, range(33, 9000))), "a\0:v")])
async def test_what_an_old_program_has_left_can_be_kept(store: StorePorts, account: str, label: str) -> None:
    """Otherwise the store would never accept the record, nor any later change of it."""
    row = row_of(KEY, (0, 1), store.store, account=account, label=label)
    assert (await store.transfers.apply([record_of(row)])).applied == 1
    assert (await store.records.read(KEY)).row == row
    assert len(await store.records.page(Page(Filter()))) == 1


async def test_a_release_to_itself_is_a_mistake(store: StorePorts) -> None:
    await own(store, [KEY])
    with pytest.raises(ValueError, match="itself"):
        await store.transfers.release([KEY], store.store, create=True)
    with pytest.raises(ValueError, match="itself"):
        await store.transfers.release_bucket(0, store.store)


class TestBothStores:
    async def test_a_record_goes_across_and_back_byte_for_byte(self, store: StorePorts, across: StorePorts) -> None:
        await own(store, [KEY])
        payload = sandbox(KEY, "one", state="RUNNING", label="k:v") + bytes([0xFA, 0x7F, 2]) + b"hi"
        await write(store, call_of(KEY, "r1"), putting(payload))
        before = (await store.records.read(KEY)).row
        for giver, taker in ((store, across), (across, store)):
            (result,) = (await giver.transfers.release([KEY], taker.store, create=False)).results
            assert result.record is not None
            await taker.transfers.apply([result.record])
        after = (await store.records.read(KEY)).row
        assert before is not None and after is not None
        assert after.payload == before.payload == payload
        assert (after.write_version, after.owner, after.version) == (before.write_version, store.store, (0, 3))
        outcome = await write(across, call_of(KEY, "r1"), putting(payload))
        assert isinstance(outcome, Answered) and outcome.answer == payload

    async def test_the_same_rows_have_the_same_digests(self, store: StorePorts, across: StorePorts) -> None:
        await own(store, KEYS)
        for key in KEYS:
            await put(store, key, "r", key, state="RUNNING")
        await store.transfers.release([*KEYS[:9], "sandboxes/absent"], across.store, create=True)
        await across.transfers.apply(await everything(store))
        ours, theirs = await store.inspection.digests(), await across.inspection.digests()
        assert [(one.bucket, one.records, one.digest) for one in ours] == [
            (one.bucket, one.records, one.digest) for one in theirs
        ]
        assert all(one.digest < 1 << 64 for one in ours)
        assert sum(one.owned for one in ours) == len(KEYS) - 9
        some = [ours[0].bucket, ours[-1].bucket]
        assert await store.inspection.digests(some) == [ours[0], ours[-1]]
        assert await store.inspection.counts() == [one._replace(digest=0) for one in ours]
        await put(store, KEYS[20], "r2", "changed")
        assert await store.inspection.digests() != ours

    async def test_events_alone_bring_a_record_across(self, store: StorePorts, across: StorePorts) -> None:
        """A handoff whose router died."""
        await own(store, [KEY])
        await put(store, KEY, "r1", "one")
        await store.transfers.release([KEY], across.store, create=False)
        entries = await store.outbox.pull(10, 0)
        await across.transfers.apply([record_of_event(entry.event) for entry in reversed(entries)])
        assert isinstance(await put(across, KEY, "r1", "one"), Answered)
        assert (await put(across, KEY, "r2", "two")).version == (0, 3)


@cache
def keys_of(bucket: int, count: int) -> list[str]:
    found = (key for key in map("sandboxes/{}".format, itertools.count()) if bucket_of(key) == bucket)
    return list(itertools.islice(found, count))


@pytest.fixture
async def shelf(store: StorePorts) -> list[str]:
    """Keys of many rows in bucket 7, of which one was changed, beside rows of another bucket."""
    keys, others = keys_of(7, 40), keys_of(8, 2)
    await store.transfers.apply([record_of(row_of(key, (0, 1), store.store)) for key in (*keys, *others)])
    await store.transfers.apply([record_of(row_of(keys[3], (0, 2), store.store, "w2", account="changed"))])
    return keys


async def test_the_parts_of_a_bucket_have_the_digests_of_their_rows(store: StorePorts, shelf: list[str]) -> None:
    (found,) = await store.inspection.digests([7], parts=True)
    expected = [0] * PARTS
    for record in await everything(store):
        if bucket_of(record.row.key) == 7:
            expected[record.row.digest % PARTS] ^= record.row.digest
    assert list(found.parts) == expected and sum(map(bool, expected)) > PARTS / 3
    assert found._replace(parts=()) in await store.inspection.digests()
    assert {one.bucket: len(one.parts) for one in await store.inspection.digests([7, 8, 9], parts=True)} == {
        7: PARTS,
        8: PARTS,
    }


async def test_rows_of_some_parts_come_without_the_others(store: StorePorts, shelf: list[str]) -> None:
    rows = {record.row.key: record.row for record in await everything(store)}
    parts = (*range(0, PARTS, 8), rows[shelf[3]].digest % PARTS)
    expected = [key for key in sorted(shelf) if rows[key].digest % PARTS in parts]
    found: list[str] = []
    more = True
    while more:
        page, more = await store.inspection.rows(ExportQuery(found[-1] if found else "", 2, (7,), parts=parts))
        found += [kept.row.key for kept in page]
        assert len(page) <= 2
    assert found == expected and shelf[3] in found and len(found) > 3


async def test_an_export_page_is_about_one_mebibyte(store: StorePorts) -> None:
    await store.transfers.apply([record_of(row_of(key, (0, 1), store.store, padding="200000")) for key in KEYS[:12]])
    first, more = await store.inspection.export(ExportQuery(limit=100))
    assert more and 2 <= len(first) <= 7
    assert [record.row.key for record in await everything(store)] == KEYS[:12]


@pytest.mark.parametrize("keys_only", [True, False])
async def test_an_export_of_some_buckets_goes_through_one_after_the_other(store: StorePorts, keys_only: bool) -> None:
    keys = [key for key in (f"sandboxes/{number}" for number in range(5000)) if bucket_of(key) in (7, 400, 401, 1000)]
    await store.transfers.apply([record_of(row_of(key, (0, 1), store.store)) for key in keys])
    left: tuple[int, ...] = (7, 401, 1000)
    expected = sorted((key for key in keys if bucket_of(key) in left), key=lambda key: (bucket_of(key), key))
    found: list[str] = []
    more = True
    while more:
        query = ExportQuery(found[-1] if found else "", 4, left, keys_only=keys_only)
        records, more = await store.inspection.export(query)
        found += [record.row.key for record in records]
        assert 0 < len(records) <= 4
        assert all(bool(record.row.payload) is not keys_only for record in records)
        left = left[left.index(bucket_of(found[-1])) :]
    assert found == expected


async def test_an_export_of_some_keys_has_no_others(store: StorePorts) -> None:
    await store.transfers.apply([record_of(row_of(key, (0, 1), store.store)) for key in KEYS])
    wanted = (KEYS[7], KEYS[2], "sandboxes/none", KEYS[9], KEYS[7])
    first, more = await store.inspection.export(ExportQuery(limit=2, keys=wanted))
    assert ([record.row.key for record in first], more) == ([KEYS[2], KEYS[7]], True)
    last, more = await store.inspection.export(ExportQuery(KEYS[7], limit=1, keys=wanted))
    assert ([record.row.key for record in last], more) == ([KEYS[9]], False)


async def test_rows_come_with_the_digests_that_are_kept_beside_them(store: StorePorts) -> None:
    await own(store, KEYS)
    for key in KEYS[:6]:
        await put(store, key, "r", key)
    await store.transfers.release(KEYS[:3], store.store.other, create=False)
    await put(store, KEYS[4], "r2", "changed")
    rows, more = await store.inspection.rows(ExportQuery(limit=4))
    assert ([kept.row.key for kept in rows], more) == (KEYS[:4], True)
    others, more = await store.inspection.rows(ExportQuery(KEYS[3]))
    assert not more and {kept.row.version for kept in rows + others} == {(0, 1), (0, 2)}
    assert [kept.row for kept in rows + others] == [record.row for record in await everything(store)]
    for kept in rows + others:
        row = kept.row
        assert row.digest == kept.digest == kept.content and kept.is_projected
        assert await store.inspection.rows(ExportQuery(keys=(row.key,))) == ([kept], False)
        assert kept in (await store.inspection.rows(ExportQuery(buckets=(bucket_of(row.key),))))[0]


async def test_rows_come_by_about_one_mebibyte(store: StorePorts) -> None:
    await store.transfers.apply([record_of(row_of(key, (0, 1), store.store, padding="200000")) for key in KEYS[:12]])
    first, more = await store.inspection.rows(ExportQuery(limit=100))
    assert more and 2 <= len(first) <= 7


async def test_a_census_counts_rows_and_what_is_owned(store: StorePorts) -> None:
    other = store.store.other
    await own(store, KEYS)
    rows = [row_of(key, (0, 1), store.store if number % 3 else other) for number, key in enumerate(KEYS)]
    await store.transfers.apply([record_of(row) for row in rows])
    await store.transfers.release_bucket(bucket_of(KEYS[0]), other)
    owned = sum(bucket_owner.owner is store.store for bucket_owner in await store.transfers.bucket_owners())

    async def census_is_known() -> bool:
        return await store.inspection.census() == (30, 20, owned, 0)

    await eventually(census_is_known)


async def test_a_base_survives(store: StorePorts) -> None:
    row = row_of(KEY, (2, 9), store.store.other)
    seized = type(row)(**{**{name: getattr(row, name) for name in row.__slots__}, "bases": (row.version,)})
    await store.transfers.apply([record_of(seized)])
    assert (await store.records.read(KEY)).row == seized


async def test_many_records_at_once(store: StorePorts) -> None:
    keys = [f"sandboxes/{number:04d}" for number in range(1000)]
    records = [record_of(row_of(key, (0, 1), store.store), served_of("r", (0, 1), b"x")) for key in keys]
    assert await store.transfers.apply(records) == (1000, 0)
    assert await store.transfers.apply(records) == (0, 1000)
    assert [record.row.key for record in await everything(store)] == keys
    some = [found.row.key for found in await store.records.read_many(keys) if found.row]
    assert some == keys


async def test_a_bucket_is_released_by_its_owner_alone_and_adopted_by_the_store_that_it_names(
    store: StorePorts,
) -> None:
    me, other = store.store, store.store.other
    bucket = bucket_of(KEYS[0])
    await store.transfers.release_bucket(bucket, other)  # If it is this store's.
    (before,) = await store.transfers.bucket_owners([bucket])
    assert await store.transfers.release_bucket(bucket, other) == before
    assert await store.transfers.adopt_bucket(replace(before, version=before.version + 1, owner=other)) == (
        False,
        before,
    )
    assert (await store.transfers.bucket_owners([bucket])) == [before]
    mine = replace(before, version=before.version + 1, owner=me)
    assert await store.transfers.adopt_bucket(mine) == (True, mine)
    assert await store.transfers.release_bucket(bucket, other) == replace(mine, version=mine.version + 1, owner=other)


async def test_each_of_many_buckets_is_released_and_adopted_by_itself(store: StorePorts) -> None:
    me, other = store.store, store.store.other
    first, second, third = buckets = [900, 3, 7]
    await store.transfers.release_buckets(buckets, other)  # Those that are this store's.
    before = {one.bucket: one for one in await store.transfers.bucket_owners(buckets)}
    mine = replace(before[second], version=before[second].version + 1, owner=me)
    theirs = replace(before[first], version=before[first].version + 1, owner=other)
    late = replace(before[third], owner=me)
    adopted = await store.transfers.adopt_buckets([theirs, mine, late])
    assert adopted == [(False, before[first]), (True, mine), (False, before[third])]
    released = replace(mine, version=mine.version + 1, owner=other)
    assert await store.transfers.release_buckets(buckets, other) == [before[first], released, before[third]]
    assert await store.transfers.bucket_owners(buckets) == [released, before[third], before[first]]
