"""The contract of stores for terms: seizure, late and lower records, the journal of conflicts, permission to serve."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from libs.contract.pages import Filter, Page
from libs.ownership.errors import NotOwner, OutboxFull
from libs.ownership.limits import MAX_PAYLOAD_BYTES
from libs.ownership.model import NEVER, Answered, BucketOwner, Record, Row, Store, Version, bucket_of
from libs.ownership.orders import ForeignControl, LateOrder, Order
from libs.ownership.terms import RowTooLarge, SeizureRefused, next_term
from libs.ownership.wire import record_of_event
from libs.store.inspection import ExportQuery
from libs.store.limits import OutboxLimits
from libs.store.port import Applied, FeedStep, Position, StorePorts, UnknownPosition
from libs.store.recovery import Conflict, FencedAnew, FencedAt, Identity, StillHidden, Why
from tests.contracts.conftest import MakeStore
from tests.contracts.store_adapters import everything, own, put, record_of, row_of, served_of, word_of

KEY, OTHER = "sandboxes/a", "sandboxes/b"
BUCKET = bucket_of(KEY)


def my_term(store: StorePorts) -> int:
    return next_term(0, store.store)


def their_term(store: StorePorts) -> int:
    return next_term(0, store.store.other)


def arrived(store: StorePorts, term: int, revision: int, base: tuple[int, int] | None, word: str = "theirs") -> Record:
    """A record that the other store made."""
    row = row_of(KEY, (term, revision), store.store.other, word)
    return record_of(replace(row, bases=(Version(*base),) if base else ()))


async def row_at(store: StorePorts, key: str = KEY) -> Row | None:
    return (await store.records.read(key)).row


async def seized(store: StorePorts, revision: int = 3) -> BucketOwner:
    """A record that the other store had, at that revision, and its bucket, taken from it."""
    await store.transfers.apply([arrived(store, 0, revision, None)])
    return await store.seizures.seize(BUCKET, my_term(store))


async def taken(store: StorePorts, bucket_version: int = 9) -> None:
    """The bucket was seized by the other store."""
    await store.seizures.take_terms([BucketOwner(BUCKET, their_term(store), bucket_version, store.store.other)])


async def conflicts(store: StorePorts) -> list[tuple[str, Version, Why]]:
    return [(one.key, one.version, one.why) for one in await store.seizures.conflicts(10)]


async def test_a_seizure_takes_the_bucket_and_every_row_and_tells_the_log(store: StorePorts) -> None:
    (before,) = await store.transfers.bucket_owners([BUCKET])
    after = await seized(store)
    term = my_term(store)
    assert after == BucketOwner(BUCKET, term, before.version + 1, store.store)
    assert await store.transfers.bucket_owners([BUCKET]) == [after]
    row = await row_at(store)
    assert row is not None
    assert (row.version, row.owner, row.bases, row.write_version) == ((term, 4), store.store, ((0, 3),), (0, 3))
    (entry,) = await store.outbox.pull(10, 0)
    event = record_of_event(entry.event)
    assert (event.row, event.origin) == (row, store.store)
    assert [one.digest for one in await store.inspection.digests([BUCKET])] == [row.digest]


async def test_a_seizure_again_changes_nothing(store: StorePorts) -> None:
    after = await seized(store)
    assert await store.seizures.seize(BUCKET, my_term(store)) == after
    assert (await store.outbox.depth()).entries == 1


async def test_a_seizure_in_a_term_of_the_other_store_is_refused(store: StorePorts) -> None:
    with pytest.raises(SeizureRefused, match="is not valid"):
        await store.seizures.seize(BUCKET, their_term(store))


async def test_a_seized_record_goes_on_in_its_term_and_its_event_tells_the_requests(store: StorePorts) -> None:
    record = arrived(store, 0, 3, None)
    await store.transfers.apply([replace(record, served=(served_of("r1", (0, 3), b"done"),))])
    await store.seizures.seize(BUCKET, my_term(store))
    again = await put(store, KEY, "r1", "again")
    assert isinstance(again, Answered) and again.version == (0, 3)
    (entry,) = await store.outbox.pull(10, 0)
    assert [one.request_id for one in record_of_event(entry.event).served] == ["r1"]
    changed = await put(store, KEY, "r2", "mine")
    assert changed.version == (my_term(store), 5)
    row = await row_at(store)
    assert row is not None and row.bases == ((0, 3),)


async def test_each_seizure_adds_a_base_and_none_forgets_what_the_ones_before_had_seen(store: StorePorts) -> None:
    await seized(store)
    second = my_term(store) + 2
    await store.seizures.seize(BUCKET, second)
    row = await row_at(store)
    assert row is not None and (row.version, row.bases) == ((second, 5), ((0, 3), (my_term(store), 4)))
    unseen = arrived(store, 0, 4, None)
    assert await store.transfers.apply([arrived(store, 0, 3, None), unseen]) == Applied(0, 1)
    assert await conflicts(store) == [(KEY, Version(0, 4), Why.LATE)]


async def test_a_new_record_of_a_seized_bucket_begins_in_its_term(store: StorePorts) -> None:
    await store.seizures.seize(BUCKET, my_term(store))
    assert (await put(store, KEY, "r1", "new")).version == (my_term(store), 1)


async def test_a_full_outbox_stops_a_seizure_as_a_whole(make_store: MakeStore) -> None:
    async with make_store(OutboxLimits(entries=1)) as store:
        await own(store, [OTHER])
        await put(store, OTHER, "r1", "one")
        await store.transfers.apply([arrived(store, 0, 3, None)])
        # The reserve is as large as the store, which has two rows: it is used up.
        for revision in (2, 4):
            assert (await store.transfers.release([OTHER], store.store.other, create=False)).results[0].record
            await store.transfers.apply([record_of(row_of(OTHER, (0, revision + 1), store.store))])
        (before,) = await store.transfers.bucket_owners([BUCKET])
        with pytest.raises(OutboxFull):
            await store.seizures.seize(BUCKET, my_term(store))
        row = await row_at(store)
        assert row is not None and row.version == (0, 3)
        assert await store.transfers.bucket_owners([BUCKET]) == [before]


async def test_a_late_record_that_the_seizer_had_seen_is_old(store: StorePorts) -> None:
    await seized(store)
    step = FeedStep((Position(0, 0, 1),))
    assert await store.transfers.apply([arrived(store, 0, 3, None)], step) == (0, 1)
    assert await conflicts(store) == []


async def test_a_late_record_that_the_seizer_had_not_seen_is_journaled(store: StorePorts) -> None:
    await seized(store)
    late = replace(arrived(store, 0, 4, None, "late"), served=(served_of("r9", (0, 4), b"x"),))
    step = FeedStep((Position(0, 0, 1),))
    assert await store.transfers.apply([late], step) == (0, 0)
    assert await conflicts(store) == [(KEY, Version(0, 4), Why.LATE)]
    (conflict,) = await store.seizures.conflicts(10)
    assert record_of_event(conflict.event) == late
    state = await store.feed.state()
    assert (state.journaled, state.read) == (1, 1)
    row = await row_at(store)
    assert row is not None and word_of(row.payload) == "theirs"
    # Its served request has no effect here: a retry executes it.
    assert not isinstance(await put(store, KEY, "r9", "again"), Answered)


async def test_late_and_new_records_of_one_batch_are_each_judged(store: StorePorts) -> None:
    await seized(store)
    fresh = record_of(row_of("sandboxes/c", (0, 1), store.store.other))
    newer = arrived(store, my_term(store), 9, (0, 3), "newer")
    late = [arrived(store, 0, revision, None) for revision in (2, 4, 5)]
    step = FeedStep((Position(0, 0, 5),))
    assert await store.transfers.apply([late[1], newer, fresh, late[0], late[2]], step) == (2, 1)
    assert await conflicts(store) == [(KEY, Version(0, 4), Why.LATE), (KEY, Version(0, 5), Why.LATE)]
    row = await row_at(store)
    assert row is not None and word_of(row.payload) == "newer"


async def test_a_late_record_without_a_row_is_journaled_once(store: StorePorts) -> None:
    await store.seizures.seize(BUCKET, my_term(store))
    for _ in range(2):
        assert await store.transfers.apply([arrived(store, 0, 1, None)]) == (0, 0)
    assert await conflicts(store) == [(KEY, Version(0, 1), Why.LATE)]
    assert await row_at(store) is None


async def test_a_late_record_is_left_to_the_store_that_has_seized_the_bucket(store: StorePorts) -> None:
    await taken(store)
    late = replace(arrived(store, 0, 4, None, "late"), served=(served_of("r9", (0, 4), b"x"),))
    assert await store.transfers.apply([late], FeedStep((Position(0, 0, 1),))) == (0, 1)
    assert await conflicts(store) == []
    # Its request may have lost its effect: a retry must not be told otherwise.
    home = replace(arrived(store, their_term(store), 9, None), origin=store.store.other)
    await store.transfers.apply([replace(home, row=replace(home.row, owner=store.store))])
    assert not isinstance(await put(store, KEY, "r9", "again"), Answered)


async def test_a_record_of_a_higher_term_brings_its_term(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "mine")
    assert await store.transfers.apply([arrived(store, their_term(store), 2, (0, 1))]) == (1, 0)
    (bucket_owner,) = await store.transfers.bucket_owners([BUCKET])
    assert bucket_owner == BucketOwner(BUCKET, their_term(store), 0, store.store.other)
    assert await conflicts(store) == []


async def test_a_row_of_a_lower_term_is_hidden_and_refuses_writes(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "mine")
    await taken(store)
    assert await row_at(store) is None
    assert await store.records.page(Page(Filter())) == []
    assert await store.records.page(Page(Filter(), keys=(KEY,))) == []
    assert await everything(store) == []
    assert (await store.inspection.export(ExportQuery(buckets=(BUCKET,))))[0] == []
    with pytest.raises(NotOwner):
        await put(store, KEY, "r2", "again")
    (result,) = (await store.transfers.release([KEY], store.store.other, create=True)).results
    assert result.record is None


async def test_a_row_that_the_seizer_had_seen_is_replaced(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "mine")
    await taken(store)
    theirs = arrived(store, their_term(store), 2, (0, 1), "seized")
    assert await store.transfers.apply([theirs]) == (1, 0)
    assert await row_at(store) == theirs.row
    assert await conflicts(store) == []


async def test_a_row_that_the_seizer_had_not_seen_is_journaled_and_its_requests_are_forgotten(
    store: StorePorts,
) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "one")
    await put(store, KEY, "r2", "two")
    await taken(store)
    theirs = arrived(store, their_term(store), 2, (0, 1), "seized")
    theirs = replace(theirs, served=(served_of("r1", (0, 1), b"one"),))
    assert await store.transfers.apply([theirs]) == (1, 0)
    assert await conflicts(store) == [(KEY, Version(0, 2), Why.REPLACED)]
    (conflict,) = await store.seizures.conflicts(10)
    assert word_of(record_of_event(conflict.event).row.payload) == "two"
    # After its return, the record answers its served requests, and executes the others.
    await store.transfers.apply([replace(theirs, row=replace(theirs.row, version=Version(9, 9), owner=store.store))])
    assert isinstance(await put(store, KEY, "r1", "again"), Answered)
    assert not isinstance(await put(store, KEY, "r2", "again"), Answered)


async def test_rows_that_the_seizer_does_not_have_are_settled_into_the_journal(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "mine")
    await store.recovery.fence("lost")
    await taken(store)
    with pytest.raises(StillHidden):
        await store.recovery.reopen()
    assert (await store.recovery.standing()).fence_reason == "lost"
    assert [await store.seizures.settle(10) for _ in range(2)] == [1, 0]
    assert await conflicts(store) == [(KEY, Version(0, 1), Why.LEFT)]
    await store.recovery.reopen()
    standing = await store.recovery.standing()
    assert (standing.fence_reason, standing.conflicts) == ("", 1)
    assert await store.inspection.digests([BUCKET]) == []


async def test_a_bucket_owner_does_not_come_while_a_row_is_hidden(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "mine")
    await taken(store)
    wanted = BucketOwner(BUCKET, their_term(store), 10, store.store)
    assert (await store.transfers.adopt_bucket(wanted))[0] is False
    await store.seizures.settle(10)
    (left,) = await store.seizures.conflicts(10)
    assert await store.seizures.resolve(left.key, left.version, "made again by hand")
    assert await store.transfers.adopt_bucket(wanted) == (True, wanted)


async def test_a_bucket_owner_neither_leaves_nor_comes_while_a_conflict_is_not_resolved(store: StorePorts) -> None:
    bucket_owner = await store.seizures.seize(BUCKET, my_term(store))
    await store.transfers.apply([arrived(store, 0, 1, None)])
    assert await store.transfers.release_bucket(BUCKET, store.store.other) == bucket_owner
    assert not await store.seizures.resolve(KEY, Version(0, 1), "")
    assert not await store.seizures.resolve(KEY, Version(0, 2), "no such")
    assert await store.seizures.resolve(KEY, Version(0, 1), "not wanted")
    assert not await store.seizures.resolve(KEY, Version(0, 1), "twice")
    (known,) = await store.seizures.conflicts(10)
    assert isinstance(known, Conflict) and known.resolution == "not wanted"
    released = await store.transfers.release_bucket(BUCKET, store.store.other)
    assert released.owner is store.store.other
    assert not (await store.transfers.adopt_bucket(replace(bucket_owner, term=0, version=99)))[0]


async def test_lower_bucket_owners_are_not_taken(store: StorePorts) -> None:
    await taken(store, 9)
    await taken(store, 4)
    assert (await store.transfers.bucket_owners([BUCKET]))[0].version == 9


async def test_a_fence_stays_until_the_store_is_opened_again(make_store: MakeStore) -> None:
    async with make_store() as store:
        await store.recovery.fence("an old backup")
        await store.recovery.fence("another reason")
        assert (await store.recovery.standing()).fence_reason == "an old backup"
        if store.backend == "memory":
            return
    async with make_store() as store:
        assert (await store.recovery.standing()).fence_reason == "an old backup"
        await store.recovery.reopen()
        standing = await store.recovery.standing()
        assert standing.fence_reason == "" and standing.opened_at == standing.now.database


async def test_changes_of_a_store_are_counted_and_never_fall(store: StorePorts) -> None:
    async def changes() -> int:
        return (await store.recovery.standing()).now.changes

    await own(store, [KEY])
    seen = [await changes()]
    for request in range(3):
        await put(store, KEY, f"r{request}", "w")
        seen.append(await changes())
    await store.transfers.release([KEY], store.store.other, create=False)
    seen.append(await changes())
    await store.transfers.release_bucket(BUCKET, store.store.other)
    seen.append(await changes())
    assert seen == sorted(set(seen)), "each change counts"


async def test_what_is_known_of_the_other_store_only_grows_unless_it_is_told_anew(store: StorePorts) -> None:
    async def known() -> Identity | None:
        return (await store.recovery.standing()).other

    assert await known() is None
    await store.recovery.note_other(Identity("here", 5))
    await store.recovery.note_other(Identity("here", 3))
    await store.recovery.note_other(Identity("elsewhere", 99))
    assert await known() == ("here", 5)
    await store.recovery.note_other(Identity("here", 6))
    assert await known() == ("here", 6)
    await store.recovery.note_other(Identity("elsewhere", 1), anew=True)
    assert await known() == ("elsewhere", 1)


async def test_a_feed_skips_forward_and_never_back(store: StorePorts) -> None:
    await store.transfers.apply([], FeedStep((Position(1, 0, 7),)))
    await store.recovery.skip_to({1: 5, 2: 9})
    assert (await store.feed.state()).next_offsets == {1: 7, 2: 9}


async def test_writes_and_a_seizure_at_once_leave_one_line_of_versions(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r0", "zero")
    writes = [put(store, KEY, f"r{number}", "w") for number in range(1, 12)]
    _, outcomes = await asyncio.gather(store.seizures.seize(BUCKET, my_term(store)), asyncio.gather(*writes))
    row = await row_at(store)
    assert row is not None and row.bases
    assert row.version == (my_term(store), 13)
    made = sorted([*(one.version.revision for one in outcomes), row.bases[-1].revision + 1])
    assert made == list(range(2, 14))
    events = [record_of_event(entry.event) for entry in await store.outbox.pull(100, 0)]
    assert [event.row.version.revision for event in events] == list(range(1, 14))


async def test_applies_and_a_seizure_at_once_leave_no_hidden_row(store: StorePorts) -> None:
    keys = [f"sandboxes/k{number}" for number in range(4000)]
    keys = [key for key in keys if bucket_of(key) == BUCKET]
    records = [record_of(row_of(key, (0, 1), Store.A)) for key in keys]
    assert len(records) > 1
    await asyncio.gather(
        *(store.transfers.apply([record]) for record in records), store.seizures.seize(BUCKET, my_term(store))
    )
    rows = [found.row for found in await store.records.read_many(keys)]
    journaled = {key for key, _, _ in await conflicts(store)}
    assert {row.key for row in rows if row is not None} | journaled == set(keys)
    assert await store.seizures.settle(10) == 0
    assert NEVER not in [base for row in rows if row is not None for base in row.bases]


async def test_a_place_of_a_watch_from_before_a_recovery_is_unknown_after_it(store: StorePorts) -> None:
    place = await store.watch.now()
    await store.recovery.reopen()
    assert (await store.watch.since(place, 0)).keys == ()
    await store.recovery.fence("it went back")
    await store.recovery.reopen()
    with pytest.raises(UnknownPosition):
        await store.watch.since(place, 0)
    assert (await store.watch.since(await store.watch.now(), 0)).keys == ()


async def with_conflict(store: StorePorts, term: int = 0) -> None:
    """The bucket has an open conflict in this store's journal. The store owns the bucket in its next term."""
    await store.seizures.seize(BUCKET, next_term(term, store.store))
    await store.transfers.apply([arrived(store, 0, 1, None)])
    assert await store.seizures.disputed([BUCKET]) == {BUCKET}


async def owner_of_bucket(*stores: StorePorts) -> list[Store]:
    """The stores that would accept a create."""
    return [one.store for one in stores if (await one.transfers.bucket_owners([BUCKET]))[0].owner is one.store]


async def test_a_bucket_with_a_conflict_is_named_until_a_person_has_resolved_it(store: StorePorts) -> None:
    assert await store.seizures.disputed() == set()
    await with_conflict(store)
    assert await store.seizures.disputed() == {BUCKET}
    assert await store.seizures.disputed([BUCKET + 1]) == set()
    assert await store.seizures.resolve(KEY, Version(0, 1), "not wanted")
    assert await store.seizures.disputed([BUCKET]) == set()


async def disputed_release(store: StorePorts, across: StorePorts) -> BucketOwner:
    """The other store has released the bucket to this one, whose journal has an open conflict of it."""
    await with_conflict(store)
    (mine,) = await store.transfers.bucket_owners([BUCKET])
    there = replace(mine, version=mine.version + 1, owner=across.store)
    await across.seizures.take_terms([there])
    assert await store.seizures.resolve(KEY, Version(0, 1), "away with it")
    await store.transfers.release_bucket(BUCKET, across.store)
    await store.transfers.apply([arrived(store, 0, 2, None)])
    released = await across.transfers.release_bucket(BUCKET, store.store)
    assert await store.transfers.adopt_bucket(released) == (False, there)
    assert await owner_of_bucket(store, across) == []
    return released


async def test_an_open_conflict_keeps_its_own_bucket_alone(store: StorePorts, across: StorePorts) -> None:
    disputed = await disputed_release(store, across)
    (other,) = await store.transfers.bucket_owners([BUCKET + 1])
    mine = replace(other, version=other.version + 1, owner=store.store)
    (kept, _), adopted = await store.transfers.adopt_buckets([disputed, mine])
    assert (kept, adopted) == (False, (True, mine))
    assert await store.transfers.adopt_buckets([disputed], despite_conflicts=True) == [(True, disputed)]
    released = replace(mine, version=mine.version + 1, owner=across.store)
    assert await store.transfers.release_buckets([BUCKET + 1, BUCKET], across.store) == [released, disputed]


async def test_a_bucket_that_its_target_may_not_adopt_goes_back_to_the_releaser(
    store: StorePorts, across: StorePorts
) -> None:
    released = await disputed_release(store, across)
    declined = await store.transfers.return_bucket(released)
    assert declined == replace(released, version=released.version + 1, owner=across.store)
    assert await across.transfers.adopt_bucket(declined) == (True, declined)
    assert await owner_of_bucket(store, across) == [across.store]


async def test_a_declined_bucket_is_not_adopted_later_and_is_declined_once(
    store: StorePorts, across: StorePorts
) -> None:
    released = await disputed_release(store, across)
    changes = (await store.recovery.standing()).now.changes
    declined = await store.transfers.return_bucket(released)
    assert declined is not None
    assert (await store.recovery.standing()).now.changes > changes
    assert await store.transfers.return_bucket(released) is None
    assert await store.transfers.adopt_bucket(released, despite_conflicts=True) == (False, declined)


async def test_an_adopted_bucket_is_not_declined(store: StorePorts, across: StorePorts) -> None:
    released = await disputed_release(store, across)
    assert await store.transfers.adopt_bucket(released, despite_conflicts=True) == (True, released)
    assert await store.transfers.return_bucket(released) is None
    assert await owner_of_bucket(store, across) == [store.store]
    # Nor after it has been released again: the releaser does not have the records that were made meanwhile.
    assert await store.seizures.resolve(KEY, Version(0, 2), "away with it")
    again = await store.transfers.release_bucket(BUCKET, across.store)
    assert await store.transfers.return_bucket(released) is None
    assert await store.transfers.bucket_owners([BUCKET]) == [again]


async def test_a_releaser_adopts_a_declined_bucket_though_its_own_journal_has_a_conflict(
    store: StorePorts, across: StorePorts
) -> None:
    await with_conflict(store)
    assert await store.seizures.resolve(KEY, Version(0, 1), "away with it")
    (before,) = await store.transfers.bucket_owners([BUCKET])
    await across.seizures.take_terms([before])
    released = await store.transfers.release_bucket(BUCKET, across.store)
    await store.transfers.apply([arrived(store, 0, 2, None)])
    declined = await across.transfers.return_bucket(released)
    assert declined is not None
    assert (await store.transfers.adopt_bucket(declined))[0] is False
    assert await store.transfers.adopt_bucket(declined, despite_conflicts=True) == (True, declined)
    assert await owner_of_bucket(store, across) == [store.store]


async def test_an_adopt_and_a_return_at_once_leave_one_owner(store: StorePorts, across: StorePorts) -> None:
    for bucket in range(20):
        term = my_term(store)
        await store.seizures.seize(bucket, term)
        (mine,) = await store.transfers.bucket_owners([bucket])
        await across.seizures.take_terms([replace(mine, version=mine.version + 1, owner=across.store)])
        await store.transfers.release_bucket(bucket, across.store)
        released = await across.transfers.release_bucket(bucket, store.store)
        adopt, decline = store.transfers.adopt_bucket, store.transfers.return_bucket
        if bucket % 2:
            (adopted, _), declined = await asyncio.gather(adopt(released), decline(released))
        else:
            declined, (adopted, _) = await asyncio.gather(decline(released), adopt(released))
        assert adopted is (declined is None)


LARGE = str(MAX_PAYLOAD_BYTES)


async def test_a_bucket_with_a_row_that_no_event_can_carry_is_not_seized_and_the_row_is_named(
    store: StorePorts,
) -> None:
    large = row_of(KEY, (0, 3), store.store.other, padding=LARGE)
    await store.transfers.apply([record_of(large)])
    (before,) = await store.transfers.bucket_owners([BUCKET])
    with pytest.raises(RowTooLarge, match=f"{KEY} has {len(large.payload)} bytes"):
        await store.seizures.seize(BUCKET, my_term(store))
    assert await store.transfers.bucket_owners([BUCKET]) == [before]
    assert await row_at(store) == large
    assert (await store.outbox.depth()).entries == 0
    # The others can be seized, and this one when its owner has made the row smaller.
    assert (await store.seizures.seize(BUCKET + 1, my_term(store))).owner is store.store
    await store.transfers.apply([arrived(store, 0, 4, None)])
    assert (await store.seizures.seize(BUCKET, my_term(store))).owner is store.store


async def test_rows_that_no_event_can_carry_go_whole_to_the_journal_and_not_to_the_log(store: StorePorts) -> None:
    large = row_of(KEY, (0, 3), store.store, padding=LARGE)
    await store.transfers.apply([record_of(large)])
    await store.recovery.fence("lost")
    await taken(store)
    assert await store.seizures.settle(10) == 1
    await store.recovery.reopen()
    (conflict,) = await store.seizures.conflicts(10)
    assert record_of_event(conflict.event).row == large
    assert (await store.outbox.depth()).entries == 0


FIRST = Order(0, 1, 0, "control-1", "recover-1")


async def test_the_highest_order_of_a_recovery_is_kept_and_a_late_one_changes_nothing(make_store: MakeStore) -> None:
    async with make_store() as store:
        assert (await store.recovery.standing()).order is None
        await store.recovery.fence("being recovered", order=FIRST)
        await store.recovery.reopen(order=FIRST._replace(stage=10))
        for order in (FIRST, FIRST._replace(stage=9)):
            with pytest.raises(LateOrder, match="is late"):
                await store.recovery.fence("late", order=order)
            with pytest.raises(LateOrder):
                await store.recovery.take_order(order)
        assert (await store.recovery.standing()).fence_reason == ""
        if store.backend == "memory":
            return
    async with make_store() as store:
        with pytest.raises(LateOrder):
            await store.recovery.fence("late, after a restart", order=FIRST)
        second = FIRST._replace(number=2, job="recover-2")
        await store.recovery.fence("again", order=second)
        standing = await store.recovery.standing()
        assert (standing.fence_reason, standing.order) == ("again", second)
        with pytest.raises(LateOrder):
            await store.recovery.reopen(order=FIRST._replace(stage=10))
        assert (await store.recovery.standing()).fence_reason == "again"


async def test_an_order_of_another_control_store_is_refused_until_that_is_adopted(store: StorePorts) -> None:
    await store.recovery.take_order(FIRST._replace(number=7))
    for epoch in (0, 0):
        with pytest.raises(ForeignControl, match="adopt-control"):
            await store.recovery.fence("not mine", order=Order(epoch, 99, 0, "control-2", "recover-99"))
    adopted = Order(1, 1, 0, "control-2", "recover-1")
    await store.recovery.fence("adopted", order=adopted)
    assert (await store.recovery.standing()).order == adopted
    with pytest.raises(ForeignControl):
        await store.recovery.take_order(FIRST._replace(number=100))


async def test_a_fence_of_admission_keeps_where_the_store_stood(make_store: MakeStore) -> None:
    async with make_store() as store:
        await own(store, [KEY])
        await put(store, KEY, "r1", "w")
        await store.recovery.fence("evidence", since={3: 7})
        await store.recovery.fence("more of it", since={3: 9})
        at = (await store.recovery.standing()).fenced_at
        assert at is not None and at.next_offsets == {3: 7}
        assert 0 < at.changes <= (await store.recovery.standing()).now.changes
        await store.recovery.vouch(at.changes + 5)
        await store.recovery.vouch(at.changes)
        assert (await store.recovery.standing()).fenced_at == FencedAt(at.changes + 5, {3: 7})
        await store.recovery.fence("being recovered", order=FIRST)
        standing = await store.recovery.standing()
        assert (standing.fence_reason, standing.fenced_at) == ("evidence", None)
        await store.recovery.reopen()
        await store.recovery.fence("by hand")
        assert (await store.recovery.standing()).fenced_at is None


async def test_only_the_fence_that_was_looked_at_is_opened(store: StorePorts) -> None:
    await store.recovery.fence("evidence", since={})
    seen = await store.recovery.standing()
    await store.recovery.vouch(seen.now.changes + 1)
    await store.recovery.fence("being recovered", order=FIRST)
    with pytest.raises(FencedAnew, match="It was fenced: evidence"):
        await store.recovery.reopen(seen=seen)
    assert (await store.recovery.standing()).fence_reason == "evidence"
    again = await store.recovery.standing()
    await store.recovery.reopen(seen=again)
    await store.recovery.fence("gone once more")
    with pytest.raises(FencedAnew, match="now: gone once more"):
        await store.recovery.reopen(seen=again)
    assert (await store.recovery.standing()).fence_reason == "gone once more"
