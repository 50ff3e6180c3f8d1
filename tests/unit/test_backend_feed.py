"""Events of the log are applied once, counted completely, and never skipped."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from libs.backend import feed
from libs.backend.admission import AskOther
from libs.backend.arrivals import Arrivals
from libs.backend.feed import BATCH, UNPARK_SECONDS, ApplyLoop
from libs.clock import ManualClock
from libs.errors import LogAway
from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.identity import LogReplaced
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import UNREADABLE_HEADER, Event, EventLog
from libs.ownership.model import (
    BUCKETS,
    NEVER,
    BucketOwner,
    BulkRelease,
    Record,
    Row,
    Served,
    Store,
    Version,
    bucket_of,
)
from libs.ownership.rules import bulk_entry
from libs.ownership.terms import TERMS_TYPE
from libs.ownership.wire import STORE_NUMBERS, bucket_to_pb, event_of, event_of_bulk, read_event
from libs.pb.baton.replication.v1 import recovery_pb2 as rpb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.rpc.errors import reason_of
from libs.sandboxes.validation import COLLECTION
from libs.store.port import Applied, FeedState, FeedStep, Parked, Position, UnknownPartition
from tests.system.store import OneStore, new, refusal, running_store
from tests.waiting import eventually, loop_turns


def record(
    made_id: str, revision: int = 1, origin: Store = Store.A, made_seconds: float = 0.0, term: int = 0
) -> Record:
    key, version = COLLECTION + made_id, Version(term, revision)
    payload = Sandbox(name=key).SerializeToString()
    return Record(Row(key, version, origin, version, True, payload, 2), (), origin, made_seconds)


def event(made_id: str, revision: int = 1, origin: Store = Store.A, made_seconds: float = 0.0, term: int = 0) -> Event:
    return Event(COLLECTION + made_id, event_of(record(made_id, revision, origin, made_seconds, term)))


def heartbeat(store: Store, time: float) -> Event:
    return Event("", b"", HeaderWriter(store.value, "baton.heartbeat.v1").write("", (0, 0), time))


@asynccontextmanager
async def applying(log: MemoryEventLog | None = None, ask_other: AskOther | None = None) -> AsyncIterator[OneStore]:
    """Store B with its feed running."""
    async with running_store(Store.B, log=log, ask_other=ask_other) as at:
        task = asyncio.create_task(at.feed.loop.run())
        try:
            yield at
        finally:
            task.cancel()
            await asyncio.wait([task])


async def state_when(at: OneStore, read: int) -> FeedState:
    async def reached() -> FeedState | None:
        state = await at.store.feed.state()
        return state if state.read >= read else None

    found = await eventually(reached)
    assert found is not None
    return found


async def test_every_event_is_applied_old_or_parked_and_the_counters_add_up() -> None:
    async with applying() as at:
        await at.log.append([event("a"), event("b", 2), event("b", 1), event("a", 1)])
        await at.log.append([event("c", 1, Store.B), heartbeat(Store.A, 1.0), Event("d", b"\xff"), Event("", b"")])
        state = await state_when(at, 8)
        assert (state.applied, state.old, state.parked, state.journaled) == (2, 4, 2, 0)
        assert state.read == 8
        assert sum(state.next_offsets.values()) == 8
        found = await at.store.records.read(COLLECTION + "b")
        assert found.row is not None and found.row.version == Version(0, 2)
        assert (await at.store.records.read(COLLECTION + "c")).row is None


async def test_an_event_that_cannot_be_read_is_parked_with_its_reason_and_the_feed_goes_on() -> None:
    async with applying(MemoryEventLog(1)) as at:
        await at.log.append([Event("bad", b"\xff\xff"), Event("other", event("key").value), event("good")])
        await state_when(at, 3)
        first, second = await at.store.feed.parked(10)
        assert (first.key, first.offset, first.event) == ("bad", 0, b"\xff\xff")
        assert "not a serialized record" in first.reason
        assert "'sandboxes/key'" in second.reason and "'other'" in second.reason
        assert (await at.store.records.read(COLLECTION + "good")).row is not None
        assert at.feed.trouble == ""


async def test_a_payload_of_an_unknown_schema_version_is_kept_as_it_is() -> None:
    async with applying() as at:
        row = Row(COLLECTION + "a", Version(0, 1), Store.A, NEVER, True, b"\xff\xff not a sandbox", 99)
        await at.log.append([Event(row.key, event_of(Record(row, (), Store.A, 0.0)))])
        assert (await state_when(at, 1)).applied == 1


def changed(**fields: Any) -> Event:
    """An event that parses, of a record that this contract, or no store, can have."""
    right = record("poison")
    row = replace(right.row, **fields)
    return Event(row.key, event_of(replace(right, row=row)))


POISON = {
    "payload: it is not a sandbox": changed(payload=b"\xff" * 5),
    "payload: its sandbox is named 'sandboxes/poison', not 'sandboxes/b'": changed(key="sandboxes/b"),
    "key: 'elsewhere/a' is not sandboxes/ and an id": changed(key="elsewhere/a"),
    "key: 'sandboxes/' is not": changed(key="sandboxes/"),
    "version: (0, 9223372036854775807) is not valid: 0 to": changed(version=Version(0, 2**63 - 1)),
    "version: (4611686018427387904, 1) is not valid: 0 to": changed(version=Version(2**62, 1)),
    "write_version: (0, 3) is above version (0, 2)": changed(version=Version(0, 2), write_version=Version(0, 3)),
    "version: term 2 of bucket": changed(version=Version(2, 1)),
    "payload: it is not a sandbox: ": changed(payload=b"\xff", schema_version=1),
    "headers: a name is not UTF-8": replace(
        event("poison"), headers=((UNREADABLE_HEADER, b"headers: a name is not UTF-8"), ("\ufffd", b"1"))
    ),
}


@pytest.mark.parametrize("why", POISON)
async def test_an_event_of_a_record_that_cannot_be_is_parked_with_its_message_and_changes_nothing(why: str) -> None:
    async with applying(MemoryEventLog(1)) as at:
        poison = POISON[why]
        headers = poison.headers or HeaderWriter("A", "baton.record.v1").write(poison.key, (0, 1), 1.0)
        await at.log.append([event("poison", 3), replace(poison, headers=headers), event("behind")])
        state = await state_when(at, 3)
        assert (state.applied, state.parked, state.parked_now) == (2, 1, 1)
        (parked,) = (await at.replication.ListParked(pb.ListParkedRequest())).parked
        assert parked.reason.startswith(why)
        assert (parked.partition, parked.offset, parked.topic, parked.event) == (0, 1, "memory", poison.value)
        assert tuple((one.name, one.value) for one in parked.headers) == headers
        found = await at.store.records.read(COLLECTION + "poison")
        assert found.row is not None and found.row == record("poison", 3).row
        assert not (await at.store.recovery.standing()).fence_reason
        again = await at.replication.RetryParked(pb.RetryParkedRequest(partition=0, offset=1))
        assert again.found and again.reason.startswith(why)
        at.clock.advance(UNPARK_SECONDS)
        await at.log.append([event("last")])
        await state_when(at, 4)
        assert (await at.store.feed.state()).parked_now == 1


def seized(term: int) -> AskOther:
    async def answer() -> rpb.GetStandingResponse:
        bucket_owners = [BucketOwner(bucket, term, 1, Store.A) for bucket in range(BUCKETS)]
        return rpb.GetStandingResponse(store=STORE_NUMBERS[Store.A], bucket_owners=map(bucket_to_pb, bucket_owners))

    return answer


def terms(made_id: str, term: int) -> Event:
    buckets = [rpb.Terms.Bucket(bucket=bucket_of(COLLECTION + made_id), term=term)]
    value = rpb.Terms(store=STORE_NUMBERS[Store.A], buckets=buckets).SerializeToString()
    return Event("", value, HeaderWriter("A", TERMS_TYPE).write("", (0, 0), 1.0))


async def test_a_higher_term_that_the_other_store_confirms_fences_this_one_and_is_applied() -> None:
    async with applying(MemoryEventLog(1), seized(2)) as at:
        await at.log.append([event("a", 1, term=2), event("b", 1, term=4)])
        state = await state_when(at, 2)
        assert (state.applied, state.parked_now) == (1, 1)
        assert "seized" in (await at.store.recovery.standing()).fence_reason


async def test_a_parked_record_is_applied_once_a_terms_event_has_confirmed_its_term() -> None:
    async with applying(MemoryEventLog(1)) as at:
        await at.log.append([event("a", 1, term=2)])
        assert (await state_when(at, 1)).parked_now == 1
        assert not (await at.store.recovery.standing()).fence_reason
        await at.log.append([terms("a", 2)])
        await state_when(at, 2)
        assert "seized" in (await at.store.recovery.standing()).fence_reason
        at.clock.advance(UNPARK_SECONDS)

        async def applied() -> bool:
            return (await at.store.records.read(COLLECTION + "a")).row is not None

        await eventually(applied)
        assert (await at.store.feed.state()).parked_now == 0


@pytest.mark.parametrize(("bucket", "term"), [(BUCKETS, 2), (-1, 2), (0, 2**62), (0, 3), (0, -2)])
async def test_a_terms_event_that_no_store_can_have_made_is_passed(bucket: int, term: int) -> None:
    async with applying(MemoryEventLog(1)) as at:
        value = rpb.Terms(
            store=STORE_NUMBERS[Store.A], buckets=[rpb.Terms.Bucket(bucket=bucket, term=term)]
        ).SerializeToString()
        await at.log.append([replace(terms("a", 2), value=value), event("behind")])
        assert (await state_when(at, 2)).applied == 1
        assert not (await at.store.recovery.standing()).fence_reason


async def test_parked_events_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with applying(MemoryEventLog(1)) as at:
        # An earlier release that cannot read newer events: its own parser is put in place.
        import libs.backend.arrivals as module

        monkeypatch.setattr(module, "read_event", lambda key, value: read_event("another", value))
        await at.log.append([event("a")])
        assert (await state_when(at, 1)).parked_now == 1
        monkeypatch.setattr(module, "read_event", read_event)
        at.clock.advance(UNPARK_SECONDS)

        async def unparked() -> bool:
            return (await at.store.feed.state()).parked_now == 0

        await eventually(unparked)
        assert (await at.store.records.read(COLLECTION + "a")).row is not None
        assert (await at.store.feed.state()).read == 1


async def test_events_that_can_never_be_applied_do_not_keep_later_ones_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "UNPARK_EVENTS", 2)
    async with applying(MemoryEventLog(1)) as at:
        bad = tuple(Parked(0, offset, "bad", "why", b"\xff") for offset in range(3))
        good = Parked(0, 3, COLLECTION + "a", "why", event("a").value)
        await at.store.transfers.apply([], FeedStep((), (*bad, good)))

        async def tried() -> bool:
            at.clock.advance(UNPARK_SECONDS)
            return (await at.store.feed.state()).parked_now == 3

        await eventually(tried)
        assert (await at.store.records.read(COLLECTION + "a")).row is not None

        # Then the first ones are tried again.
        monkeypatch.setattr(
            "libs.backend.arrivals.read_event", lambda key, value: read_event(COLLECTION + "a", event("a").value)
        )

        async def tried_anew() -> bool:
            at.clock.advance(UNPARK_SECONDS)
            return (await at.store.feed.state()).parked_now == 0

        await eventually(tried_anew)


async def test_a_feed_behind_the_log_s_begin_stands_still_and_says_why() -> None:
    log = MemoryEventLog(1)
    await log.append([event("a"), event("b")])
    await log.trim(0, 1)
    async with applying(log) as at:
        await eventually(lambda: "LOG_OFFSET_GONE" in at.feed.trouble)
        assert (await at.store.feed.state()).read == 0
        assert (await at.store.records.read(COLLECTION + "b")).row is None


async def test_a_log_that_is_away_shows_as_trouble_until_it_is_back() -> None:
    log = MemoryEventLog(1)
    log.reachable = False
    async with applying(log) as at:
        await eventually(lambda: "LOG_UNAVAILABLE" in at.feed.trouble)
        log.reachable = True
        await log.append([event("a")])
        await state_when(at, 1)
        await eventually(lambda: at.feed.trouble == "")


async def test_a_restart_reads_on_where_the_store_stands() -> None:
    log = MemoryEventLog(1)
    async with running_store(Store.B, log=log) as at:
        for round_ in (1, 2):
            await log.append([event("a", round_)])
            task = asyncio.create_task(at.feed.loop.run())
            await state_when(at, round_)
            task.cancel()
            await asyncio.wait([task])
        state = await at.store.feed.state()
        assert (state.applied, state.old) == (2, 0)


async def test_a_partition_that_somebody_else_has_moved_is_claimed_again() -> None:
    log = MemoryEventLog(1)
    await log.append([event("a"), event("b")])
    async with running_store(Store.B, log=log) as at:
        positions = {0: 0}
        async with log.reader(positions) as reader:
            # Another process applies the first event meanwhile.
            step = FeedStep((Position(0, 0, 1),))
            assert await at.store.transfers.apply([record("a")], step) == Applied(1, 0)
            with pytest.raises(UnknownPartition):
                await at.feed.read_once(at.log, reader, positions)
            assert positions == {0: 0}
        task = asyncio.create_task(at.feed.loop.run())
        assert (await state_when(at, 2)).applied == 2
        task.cancel()
        await asyncio.wait([task])


async def test_the_positions_of_its_own_events_wait_for_other_events_or_a_moment() -> None:
    async with running_store(Store.B, log=MemoryEventLog(1)) as at:
        positions = {0: 0}
        async with at.log.reader(positions) as reader:
            await at.log.append([event("a", origin=Store.B), heartbeat(Store.A, 1.0)])
            await at.feed.read_once(at.log, reader, positions)
            assert ((await at.store.feed.state()).read, positions) == (0, {0: 0})
            await at.log.append([event("b")])
            await at.feed.read_once(at.log, reader, positions)
            state = await at.store.feed.state()
            assert ((state.applied, state.old), state.next_offsets, positions) == ((1, 2), {0: 3}, {0: 3})
            await at.log.append([event("c", origin=Store.B)])
            await at.feed.read_once(at.log, reader, positions)
            assert (await at.store.feed.state()).read == 3
            await at.feed.read_once(at.log, reader, positions)
            assert ((await at.store.feed.state()).read, positions) == (4, {0: 4})


async def test_a_log_that_is_replaced_while_positions_wait_is_noticed() -> None:
    log = MemoryEventLog(1)
    async with running_store(Store.B, log=log) as at:
        await log.append([event("a", origin=Store.B), event("b", origin=Store.B)])
        positions = {0: 0}
        async with at.log.reader(positions) as reader:
            await at.feed.read_once(at.log, reader, positions)
            assert positions == {0: 0}
            await log.replace()
            await fill(log, 3)
            with pytest.raises(LogReplaced):
                await at.feed.read_once(at.log, reader, positions)
            assert (await at.store.feed.state()).applied == 0, "nothing of the other log is applied"


async def test_many_events_are_applied_in_batches() -> None:
    async with applying(MemoryEventLog(2)) as at:
        count = 2 * BATCH + 7
        await at.log.append([event(f"k{number}") for number in range(count)])
        assert (await state_when(at, count)).applied == count


async def test_how_far_behind_it_is_comes_from_events_and_heartbeats_of_the_other_store() -> None:
    async with running_store(Store.B, log=MemoryEventLog(1)) as at:
        positions = {0: 0}
        async with at.log.reader(positions) as reader:
            assert at.feed.behind_seconds() is None
            now = at.clock.now()
            await at.log.append([heartbeat(Store.B, now), event("a", made_seconds=now - 9.0)])
            await at.feed.read_once(at.log, reader, positions)
            assert at.feed.behind_seconds() == pytest.approx(9.0)
            assert at.feed.last_event_age_seconds == pytest.approx(9.0)
            await at.log.append([heartbeat(Store.A, now - 1.0)])
            await at.feed.read_once(at.log, reader, positions)
            assert at.feed.behind_seconds() == pytest.approx(1.0)
            at.clock.advance(2.0)
            assert at.feed.behind_seconds() == pytest.approx(3.0)


SECONDS_OF_2099 = 4.08e9


def opened(at: OneStore) -> Callable[[], Awaitable[EventLog]]:
    async def open_log() -> EventLog:
        return at.log

    return open_log


class Jumping(ManualClock):
    """A clock whose wall time jumps; its monotonic time does not."""

    jumped = 0.0

    def now(self) -> float:
        return super().now() + self.jumped


async def test_how_far_behind_it_is_does_not_hang_on_a_heartbeat_of_the_future() -> None:
    async with running_store(Store.B, log=MemoryEventLog(1)) as at:
        clock = Jumping()
        feed = ApplyLoop(at.store, opened(at), clock, at.feed.arrivals)
        positions = {0: 0}
        async with at.log.reader(positions) as reader:
            await at.log.append([heartbeat(Store.A, SECONDS_OF_2099)])
            await feed.read_once(at.log, reader, positions)
            assert feed.clock_ahead_seconds > 1e9
            clock.advance(60.0)
            assert feed.behind_seconds() == pytest.approx(60.0)
            await at.log.append([heartbeat(Store.A, clock.now() - 1.0)])
            await feed.read_once(at.log, reader, positions)
            assert feed.behind_seconds() == pytest.approx(1.0)
            assert feed.clock_ahead_seconds == 0.0


@pytest.mark.parametrize("hours", [-24.0, 24.0])
async def test_how_far_behind_it_is_does_not_change_when_its_own_clock_jumps(hours: float) -> None:
    async with running_store(Store.B, log=MemoryEventLog(1)) as at:
        clock = Jumping()
        feed = ApplyLoop(at.store, opened(at), clock, at.feed.arrivals)
        positions = {0: 0}
        async with at.log.reader(positions) as reader:
            await at.log.append([heartbeat(Store.A, clock.now() - 1.0)])
            await feed.read_once(at.log, reader, positions)
            clock.jumped = hours * 3600
            clock.advance(2.0)
            assert feed.behind_seconds() == pytest.approx(3.0)


async def test_apply_makes_no_event() -> None:
    async with applying() as at:
        await at.log.append([event("a")])
        await state_when(at, 1)
        assert (await at.store.outbox.depth()).entries == 0


async def test_what_one_store_does_arrives_at_the_other() -> None:
    log = MemoryEventLog(4)
    async with running_store(Store.A, log=log) as a, applying(log) as b:
        await a.client.CreateSandbox(new("one"))
        entries = await a.store.outbox.pull(10, 0.0)
        await log.append([Event(entry.key, entry.event) for entry in entries])
        await state_when(b, 1)
        mine, theirs = [await at.store.records.read("sandboxes/one") for at in (a, b)]
        assert mine.row == theirs.row


async def stopped(at: OneStore) -> str:
    await eventually(lambda: at.feed.replaced)
    return at.feed.replaced


async def fill(log: MemoryEventLog, count: int, first: int = 0) -> None:
    await log.append([event(f"k{number}") for number in range(first, first + count)])


@pytest.mark.parametrize("count", [0, 3, 9], ids=["empty", "as long", "longer"])
async def test_a_feed_stops_where_another_log_came_into_its_log_s_place(count: int) -> None:
    log = MemoryEventLog(1)
    async with applying(log) as at:
        await fill(log, 3)
        before = await state_when(at, 3)
        await log.replace()
        await fill(log, count, 100)
        assert "baton events restart" in await stopped(at)
        await fill(log, 5, 200)
        assert (await at.store.feed.state()).read == before.read, "nothing of the other log is applied"
        await eventually(lambda: "LOG_REPLACED" in at.feed.trouble)
        shown = {at.feed.replaced}
        status = await at.replication.GetStatus(pb.GetStatusRequest())
        assert status.feed.log_replaced in shown | {at.feed.replaced}, "the reason changes as the other log grows"
        refused = await refusal(at.replication.PullChanges(pb.PullChangesRequest()))
        assert reason_of(refused)[0] == "LOG_REPLACED"
        with pytest.raises(LogAway, match="baton events restart"):
            at.logged.check(0.0)


async def test_a_feed_that_starts_on_another_log_reads_nothing_of_it() -> None:
    log = MemoryEventLog(2)
    async with running_store(Store.B, log=log) as at:
        await fill(log, 20)
        task = asyncio.create_task(at.feed.loop.run())
        await state_when(at, 20)
        task.cancel()
        await asyncio.wait([task])
        await log.replace()
        await fill(log, 60, 100)
        task = asyncio.create_task(at.feed.loop.run())
        await stopped(at)
        assert (await at.store.feed.state()).read == 20
        task.cancel()
        await asyncio.wait([task])


async def test_offsets_of_an_earlier_version_take_the_log_as_it_is_and_hold_it_to_that() -> None:
    log = MemoryEventLog(1)
    await fill(log, 3)
    async with running_store(Store.B, log=log) as at:
        await at.store.transfers.apply([], FeedStep((Position(0, 0, 3),)))
        assert (await at.store.feed.state()).marks == {0: ""}
        task = asyncio.create_task(at.feed.loop.run())

        async def known() -> bool:
            return bool((await at.store.feed.state()).marks[0])

        await eventually(known)
        await log.replace()
        await fill(log, 9, 100)
        await stopped(at)
        task.cancel()
        await asyncio.wait([task])


async def test_a_restarted_feed_goes_on_at_the_end_of_the_other_log() -> None:
    log = MemoryEventLog(1)
    async with applying(log) as at:
        await fill(log, 3)
        await state_when(at, 3)
        await log.replace()
        await fill(log, 9, 100)
        await stopped(at)
        answer = await at.replication.RestartFeed(pb.RestartFeedRequest())
        assert dict(answer.next_offsets) == {0: 9}
        await fill(log, 2, 200)
        assert (await state_when(at, 5)).next_offsets == {0: 11}
        assert (await at.store.records.read(COLLECTION + "k100")).row is None
        assert (await at.store.records.read(COLLECTION + "k201")).row is not None
        await eventually(lambda: at.feed.trouble == "" and at.feed.replaced == "")


async def test_the_former_log_is_gone_on_with_when_it_is_back() -> None:
    log = MemoryEventLog(1)
    async with applying(log) as at:
        await fill(log, 3)
        await state_when(at, 3)
        former = dict(vars(log))
        await log.replace()
        await stopped(at)
        log._partitions, log._id = former["_partitions"], former["_id"]
        await fill(log, 2, 200)
        assert (await state_when(at, 5)).applied == 5
        await eventually(lambda: at.feed.replaced == "")


def released_in_bulk(*made_ids: str, origin: Store = Store.A, served: bool = False) -> Event:
    """The event of a bulk release of records in version 1, as `record` makes them."""
    rows = [record(made_id, origin=origin).row for made_id in made_ids]
    after = [replace(row, version=Version(0, 2), owner=origin.other) for row in rows]
    requests = (Served("ann", "r1", b"h", Version(0, 1), b""),) if served else ()
    entries = tuple(bulk_entry(row.head, one.head, requests) for row, one in zip(rows, after, strict=True))
    return Event(rows[0].key, event_of_bulk(BulkRelease(origin.other, entries, 1.0)))


async def test_a_bulk_release_makes_this_store_the_owner_and_counts_as_one_event() -> None:
    async with applying(MemoryEventLog(1)) as at:
        await at.log.append([event("a"), event("b"), released_in_bulk("a", "b")])
        state = await state_when(at, 3)
        assert (state.applied, state.old, state.parked) == (3, 0, 0)
        for made_id in ("a", "b"):
            found = await at.store.records.read(COLLECTION + made_id)
            assert (found.owner, found.version) == (Store.B, (0, 2))


async def test_calls_are_served_between_the_bulk_releases_of_a_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    async with loop_turns() as turns:
        decode = Arrivals.read_bulk

        def read_bulk(self: Arrivals, event: Event) -> BulkRelease | None:
            seen.append(turns())
            return decode(self, event)

        monkeypatch.setattr(Arrivals, "read_bulk", read_bulk)
        async with applying(MemoryEventLog(1)) as at:
            await at.log.append([released_in_bulk(made_id) for made_id in "abcde"])
            await state_when(at, 5)
    assert len(seen) == len(set(seen)) == 5


async def test_a_bulk_release_that_comes_before_the_last_write_is_taken_after_it() -> None:
    """The events are in different partitions, so in no order."""
    async with applying() as at:
        await at.log.append([released_in_bulk("a", "b")])
        await state_when(at, 1)
        await at.log.append([event("a")])
        await state_when(at, 2)

        async def owner() -> Store:
            return (await at.store.records.read(COLLECTION + "a")).owner

        assert await owner() is Store.B
        assert (await at.store.records.read(COLLECTION + "b")).row is None


async def test_a_bulk_release_whose_requests_are_not_known_here_is_not_taken() -> None:
    async with applying() as at:
        await at.log.append([event("a")])
        await state_when(at, 1)
        await at.log.append([released_in_bulk("a", served=True)])
        await state_when(at, 2)
        assert (await at.store.records.read(COLLECTION + "a")).owner is Store.A


async def test_an_entry_that_waits_too_long_is_left_to_the_mover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "WAITING_SECONDS", -1.0)
    async with applying() as at:
        await at.log.append([released_in_bulk("a")])
        await state_when(at, 1)
        await at.log.append([event("a")])
        await state_when(at, 2)
        await at.log.append([event("b")])
        await state_when(at, 3)
        assert (await at.store.records.read(COLLECTION + "a")).owner is Store.A


async def test_a_bulk_release_of_this_store_is_skipped() -> None:
    async with applying() as at:
        await at.log.append([released_in_bulk("a", origin=Store.B)])
        state = await state_when(at, 1)
        assert (state.applied, state.old, state.parked) == (0, 1, 0)


async def test_a_bulk_release_under_the_key_of_another_record_is_parked() -> None:
    async with applying() as at:
        await at.log.append([Event(COLLECTION + "b", released_in_bulk("a", "b").value)])
        await state_when(at, 1)
        (parked,) = await at.store.feed.parked(10)
        assert "the first record is 'sandboxes/a'" in parked.reason


async def test_a_bulk_release_that_an_earlier_release_has_parked_is_taken_when_it_is_tried_again() -> None:
    async with running_store(Store.B) as at:
        made = released_in_bulk("a")
        parked = Parked(0, 0, made.key, "key: empty", made.value)
        own = released_in_bulk("z", origin=Store.B)
        parked_own = Parked(0, 1, own.key, "key: empty", own.value)
        await at.store.transfers.apply([], FeedStep((Position(0, 0, 2),), (parked, parked_own)))
        why, changed_store = await at.feed.arrivals.retry(parked)
        assert "1 records of a bulk release are missing here" in why and not changed_store
        await at.store.transfers.apply([record("a")])
        assert await at.feed.arrivals.retry(parked) == ("", True)
        assert await at.feed.arrivals.retry(parked_own) == ("", False)
        assert await at.store.feed.parked(10) == []
        assert (await at.store.records.read(COLLECTION + "a")).owner is Store.B
