"""Admission of a starting store: it serves, or the other store and the log show that it must be fenced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import uuid4

import grpc
import pytest

from libs.backend import admission
from libs.backend.admission import Admission, NotAdmitted, StillReading
from libs.backend.arrivals import Arrivals
from libs.backend.feed import ApplyLoop
from libs.backend.serving import AdmissionLoop, Serving
from libs.clock import ManualClock
from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event, EventLog, LogUnavailable
from libs.ownership.model import BucketOwner, BulkRelease, Store, Version, bucket_of
from libs.ownership.orders import LateOrder, Order
from libs.ownership.rules import bulk_entry
from libs.ownership.terms import TERMS_TYPE
from libs.ownership.wire import STORE_NUMBERS, bucket_to_pb, event_of, event_of_bulk, order_to_pb, read_bulk
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.sandboxes.columns import sandbox_columns
from libs.store.memory import MemoryStore
from libs.store.port import FeedStep, Position
from libs.store.recovery import FencedAnew, Identity
from tests.contracts.store_adapters import check_nothing, own, put, record_of, row_of
from tests.system.control import running_loops
from tests.waiting import eventually, loop_turns

KEY = "sandboxes/a"
BUCKET = bucket_of(KEY)
BOUND_SECONDS = 20.0


def away() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())


Meanwhile = Callable[[], Awaitable[None]]
"""Done by another process of B, which serves."""


@dataclass
class Rig:
    """Store B that starts, the log, and store A beside it."""

    store: MemoryStore = field(default_factory=lambda: MemoryStore(Store.B, ManualClock(), sandbox_columns))
    a: MemoryStore = field(default_factory=lambda: MemoryStore(Store.A, ManualClock(), sandbox_columns))
    log: MemoryEventLog = field(default_factory=lambda: MemoryEventLog(4))
    log_away: bool = False
    a_away: bool = False
    while_a_answers: Meanwhile | None = None
    """Happens once, before A gives its answer."""
    while_ends_are_read: Meanwhile | None = None
    """Happens once, after the log has given its ends."""

    async def decide(self) -> str:
        return await self.admission.decide()

    @property
    def admission(self) -> Admission:
        return Admission(self.store, self.open_log, self._ask, Arrivals(self.store, check_nothing).read)

    async def fence_reason(self) -> str:
        return (await self.store.recovery.standing()).fence_reason

    async def open_log(self) -> EventLog:
        if self.log_away:
            raise LogUnavailable("stopped")
        return cast(EventLog, _EndsThen(self))

    async def _ask(self) -> pb.GetStandingResponse:
        if self.a_away:
            raise away()
        meanwhile, self.while_a_answers = self.while_a_answers, None
        if meanwhile is not None:
            await meanwhile()
        answer = pb.GetStandingResponse(store=STORE_NUMBERS[Store.A])
        answer.bucket_owners.extend(bucket_to_pb(one) for one in await self.a.transfers.bucket_owners())
        standing = await self.a.recovery.standing()
        if standing.order is not None:
            answer.order.CopyFrom(order_to_pb(standing.order))
        if (known := standing.other) is not None:
            answer.other.CopyFrom(pb.Identity(database=known.database, changes=known.changes))
        return answer

    async def say(self, key: str, revision: int, by: Store = Store.B, term: int = 0) -> None:
        record = record_of(row_of(key, (term, revision), by))
        headers = HeaderWriter(by.value, "baton.record.v1").write(key, (term, revision), 1.0)
        await self.log.append([Event(key, event_of(record), headers)])

    async def say_terms(self, by: Store, term: int) -> None:
        terms = pb.Terms(store=STORE_NUMBERS[by], buckets=[pb.Terms.Bucket(bucket=BUCKET, term=term)])
        headers = HeaderWriter(by.value, TERMS_TYPE).write("", (0, 0), 1.0)
        await self.log.append([Event("", terms.SerializeToString(), headers)])


@dataclass
class _EndsThen:
    """The log, with a pause after its ends were read."""

    rig: Rig

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rig.log, name)

    async def ends(self) -> dict[int, tuple[int, int]]:
        found = await self.rig.log.ends()
        meanwhile, self.rig.while_ends_are_read = self.rig.while_ends_are_read, None
        if meanwhile is not None:
            await meanwhile()
        return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


def leave(away_part: str) -> Callable[[Rig], None]:
    def take(rig: Rig) -> None:
        setattr(rig, away_part, True)

    return take


WAYS = [pytest.param(leave("log_away"), id="log away"), pytest.param(leave("a_away"), id="A away")]


@pytest.mark.parametrize("without", WAYS)
async def test_one_answer_is_enough_to_serve(rig: Rig, without: Callable[[Rig], None]) -> None:
    without(rig)
    assert await rig.decide() == ""
    assert await rig.fence_reason() == ""


async def test_nobody_who_answers_means_not_yet(rig: Rig) -> None:
    rig.log_away = rig.a_away = True
    with pytest.raises(NotAdmitted, match=r"the other store: UNAVAILABLE; .*stopped"):
        await rig.decide()
    assert await rig.fence_reason() == ""


async def test_an_own_change_that_the_store_knows_is_no_reason(rig: Rig) -> None:
    await own(rig.store, [KEY])
    await put(rig.store, KEY, "r1", "w")
    await rig.say(KEY, 1)
    await rig.say("sandboxes/other", 7, by=Store.A)
    assert await rig.decide() == ""


async def test_an_own_change_in_the_log_that_the_store_does_not_know_makes_it_gone(rig: Rig) -> None:
    rig.a_away = True
    await own(rig.store, [KEY])
    await put(rig.store, KEY, "r1", "w")
    await rig.say(KEY, 2)
    assert "version 0-2 of 'sandboxes/a'" in await rig.decide()
    assert "version 0-2" in await rig.fence_reason()


async def test_an_own_bulk_release_in_the_log_that_the_store_does_not_know_makes_it_gone(rig: Rig) -> None:
    """Restored from a backup before the release, it would own a record that the other store owns."""
    rig.a_away = True
    await own(rig.store, [KEY, "sandboxes/b"])
    for key in (KEY, "sandboxes/b"):
        await put(rig.store, key, "r1", "w")
    before = [row_of(key, (0, 1), Store.B) for key in ("sandboxes/b", KEY)]
    after = [replace(row, version=Version(0, 2), owner=Store.A) for row in before]
    entries = tuple(bulk_entry(row.head, one.head, ()) for row, one in zip(before, after, strict=True))
    event = event_of_bulk(BulkRelease(Store.A, entries, 1.0))
    headers = HeaderWriter("B", "baton.bulk-release.v1").write("sandboxes/b", (0, 2), 1.0)
    await rig.log.append([Event("sandboxes/b", event, headers)])
    assert f"version 0-2 of '{KEY}', which this store made" in await rig.decide()


async def test_a_poll_of_many_bulk_releases_is_read_step_by_step(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have a hundred thousand records, whose names are not all kept in memory."""
    rig.a_away = True
    releases = [[f"sandboxes/{number}-{one}" for one in range(2)] for number in range(6)]
    for keys in releases:
        rows = [row_of(key, (0, 2), Store.B) for key in keys]
        entries = tuple(bulk_entry(row.head, row.head, ()) for row in rows)
        await rig.log.append([Event(keys[0], event_of_bulk(BulkRelease(Store.B, entries, 1.0)))])
    monkeypatch.setattr(admission, "_MOST_KEYS", 4)
    turns_at, kept = list[int](), list[int]()
    decode, forgotten = read_bulk, Admission._forgotten
    async with loop_turns() as turns:

        def decoded(key: str, data: bytes) -> BulkRelease | None:
            turns_at.append(turns())
            return decode(key, data)

        async def look(self: Admission, seen: admission._Seen) -> str:
            kept.append(seen.keys)
            return await forgotten(self, seen)

        monkeypatch.setattr(admission, "read_bulk", decoded)
        monkeypatch.setattr(Admission, "_forgotten", look)
        assert await rig.decide() == ""
    assert len(turns_at) == len(set(turns_at)) == len(releases)
    assert kept == [4, 4, 4, 0]


async def test_an_own_change_of_an_older_term_than_the_bucket_s_counts_no_more(rig: Rig) -> None:
    await rig.say(KEY, 2)
    taken = BucketOwner(BUCKET, 2, 5, Store.A)
    await rig.store.seizures.take_terms([taken])
    assert await rig.decide() == ""


async def test_what_was_read_before_is_not_looked_at_again(rig: Rig) -> None:
    await rig.say(KEY, 2)
    ends = await rig.log.ends()
    await rig.store.transfers.apply([], FeedStep(tuple(Position(part, 0, end) for part, (_, end) in ends.items())))
    assert await rig.decide() == ""


async def test_a_log_that_no_longer_has_what_comes_next_makes_the_store_gone(rig: Rig) -> None:
    rig.a_away = True
    await rig.say(KEY, 1, by=Store.A)
    await rig.say(KEY, 2, by=Store.A)
    part = next(part for part, (_, end) in (await rig.log.ends()).items() if end)
    await rig.log.trim(part, 1)
    assert "the log begins at 1" in await rig.decide()


async def test_a_log_that_was_replaced_is_no_answer(rig: Rig) -> None:
    rig.a_away = True
    await rig.store.transfers.apply([], FeedStep((Position(0, 0, 9),)))
    with pytest.raises(NotAdmitted, match="it was replaced"):
        await rig.decide()


async def test_a_seizure_that_the_log_was_told_of_makes_the_store_gone(rig: Rig) -> None:
    rig.a_away = True
    await rig.say_terms(Store.A, 2)
    assert f"bucket {BUCKET} is in term 2" in await rig.decide()


async def test_its_own_seizure_is_no_reason(rig: Rig) -> None:
    await rig.say_terms(Store.B, 1)
    assert await rig.decide() == ""


async def test_a_term_of_the_other_store_makes_the_store_gone(rig: Rig) -> None:
    rig.log_away = True
    await rig.a.seizures.seize(BUCKET, 2)
    assert f"bucket {BUCKET} is in term 2" in await rig.decide()


async def test_a_bucket_owner_that_has_moved_on_makes_the_store_gone(rig: Rig) -> None:
    rig.log_away = True
    await own(rig.store, [KEY])
    await rig.a.transfers.adopt_bucket(BucketOwner(BUCKET, 0, 3, Store.A))
    assert f"bucket {BUCKET}: version 3" in await rig.decide()


async def test_a_bucket_owner_on_its_way_here_is_no_reason(rig: Rig) -> None:
    await rig.a.transfers.release_bucket(BUCKET, Store.B)
    assert await rig.decide() == ""


@pytest.mark.parametrize(("more", "gone"), [(0, False), (1, True)])
async def test_a_later_state_that_the_other_store_knows_makes_the_store_gone(rig: Rig, more: int, gone: bool) -> None:
    rig.log_away = True
    now = (await rig.store.recovery.standing()).now
    await rig.a.recovery.note_other(Identity(now.database, now.changes + more))
    assert bool(await rig.decide()) is gone


async def test_another_database_than_the_other_store_knows_is_gone(rig: Rig) -> None:
    rig.log_away = True
    await rig.a.recovery.note_other(Identity("elsewhere", 0))
    assert "another database" in await rig.decide()


async def test_a_store_that_was_fenced_stays_gone_whatever_others_say(rig: Rig) -> None:
    await rig.store.recovery.fence("by hand")
    rig.log_away = rig.a_away = True
    assert await rig.decide() == "by hand"


async def test_a_change_by_the_other_store_to_a_record_that_this_one_owns_makes_it_gone(rig: Rig) -> None:
    rig.a_away = True
    await own(rig.store, [KEY])
    await put(rig.store, KEY, "r1", "w")
    await rig.say(KEY, 3, by=Store.A)
    assert "version 0-3 of 'sandboxes/a', which the other store made" in await rig.decide()


async def test_a_record_of_the_other_store_where_this_one_may_create_makes_it_gone(rig: Rig) -> None:
    rig.a_away = True
    await own(rig.store, [KEY])
    await rig.say(KEY, 1, by=Store.A)
    assert "which the other store made" in await rig.decide()


async def test_a_change_by_the_other_store_before_the_record_came_here_is_no_reason(rig: Rig) -> None:
    rig.a_away = True
    await own(rig.store, [KEY])
    await put(rig.store, KEY, "r1", "w")
    await put(rig.store, KEY, "r2", "w")
    await rig.say(KEY, 1, by=Store.A)
    assert await rig.decide() == ""


async def test_a_change_by_the_other_store_from_before_a_seizure_is_no_reason(rig: Rig) -> None:
    rig.a_away = True
    await rig.store.seizures.seize(BUCKET, 1)
    await rig.say(KEY, 9, by=Store.A)
    assert await rig.decide() == ""


async def test_a_position_that_another_process_has_reached_since_is_no_reason(rig: Rig) -> None:
    """Another process of the store serves, and A learns its position before it answers."""
    rig.log_away = True
    await own(rig.store, [KEY])

    async def go_on() -> None:
        """Each time."""
        rig.while_a_answers = go_on
        await put(rig.store, KEY, str(uuid4()), "w")
        await rig.a.recovery.note_other((await rig.store.recovery.standing()).now)

    rig.while_a_answers = go_on
    assert await rig.decide() == ""
    assert await rig.fence_reason() == ""


async def test_a_bucket_that_another_process_gives_away_meanwhile_is_no_reason(rig: Rig) -> None:
    rig.log_away = True
    await own(rig.store, [KEY])

    async def go_on() -> None:
        released = await rig.store.transfers.release_bucket(BUCKET, Store.A)
        await rig.a.transfers.adopt_bucket(released)

    rig.while_a_answers = go_on
    assert await rig.decide() == ""


async def test_events_that_another_process_reads_meanwhile_are_no_reason(rig: Rig) -> None:
    """It reads beyond the end that the log gave before."""
    rig.a_away = True

    async def go_on() -> None:
        await rig.say(KEY, 1, by=Store.A)
        ends = await rig.log.ends()
        await rig.store.transfers.apply([], FeedStep(tuple(Position(part, 0, end) for part, (_, end) in ends.items())))

    rig.while_ends_are_read = go_on
    assert await rig.decide() == ""


async def test_events_that_expire_after_another_process_has_read_them_are_no_reason(rig: Rig) -> None:
    """They are read, and expire, between the read of the own position and the scan of the log."""
    rig.a_away = True
    rig.log = log = ExpiringLog(1)
    await rig.say(KEY, 1, by=Store.A)
    times = 0

    async def go_on() -> None:
        nonlocal times
        times += 1
        before = (await rig.store.feed.state()).next_offsets.get(0, 0)
        _, end = (await log.ends())[0]
        await rig.store.transfers.apply([], FeedStep((Position(0, before, end),)))
        await log.trim(0, end)
        await rig.say(KEY, times + 1, by=Store.A)
        log.before_reading = go_on if times < 2 else None

    log.before_reading = go_on
    assert await rig.decide() == ""


async def test_evidence_is_looked_at_twice_before_a_store_is_fenced(rig: Rig) -> None:
    """The address of another migration's store was set for a moment."""
    rig.log_away = True
    await rig.a.recovery.note_other(Identity("elsewhere", 0))

    async def go_on() -> None:
        """A is asked for its order, then for evidence. Only the answer after these two is of the right store."""
        rig.while_a_answers = and_on

    async def and_on() -> None:
        rig.while_a_answers = right

    async def right() -> None:
        await rig.a.recovery.note_other((await rig.store.recovery.standing()).now, anew=True)

    rig.while_a_answers = go_on
    assert await rig.decide() == ""


async def test_the_log_is_asked_although_the_other_store_has_answered(rig: Rig) -> None:
    """A knows of no later state: no router has reported this store's position since the backup was taken."""
    await own(rig.store, [KEY])
    await put(rig.store, KEY, "r1", "w")
    await rig.say(KEY, 2)
    assert "version 0-2 of 'sandboxes/a'" in await rig.decide()


async def test_the_other_store_is_asked_although_the_log_has_answered(rig: Rig) -> None:
    await rig.a.recovery.note_other(Identity("elsewhere", 0))
    assert "another database" in await rig.decide()


async def test_the_feed_does_not_read_past_evidence_before_the_store_is_admitted(rig: Rig) -> None:
    """The store starts while nothing is in reach, then the log is back before A."""
    rig.a_away = rig.log_away = True
    await own(rig.store, [KEY])
    await rig.say(KEY, 1)
    serving = Serving()
    looks = 0

    def is_admitted() -> bool:
        nonlocal looks
        looks += 1
        return serving.admitted

    arrivals = Arrivals(rig.store, check_nothing)
    feed = ApplyLoop(rig.store, rig.open_log, ManualClock(), arrivals, is_admitted)
    admission_loop = AdmissionLoop(rig.store, Admission(rig.store, rig.open_log, None, arrivals.read), serving)
    await admission_loop.admit()
    rig.log_away = False
    async with running_loops(feed.loop):
        await eventually(lambda: looks > 2)
        assert (await rig.store.feed.state()).next_offsets == {}
        await admission_loop.admit()
        assert "version 0-1" in serving.fence_reason
        await eventually(lambda: followed(rig))


async def followed(rig: Rig) -> bool:
    return sum((await rig.store.feed.state()).next_offsets.values()) == 1


class ExpiringLog(MemoryEventLog):
    """Something happens once before it is read."""

    before_reading: Meanwhile | None = None

    @asynccontextmanager
    async def reader(self, positions: Mapping[int, int]) -> AsyncIterator[Any]:
        meanwhile, self.before_reading = self.before_reading, None
        if meanwhile is not None:
            await meanwhile()
        async with super().reader(positions) as reader:
            yield reader


@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_a_fence_by_a_wrong_address_is_undone_by_a_recheck(rig: Rig, more: int) -> None:
    """The store goes on, and its position says nothing of where it stood: only the one when it was fenced counts."""
    await own(rig.store, [KEY])
    await put(rig.store, KEY, "r1", "w")
    await rig.a.recovery.note_other(Identity("another migration's store", 0))
    assert "another database" in await rig.decide()
    now = (await rig.store.recovery.standing()).now
    await rig.a.recovery.note_other(Identity(now.database, now.changes + more), anew=True)
    await own(rig.store, ["sandboxes/b", "sandboxes/c"])
    reason = await rig.admission.recheck()
    assert bool(reason) == bool(await rig.fence_reason()) == (more > 0)


async def test_a_store_that_asks_itself_is_not_admitted_by_its_own_answer() -> None:
    """Its own state confirms itself, however old it is."""
    store = MemoryStore(Store.B, ManualClock(), sandbox_columns)

    async def ask_itself() -> pb.GetStandingResponse:
        bucket_owners = [bucket_to_pb(one) for one in await store.transfers.bucket_owners()]
        return pb.GetStandingResponse(store=STORE_NUMBERS[Store.B], bucket_owners=bucket_owners)

    async def no_log() -> EventLog:
        raise LogUnavailable("stopped")

    admission = Admission(store, no_log, ask_itself, Arrivals(store, check_nothing).read)
    with pytest.raises(NotAdmitted, match="this store's own"):
        await admission.decide()


async def test_a_process_that_served_on_tells_how_far_the_store_had_come(rig: Rig) -> None:
    await rig.a.recovery.note_other(Identity("another migration's store", 0))
    await rig.decide()
    now = (await rig.store.recovery.standing()).now
    await rig.a.recovery.note_other(Identity(now.database, now.changes + 3), anew=True)
    assert "a later state" in await rig.admission.recheck()
    await rig.store.recovery.vouch(now.changes + 3)
    assert await rig.admission.recheck() == await rig.fence_reason() == ""


async def test_evidence_in_the_log_stands_although_the_feed_has_passed_it(rig: Rig) -> None:
    await own(rig.store, [KEY])
    await rig.say(KEY, 2)
    assert "version 0-2" in await rig.decide()
    ends = await rig.log.ends()
    await rig.store.transfers.apply([], FeedStep(tuple(Position(part, 0, end) for part, (_, end) in ends.items())))
    assert "version 0-2" in await rig.admission.recheck()
    assert "version 0-2" in await rig.fence_reason()


@pytest.mark.parametrize("without", WAYS)
async def test_a_recheck_wants_both_answers(rig: Rig, without: Callable[[Rig], None]) -> None:
    await rig.store.recovery.fence("evidence", since={})
    without(rig)
    with pytest.raises(NotAdmitted, match="both the other store and the log"):
        await rig.admission.recheck()
    assert await rig.fence_reason() == "evidence"


async def test_a_fence_by_a_recovery_is_not_undone_by_a_recheck(rig: Rig) -> None:
    await rig.store.recovery.fence("evidence", since={})
    await rig.store.recovery.fence("being recovered", order=Order(0, 1, 0, "c", "recover-1"))
    assert "it was not fenced by a look at its start: evidence" in await rig.admission.recheck()


async def test_a_recheck_does_not_open_a_store_whose_recovery_has_begun_meanwhile(rig: Rig) -> None:
    await rig.store.recovery.fence("evidence", since={})

    async def begin() -> None:
        await rig.store.recovery.fence("being recovered", order=Order(0, 2, 0, "c", "recover-2"))

    rig.while_ends_are_read = begin
    with pytest.raises(FencedAnew):
        await rig.admission.recheck()
    assert await rig.fence_reason() == "evidence"


async def test_a_store_that_starts_takes_the_higher_order_of_the_two(rig: Rig) -> None:
    """Its database is a restored one, from before the recovery."""
    older, newer = (Order(0, number, 10, "c", f"recover-{number}") for number in (6, 7))
    await rig.store.recovery.take_order(older)
    await rig.a.recovery.take_order(newer)
    await rig.decide()
    assert (await rig.store.recovery.standing()).order == newer
    await rig.a.recovery.fence("it went back")
    await rig.decide()
    with pytest.raises(LateOrder):
        await rig.store.recovery.fence("late", order=newer._replace(stage=0))


async def test_a_store_that_starts_keeps_its_own_order_if_that_is_the_higher_one(rig: Rig) -> None:
    older, newer = (Order(0, number, 10, "c", f"recover-{number}") for number in (6, 7))
    await rig.store.recovery.take_order(newer)
    await rig.a.recovery.take_order(older)
    await rig.decide()
    assert (await rig.store.recovery.standing()).order == newer


class SilentLog(MemoryEventLog):
    """Says that there is more than it gives."""

    async def ends(self) -> dict[int, tuple[int, int]]:
        return {part: (oldest, end + 1) for part, (oldest, end) in (await super().ends()).items()}


@pytest.mark.parametrize("a_away", [False, True])
async def test_a_log_that_falls_silent_keeps_no_start_waiting(
    rig: Rig, a_away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "SILENT_SECONDS", 0.0)
    rig.log, rig.a_away = SilentLog(4), a_away
    async with asyncio.timeout(BOUND_SECONDS):
        if a_away:
            with pytest.raises(NotAdmitted, match="given nothing"):
                await rig.decide()
        else:
            assert await rig.decide() == ""


async def test_a_long_backlog_is_read_in_steps_that_say_how_far_they_are(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(admission, "_POLL_EVENTS", 10)
    rig.a_away = True
    for revision in range(1, 36):
        await rig.say(KEY, revision, Store.A)
    starting = Admission(rig.store, rig.open_log, None, Arrivals(rig.store, check_nothing).read)
    for read in (10, 20, 30):
        with pytest.raises(StillReading, match=f"{read} of 35 events"):
            await starting.decide()
    assert await starting.decide() == ""


@pytest.mark.parametrize("has_id", [True, False])
async def test_a_log_that_is_replaced_between_two_steps_is_no_witness(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, has_id: bool
) -> None:
    """The new log has a change that this store has not made; the former one has none."""
    monkeypatch.setattr(admission, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(admission, "_POLL_EVENTS", 10)
    if not has_id:
        monkeypatch.setattr(MemoryEventLog, "id", "")
    rig.a_away = True
    for revision in range(1, 26):
        await rig.say("sandboxes/other", revision, Store.A)
    starting = Admission(rig.store, rig.open_log, None, Arrivals(rig.store, check_nothing).read)
    with pytest.raises(StillReading):
        await starting.decide()
    former, rig.log = rig.log, MemoryEventLog(4)
    for revision in range(1, 30):
        await rig.say("sandboxes/other", 100 + revision)
    with pytest.raises(NotAdmitted, match=r"another event than the one|has the id"):
        await starting.decide()
    assert not await rig.fence_reason()
    rig.log = former
    with pytest.raises(StillReading, match="10 of 25 events"):
        await starting.decide()


async def test_what_a_step_has_seen_counts_in_the_last_one_and_is_looked_at_twice(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that this store made and does not know is among the first events."""
    monkeypatch.setattr(admission, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(admission, "_POLL_EVENTS", 10)
    rig.a_away = True
    await rig.say(KEY, 9)
    for revision in range(1, 25):
        await rig.say("sandboxes/other", revision, Store.A)
    starting = Admission(rig.store, rig.open_log, None, Arrivals(rig.store, check_nothing).read)
    steps = 0
    while True:
        try:
            reason = await starting.decide()
            break
        except StillReading:
            steps += 1
            assert not await rig.fence_reason()
    assert "version 0-9" in reason and 4 <= steps <= 8
    assert await rig.fence_reason() == reason


async def test_a_poison_event_is_no_evidence(rig: Rig) -> None:
    """Anyone may write to the log. Each of these says that this store, or the other one, has made it."""
    rig.a_away = True
    await own(rig.store, [KEY])
    for origin in Store:
        right = replace(record_of(row_of(KEY, (0, 1), origin)), origin=origin)
        for version in (Version(0, 2**63 - 1), Version(2, 1)):
            poison = replace(right, row=replace(right.row, version=version))
            await rig.log.append([Event(KEY, event_of(poison))])
    await rig.log.append([Event(KEY, event_of(replace(right, row=replace(right.row, key="another"))))])
    assert await rig.decide() == ""


async def test_a_forged_higher_term_hides_no_change_that_this_store_has_forgotten(rig: Rig) -> None:
    rig.a_away = True
    await own(rig.store, [KEY])
    await put(rig.store, KEY, "r1", "w")
    await rig.say(KEY, 9)
    forged = record_of(row_of(KEY, (2, 1), Store.B))
    await rig.log.append([Event(KEY, event_of(forged))])
    assert "version 0-9 of 'sandboxes/a'" in await rig.decide()
