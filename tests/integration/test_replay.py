"""A part of the log is replayed to a store: missing records come back, nothing else changes, at every repetition."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import grpc
import pytest

from libs.clock import SystemClock
from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.port import UNREADABLE_HEADER, Event, partition_of
from libs.ownership import wire
from libs.ownership.limits import MAX_COPY_BYTES
from libs.ownership.model import BulkRelease, Record, Row, Store, Version, bucket_of
from libs.ownership.rules import bulk_entry
from libs.ownership.wire import event_of, event_of_bulk
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1 import events_pb2
from libs.store.memory import MemoryStore
from services.router.core.jobs import Job, JobState
from services.router.flows.feed import events as flows_events
from services.router.flows.feed.events import LogEvents, Question
from services.router.flows.jobs import replay as flows_replay
from services.router.flows.jobs import replay_writer
from services.router.flows.jobs.replay import Replay
from services.router.flows.jobs.runner import Jobs
from tests.shelf import CONTRACT
from tests.system.control import ControlledSystem, running_controlled_system, running_loops
from tests.system.whole import running_system
from tests.waiting import eventually, loop_turns

RECORDS = 120
VERSIONS = 3


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(feeds=False, mover=False) as running:
        yield running


def key_of(number: int) -> str:
    return f"rooms/r/books/{number:05}"


def record(key: str, revision: int = 1, origin: Store = Store.A) -> Record:
    version = Version(0, revision)
    return Record(Row(key, version, Store.A, version, True, f"{key} {revision}".encode(), 1), (), origin, 1.7e9)


def event(key: str, revision: int = 1, origin: Store = Store.A) -> Event:
    return Event(key, event_of(record(key, revision, origin)))


def events() -> list[Event]:
    return [event(key_of(number), revision + 1) for revision in range(VERSIONS) for number in range(RECORDS)]


async def rows(store: MemoryStore) -> dict[str, tuple[Version, bytes]]:
    found = await store.records.read_many([key_of(number) for number in range(RECORDS)])
    return {one.key: (one.row.version, one.row.payload) for one in found if one.row is not None}


NEWEST = {key_of(number): (Version(0, VERSIONS), f"{key_of(number)} {VERSIONS}".encode()) for number in range(RECORDS)}


async def ended(controlled: ControlledSystem, arguments: Mapping[str, str], rate: float = 0.0) -> Job:
    job = await controlled.flows.jobs.start("replay", {"to": "B", "start": "start", **arguments}, "ann", rate)

    async def over() -> Job | None:
        found = await controlled.flows.jobs.job(job.id)
        return None if found.state.wants_a_runner else found

    found = await eventually(over)
    assert found is not None
    return found


def report(job: Job) -> Any:
    return json.loads(job.report)


async def test_a_replay_brings_back_what_a_store_lacks_and_leaves_its_feed_as_it_was(
    controlled: ControlledSystem,
) -> None:
    await controlled.system.log.append(events())
    b = controlled.system.ports(Store.B)
    job = await ended(controlled, {})
    assert (job.state, job.done, job.total) == (JobState.FINISHED, RECORDS * VERSIONS, RECORDS * VERSIONS)
    assert await rows(b) == NEWEST
    assert job.note == "applied 360, ignored 0 as known"
    again = await ended(controlled, {})
    assert again.note == "applied 0, ignored 360 as known"
    state = await b.feed.state()
    assert (dict(state.next_offsets), state.read) == ({}, 0)
    assert await rows(controlled.system.ports(Store.A)) == {}


async def test_a_store_s_own_events_come_back_to_it_too(controlled: ControlledSystem) -> None:
    await controlled.system.log.append([event(key_of(0), 5, Store.B)])
    assert (await ended(controlled, {})).note == "applied 1, ignored 0 as known"


async def test_a_dry_run_says_what_a_replay_would_do_and_changes_nothing(controlled: ControlledSystem) -> None:
    b = controlled.system.ports(Store.B)
    await b.transfers.apply([record(key_of(number), 2) for number in range(RECORDS // 2)])
    before = await rows(b)
    await controlled.system.log.append(events())
    said = await ended(controlled, {"dry_run": "yes"})
    # Of half of the records one version is newer, of the others all three are.
    assert said.note == "would apply 240, ignore 120 as known"
    assert await rows(b) == before
    done = await ended(controlled, {})
    assert done.note == "applied 240, ignored 120 as known", "and so it is"


async def test_a_dry_run_counts_an_event_that_is_in_the_log_twice_as_a_replay_does(
    controlled: ControlledSystem,
) -> None:
    await controlled.system.log.append([event(key_of(0), 2), event(key_of(0), 1), event(key_of(0), 2)])
    said = await ended(controlled, {"dry_run": "yes"})
    done = await ended(controlled, {})
    assert (said.note, done.note) == ("would apply 1, ignore 2 as known", "applied 1, ignored 2 as known")


async def test_a_replay_of_one_record_reads_its_partition_only(controlled: ControlledSystem) -> None:
    await controlled.system.log.append(events())
    job = await ended(controlled, {"name": key_of(7)})
    part = partition_of(key_of(7), controlled.system.log.partitions)
    oldest, end = (await controlled.system.log.ends())[part]
    assert (job.done, report(job)["applied"], report(job)["others"]) == (end - oldest, 3, end - oldest - 3)
    assert await rows(controlled.system.ports(Store.B)) == {key_of(7): NEWEST[key_of(7)]}


async def test_a_replay_goes_on_behind_a_batch_without_a_wanted_event(
    controlled: ControlledSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows_replay, "POLL_EVENTS", 5)
    heartbeat = Event("", b"", HeaderWriter("A", "baton.heartbeat.v1").write("", (0, 0), 1.0))
    part = partition_of(key_of(7), controlled.system.log.partitions)
    await controlled.system.log.append([heartbeat] * 7 + [event("another")] * 7, partition=part)
    await controlled.system.log.append([event(key_of(7))])
    job = await ended(controlled, {"name": key_of(7)})
    assert (job.state, job.done, job.note) == (JobState.FINISHED, 15, "applied 1, ignored 0 as known")


@pytest.mark.parametrize("name", ["", "another"])
async def test_a_replay_whose_predecessor_failed_is_refused_with_the_way_out(
    controlled: ControlledSystem, name: str
) -> None:
    failed = await ended(controlled, {"start": "3/9"})
    assert failed.state is JobState.FAILED
    request = pb.StartJobRequest(kind="replay", actor="ann", arguments={"to": "B", "start": "3/9"})
    if name:
        request.arguments["name"] = name
    hint = f"{failed.id} is FAILED: continue it: baton jobs resume {failed.id}, or cancel it: baton jobs cancel"
    with pytest.raises(grpc.aio.AioRpcError, match=hint):
        await controlled.control.StartJob(request)


async def test_events_that_cannot_be_read_are_counted_and_named_and_keep_no_other_back(
    controlled: ControlledSystem,
) -> None:
    good = events()[:3]
    bad_store = Event("x", event("x").value + b"\x18\x63")  # its last owner is store 99
    heartbeat = Event("", b"", HeaderWriter("A", "baton.heartbeat.v1").write("", (0, 0), 1.0))
    odd = [Event("x", b"\xff"), Event("other", good[0].value), heartbeat]
    await controlled.system.log.append([*odd, *good[:2]], partition=2)
    # Read by itself, so that it is the store that refuses it.
    await controlled.system.log.append([bad_store, good[2]], partition=5)
    job = await ended(controlled, {})
    found = report(job)
    assert (found["applied"], found["known"], found["unreadable"], found["others"]) == (3, 0, 3, 1)
    assert sorted(found["places"]) == ["2/0", "2/1", "5/0"]
    assert job.note == "applied 3, ignored 0 as known; 3 cannot be read"


async def test_a_replay_gives_a_store_no_event_that_its_feed_would_not_apply(controlled: ControlledSystem) -> None:
    good = record(key_of(1), 2)
    poison = [
        replace(good, row=replace(good.row, payload=b"\xff")),
        replace(good, row=replace(good.row, version=Version(0, 2**63 - 1))),
        replace(good, row=replace(good.row, version=Version(2, 1))),
    ]
    marked = Event(key_of(1), event_of(record(key_of(1), 9)), ((UNREADABLE_HEADER, b"headers: a name is not UTF-8"),))
    made = [Event(one.row.key, event_of(one)) for one in (*poison, good)]
    await controlled.system.log.append([marked, *made], partition=2)
    job = await ended(controlled, {})
    found = report(job)
    assert (found["applied"], found["known"], found["unreadable"]) == (1, 0, 4)
    assert sorted(found["places"]) == ["2/0", "2/1", "2/2", "2/3"]
    b = controlled.system.ports(Store.B)
    (row,) = (await rows(b)).values()
    assert row == (Version(0, 2), good.row.payload)
    assert not (await b.recovery.standing()).fence_reason


async def test_a_replay_from_a_place_or_a_time_leaves_out_what_was_before(controlled: ControlledSystem) -> None:
    await controlled.system.log.append([event(key_of(0)), event(key_of(1)), event(key_of(2))], partition=3)
    await controlled.system.log.append([event(key_of(9))], partition=4)
    assert (await ended(controlled, {"start": "3/1"})).note == "applied 2, ignored 0 as known"
    assert set(await rows(controlled.system.ports(Store.B))) == {key_of(1), key_of(2)}
    later = await ended(controlled, {"start": "2999-01-01T00:00:00+00:00"})
    assert (later.state, later.done) == (JobState.FINISHED, 0)
    assert (await ended(controlled, {"start": "2020-01-01T00:00:00+00:00"})).done == 4


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ("2020-01-01T00:00:00+00:00", "partition 3 has no event from before this time"),
        ("3/1", "partition 3: offset 1 was dropped by retention: 2 is the oldest offset"),
        ("3/9", "at most 3/5, where the log ends"),
        ("77/0", "partitions 0 to 15"),
    ],
)
async def test_what_the_log_does_not_hold_is_refused_with_the_reason(
    controlled: ControlledSystem, start: str, why: str
) -> None:
    log = controlled.system.log
    await log.append([event(key_of(number)) for number in range(5)], partition=3)
    await log.trim(3, 2)
    with pytest.raises(grpc.aio.AioRpcError, match=why):
        await controlled.control.LookUpEvents(events_pb2.LookUpEventsRequest(start=start))
    job = await ended(controlled, {"start": start})
    assert job.state is JobState.FAILED and why in job.note
    await controlled.flows.jobs.cancel(job.id, "ann")
    assert await rows(controlled.system.ports(Store.B)) == {}
    held = await controlled.control.LookUpEvents(events_pb2.LookUpEventsRequest(start="start"))
    assert held.events == 3
    assert (await ended(controlled, {})).done == 3, "what is held can be replayed"


async def test_a_replay_that_retention_has_overtaken_fails_and_says_so(controlled: ControlledSystem) -> None:
    log = controlled.system.log
    await log.append([event(key_of(number)) for number in range(100)], partition=3)
    job = await controlled.flows.jobs.start("replay", {"to": "B", "start": "start"}, "ann", 20.0)
    await eventually(lambda: controlled.flows.jobs.view[0].done > 0)
    await log.trim(3, 90)
    await eventually(lambda: controlled.flows.jobs.view[0].state is JobState.FAILED)
    failed = await controlled.flows.jobs.job(job.id)
    assert "the log has dropped events that were not replayed yet" in failed.note and 0 < failed.done < 90


async def test_a_replay_waits_and_says_so_when_the_log_does_not_give_what_it_says_it_has(
    controlled: ControlledSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = controlled.system.log
    await log.append([event(key_of(0))], partition=3)
    ends = await log.ends()

    async def more() -> dict[int, tuple[int, int]]:
        return {**ends, 3: (0, 2)}

    monkeypatch.setattr(flows_replay, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(log, "ends", more)
    await controlled.flows.jobs.start("replay", {"to": "B", "start": "start"}, "ann")
    await eventually(lambda: "the log returned no event at 3/1" in controlled.flows.jobs.view[0].waits)
    await log.append([event(key_of(1))], partition=3)
    await eventually(lambda: controlled.flows.jobs.view[0].state is JobState.FINISHED)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"to": "C"}, "to: 'C' is not valid: A or B"),
        ({"start": "10:00"}, "start: '10:00' is not valid"),
        ({"start": ""}, "start: '' is not valid"),
        ({"name": "x" * 300}, "name: "),
        ({"dry_run": "perhaps"}, "dry_run: 'perhaps' is not valid: yes or no"),
        ({"fast": "yes"}, "arguments: 'fast' is not valid"),
    ],
)
async def test_a_replay_that_makes_no_sense_is_no_job(
    controlled: ControlledSystem, arguments: dict[str, str], why: str
) -> None:
    request = pb.StartJobRequest(kind="replay", actor="ann", arguments={"to": "B", "start": "start", **arguments})
    with pytest.raises(grpc.aio.AioRpcError, match=why):
        await controlled.control.StartJob(request)
    assert controlled.flows.jobs.view == ()


async def test_a_replay_that_is_broken_off_at_random_goes_on_and_ends_with_the_same_result() -> None:
    chance, clock, runs = random.Random(11), SystemClock(), 0
    async with running_system(feeds=False, mover=False) as system:
        await system.log.append(events())
        while True:
            jobs = Jobs(system.control, [Replay(system.stores, system.log, clock)], f"router-{runs}", clock)
            job = await jobs.start("replay", {"to": "B", "start": "start"}, "ann", 300.0)
            reached = job.done + chance.randint(1, 150)

            async def far_enough(job_id: str = job.id, reached: int = reached) -> Job | None:
                found = await system.control.job(job_id)
                return found if found.done >= reached or found.state is JobState.FINISHED else None

            # At the end whatever step is under way is broken off, wherever it is.
            async with running_loops(jobs.loop):
                ended = await eventually(far_enough)
            runs += 1
            if ended is not None and ended.state is JobState.FINISHED:
                break
        found = report(ended)
        assert runs >= 3
        assert (ended.id, ended.done) == ("replay-1", RECORDS * VERSIONS), "one job, each event counts once"
        assert found["applied"] + found["known"] == RECORDS * VERSIONS
        assert await rows(system.ports(Store.B)) == NEWEST


async def test_a_record_that_is_too_large_to_copy_is_left_out_and_named(controlled: ControlledSystem) -> None:
    a, b = (controlled.system.ports(store) for store in Store)
    for number in range(2):
        await a.transfers.apply([record(key_of(number), 2)])
    rows_of_a = a._state.rows
    rows_of_a[key_of(0)] = replace(rows_of_a[key_of(0)], payload=b"x" * (MAX_COPY_BYTES + 1))
    await controlled.system.log.append([event(key_of(0)), event(key_of(1))])
    job = await ended(controlled, {})
    counts = report(job)
    assert (counts["applied"], counts["left_out"]) == (1, 1)
    assert f"left out 1: {key_of(0)} has {MAX_COPY_BYTES + 1} bytes" in job.note
    assert set(await rows(b)) == {key_of(1)}


def released(keys: list[str], to: Store = Store.B, revision: int = 2) -> Event:
    before = [replace(record(key, revision - 1).row, owner=to.other) for key in keys]
    after = [replace(row, version=Version(0, revision), owner=to) for row in before]
    entries = tuple(bulk_entry(row.head, one.head, ()) for row, one in zip(before, after, strict=True))
    return Event(keys[0], event_of_bulk(BulkRelease(to, entries, 1.0)))


async def test_a_bulk_release_to_the_store_makes_it_the_owner_again_if_the_other_store_confirms_it(
    controlled: ControlledSystem,
) -> None:
    a, b = (controlled.system.ports(store) for store in Store)
    keys = [key_of(0), key_of(1)]
    await a.transfers.apply([record(key) for key in keys])
    await a.transfers.release_bulk(sorted({bucket_of(key) for key in keys}), Store.B)
    log = controlled.system.log
    await log.append([*(event(key) for key in keys), released(keys)])
    # A has read the log to its end, as the rule requires.
    await a.feed.restart({part: end for part, (_, end) in (await log.ends()).items()})
    counts = report(await ended(controlled, {}))
    assert (counts["unreadable"], counts["withheld"], counts["applied"] + counts["known"]) == (0, 0, 3)
    for key in keys:
        found = await b.records.read(key)
        assert (found.owner, found.version) == (Store.B, (0, 2))
    again = report(await ended(controlled, {}))
    assert (again["applied"], again["known"]) == (0, 3)


async def test_calls_are_served_between_the_bulk_releases_of_a_poll(
    controlled: ControlledSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a replay and by a look at the events."""
    await controlled.system.log.append([released([key_of(number)], Store.A) for number in range(5)])
    decode = wire.read_bulk
    async with loop_turns() as turns:
        for module in (replay_writer, flows_events):
            seen: list[int] = []

            def read_bulk(key: str, data: bytes, seen: list[int] = seen) -> BulkRelease | None:
                seen.append(turns())
                return decode(key, data)

            monkeypatch.setattr(module, "read_bulk", read_bulk)
            if module is replay_writer:
                await ended(controlled, {"dry_run": "yes"})
            else:
                _ = [one async for one in LogEvents(controlled.system.log, CONTRACT).read(Question())]
            assert len(seen) == len(set(seen)) == 5, module


async def test_a_bulk_release_that_the_other_store_does_not_confirm_is_withheld(controlled: ControlledSystem) -> None:
    b = controlled.system.ports(Store.B)
    await controlled.system.log.append([event(key_of(0)), released([key_of(0)])])
    counts = report(await ended(controlled, {}))
    assert (counts["applied"], counts["withheld"]) == (1, 1)
    assert (await b.records.read(key_of(0))).owner is Store.A


async def test_a_bulk_release_by_the_store_is_copied_from_its_new_owner(controlled: ControlledSystem) -> None:
    """The store has lost the row, and what it released must not be its own again."""
    a, b = (controlled.system.ports(store) for store in Store)
    row = replace(record(key_of(0), 2).row, write_version=Version(0, 1))
    await a.transfers.apply([Record(row, (), Store.B, 1.0)])
    await controlled.system.log.append([released([key_of(0)], Store.A)])
    said = report(await ended(controlled, {"dry_run": "yes"}))
    counts = report(await ended(controlled, {}))
    assert (said["applied"], counts["applied"], counts["withheld"]) == (1, 1, 0)
    assert (await b.records.read(key_of(0))).row == row
