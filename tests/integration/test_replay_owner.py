"""A replay to a store that lost rows while it serves: it gets the newest record, and is made no owner by an event."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from libs.ownership.model import Answered, Call, Changed, Row, Store, Version
from libs.ownership.rules import Resource, decide_write
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.store.memory import MemoryStore
from libs.tasks import Loop
from services.router.core.jobs import JobState
from services.router.flows.jobs import replay_writer
from tests.system.control import ControlledSystem, running_controlled_system, running_loops
from tests.waiting import eventually

A, B = Store.A, Store.B
KEY = "rooms/r/books/1"


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(feeds=False, mover=False) as running:
        yield running


async def write(controlled: ControlledSystem, store: Store, request: str) -> Changed | Answered:
    ports = controlled.system.ports(store)
    call = Call(KEY, "ann", request, b"hash")
    resource = Resource(request.encode(), True, 1)
    return await ports.records.write(call, lambda found: decide_write(found, store, call, lambda row, _: resource))


async def hand_over(controlled: ControlledSystem, to: Store) -> None:
    released = await controlled.system.ports(to.other).transfers.release([KEY], to, create=False)
    await controlled.system.ports(to).transfers.apply([one.record for one in released.results if one.record])


async def settled(controlled: ControlledSystem, *stores: Store) -> None:
    """The changes of these stores are in the log, and both stores have read it."""
    system = controlled.system
    relays = [Loop(f"relay {store}", system.relays[store].run_once) for store in stores]
    feeds = [backend.feed.loop for backend in system.backends.values()]

    async def read() -> bool:
        waiting = [(await system.ports(store).outbox.depth()).entries for store in stores]
        states = [await backend.ports.feed.state() for backend in system.backends.values()]
        ends = {part: end for part, (_, end) in (await system.log.ends()).items() if end}
        return not any(waiting) and all(
            state.next_offsets.get(part, 0) >= end for state in states for part, end in ends.items()
        )

    async with running_loops(*relays, *feeds):
        await eventually(lambda: read(), what="both stores have read the log")


def row_at(controlled: ControlledSystem, store: Store) -> Row | None:
    return controlled.system.ports(store)._state.rows.get(KEY)


class NotingRows(dict[str, Row]):
    def __init__(self, rows: dict[str, Row]) -> None:
        super().__init__(rows)
        self.kept: list[Row] = []

    def __setitem__(self, key: str, row: Row) -> None:
        self.kept.append(row)
        super().__setitem__(key, row)


def lose(controlled: ControlledSystem, store: Store) -> list[Row]:
    """The store loses its row of the record while it serves. Returns the rows that it keeps from then on."""
    state = controlled.system.ports(store)._state
    del state.rows[KEY]
    state.rows = NotingRows(state.rows)
    return state.rows.kept


async def replayed(controlled: ControlledSystem, to: Store = B) -> Any:
    job = await controlled.flows.jobs.start("replay", {"to": to.value, "start": "start"}, "ann")

    async def ended() -> bool:
        return (await controlled.flows.jobs.job(job.id)).state.ended

    await eventually(lambda: ended(), what="the replay ends")
    found = await controlled.flows.jobs.job(job.id)
    assert found.state is JobState.FINISHED, found.note
    report = json.loads(found.report)
    counted = sum(report[name] for name in ("applied", "known", "unreadable", "others", "withheld"))
    assert counted == found.done, "each event is counted once"
    return report


async def test_a_record_that_came_and_went_comes_back_as_the_other_store_s(controlled: ControlledSystem) -> None:
    """Old events name B as owner. Had B believed them, B and A would both have acknowledged writes."""
    await write(controlled, A, "r1")
    await hand_over(controlled, B)
    await write(controlled, B, "r2")
    await write(controlled, B, "r3")
    await hand_over(controlled, A)
    await write(controlled, A, "r4")
    await settled(controlled, A, B)
    kept = lose(controlled, B)
    report = await replayed(controlled)
    assert [(row.version, row.owner) for row in kept] == [(Version(0, 6), A)]
    assert row_at(controlled, B) == row_at(controlled, A)
    assert (report["applied"], report["known"], report["withheld"]) == (1, 5, 0)


async def test_a_record_that_a_store_owned_comes_back_to_it_with_its_served_requests(
    controlled: ControlledSystem,
) -> None:
    await write(controlled, A, "r1")
    await hand_over(controlled, B)
    await write(controlled, B, "r2")
    await settled(controlled, A, B)
    kept = lose(controlled, B)
    ports = controlled.system.ports(B)
    ports._state.served.clear()
    async with running_loops(controlled.system.backends[A].feed.loop):
        report = await replayed(controlled)
    assert [(row.version, row.owner) for row in kept] == [(Version(0, 3), B)]
    assert (report["applied"], report["known"], report["withheld"]) == (1, 2, 0)
    assert isinstance(await write(controlled, B, "r2"), Answered), "a retry is recognised"


async def test_an_event_that_the_other_store_s_row_does_not_confirm_is_withheld_and_reported(
    controlled: ControlledSystem,
) -> None:
    await write(controlled, A, "r1")
    await hand_over(controlled, B)
    await settled(controlled, A, B)
    lose(controlled, A)
    kept = lose(controlled, B)
    report = await replayed(controlled)
    assert [(row.version, row.owner) for row in kept] == [(Version(0, 1), A)], "its old version makes no owner"
    assert (report["applied"], report["withheld"]) == (1, 1)
    (place,) = report["withheld_places"]
    assert place.endswith(f"/1 {KEY}")


async def test_a_change_that_waits_in_the_outbox_of_the_store_that_lost_the_row_is_not_made_again(
    controlled: ControlledSystem,
) -> None:
    """A has B's release and not the write after it. B as owner of the older version would make that write's version
    a second time."""
    await write(controlled, A, "r1")
    await hand_over(controlled, B)
    await settled(controlled, A)
    await write(controlled, B, "r2")
    kept = lose(controlled, B)
    async with running_loops(controlled.system.backends[A].feed.loop):
        report = await replayed(controlled)
    assert kept == []
    assert report["withheld"] == 2, "both events stand for one record, whose newest version is not in the log"


async def test_a_store_that_has_not_read_the_log_to_its_end_confirms_no_owner(
    controlled: ControlledSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_writer, "READ_POLLS", 2)
    await write(controlled, A, "r1")
    await hand_over(controlled, B)
    await settled(controlled, A, B)
    await write(controlled, B, "r2")
    relay = Loop("relay B", controlled.system.relays[B].run_once)
    async with running_loops(relay):
        await eventually(lambda: logged(controlled.system.ports(B)), what="B's change is in the log")
    kept = lose(controlled, B)
    await controlled.flows.jobs.start("replay", {"to": "B", "start": "start"}, "ann")
    await eventually(lambda: "store A has 1 events of the log to read" in controlled.flows.jobs.view[0].waits)
    assert kept == []
    async with running_loops(controlled.system.backends[A].feed.loop):
        await eventually(lambda: controlled.flows.jobs.view[0].state is JobState.FINISHED)
    assert [(row.version, row.owner) for row in kept] == [(Version(0, 3), B)]


async def logged(ports: MemoryStore) -> bool:
    return (await ports.outbox.depth()).entries == 0


@pytest.mark.parametrize("away", [A, B])
@pytest.mark.parametrize("how", ["stopped", "fenced"])
async def test_a_replay_without_both_stores_is_refused(controlled: ControlledSystem, away: Store, how: str) -> None:
    if how == "stopped":
        await controlled.system.stop(away)
    else:
        controlled.system.backends[away].serving.fence("it went back")
    request = pb.StartJobRequest(kind="replay", actor="ann", arguments={"to": "B", "start": "start"})
    with pytest.raises(grpc.aio.AioRpcError, match="A replay needs both stores") as refused:
        await controlled.control.StartJob(request)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert controlled.flows.jobs.view == ()
