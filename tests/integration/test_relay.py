"""The relay: acknowledged changes are in the log, others are pulled again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest

from libs.backend.logged import LogWaits
from libs.clock import SystemClock
from libs.errors import NotLogged
from libs.eventlog.cloudevents import read_headers
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event, EventTooLarge, LogUnavailable, Stored
from libs.ownership.model import Store, Version
from libs.ownership.wire import record_of_event
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.store.outbox import Outbox
from libs.tasks import Loop
from services.router.flows.feed.relay import EVENT_TYPE, HEARTBEAT_TYPE, Relay
from services.router.flows.steering import diagnose
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system.whole import System, running_system
from tests.waiting import eventually

LOOP = Loop("relay", lambda _: _never())


async def _never() -> None:
    raise AssertionError


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        yield running


async def put(system: System, isbn: str) -> None:
    order = pb.PutOrder(token=str(uuid4()), where=pb.Place(room="r", isbn=isbn))
    await system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)


async def events(system: System) -> list[Stored]:
    async with system.log.reader(dict.fromkeys(range(16), 0)) as reader:
        return await reader.poll(1000, 0.01)


async def test_changes_arrive_in_the_log_as_cloudevents_and_leave_the_outbox(system: System) -> None:
    await put(system, "1")
    relay = system.relays[Store.A]
    await relay.run_once(LOOP)
    assert len(await system.ports(Store.A).outbox.pull(10, 0)) == 1, "the next pull acknowledges it"
    await relay.acknowledge()
    (stored,) = await events(system)
    attributes = read_headers(stored.event.headers)
    assert (attributes.key, attributes.store, attributes.type) == ("shelf/r/1", "A", EVENT_TYPE)
    record = record_of_event(stored.event.value)
    assert record.row.version == Version(0, 1) == (attributes.term, attributes.revision)
    assert attributes.time == pytest.approx(record.made_seconds, abs=1e-5)
    assert await system.ports(Store.A).outbox.pull(10, 0) == []


async def test_nothing_is_acknowledged_while_the_log_is_away_and_all_comes_when_it_is_back(system: System) -> None:
    await put(system, "1")
    system.log.reachable = False
    with pytest.raises(LogUnavailable):
        await system.relays[Store.A].run_once(LOOP)
    assert len(await system.ports(Store.A).outbox.pull(10, 0)) == 1
    system.log.reachable = True
    await system.relays[Store.A].run_once(LOOP)
    assert [stored.event.key for stored in await events(system)] == ["shelf/r/1"]


async def test_an_idle_relay_sends_a_heartbeat(system: System) -> None:
    await system.relays[Store.A].run_once(LOOP)
    (stored,) = await events(system)
    assert read_headers(stored.event.headers).type == HEARTBEAT_TYPE


async def test_one_router_relays_a_store_and_the_next_takes_over(system: System) -> None:
    await system.relays[Store.A].run_once(LOOP)
    clock = system.relays[Store.A]._clock
    other = Relay(system.stores[Store.A], system.log, system.control, "router-2", clock)
    assert not await other._is_mine()
    await system.control.lease("relay:A", "router-1", 0.0)
    assert await other._is_mine()


class _Refusing(MemoryEventLog):
    """Takes no event that has this text in it."""

    refuses = b"shelf/r/2"

    async def append(self, events: Sequence[Event], partition: int | None = None) -> None:
        if any(self.refuses in event.value for event in events):
            raise EventTooLarge(f"{self.refuses!r}")
        await super().append(events, partition)


def refusing(system: System) -> tuple[Relay, _Refusing]:
    log = _Refusing(16)
    return Relay(system.stores[Store.A], log, system.control, "router-1", SystemClock()), log


async def keys(log: MemoryEventLog) -> list[str]:
    async with log.reader(dict.fromkeys(range(16), 0)) as reader:
        return sorted(stored.event.key for stored in await reader.poll(1000, 0.01))


async def test_an_event_that_the_log_refuses_is_set_aside_and_stops_no_other(system: System) -> None:
    for number in range(1, 8):
        await put(system, str(number))
    relay, log = refusing(system)
    await relay.run_once(LOOP)
    await relay.acknowledge()
    assert await keys(log) == [f"shelf/r/{number}" for number in (1, 3, 4, 5, 6, 7)]
    assert await system.ports(Store.A).outbox.pull(10, 0) == []
    (aside,) = await system.ports(Store.A).aside.entries(10)
    assert aside.change.key == "shelf/r/2" and "larger than the log accepts" in aside.reason
    await system.observer.poll()
    status = system.observer.view(Store.A).status
    assert status is not None and (status.outbox.aside, status.outbox.entries) == (1, 0)
    assert status.outbox.aside_first.startswith("shelf/r/2 0-1: An event is larger")
    evidence = system.observer.evidence(system.setting.current, None, None)
    assert (evidence.parked, evidence.a_outbox_entries) == (1, 1), "no gate takes it for logged"


async def test_an_event_that_was_set_aside_gets_to_the_log_when_that_takes_it(system: System) -> None:
    await put(system, "2")
    relay, log = refusing(system)
    await relay.run_once(LOOP)
    relay._offer_at = 0.0
    log.refuses = b"none"
    await relay.run_once(LOOP)
    assert "shelf/r/2" in await keys(log)
    assert await system.ports(Store.A).aside.count() == 0


async def test_a_write_that_waits_for_the_log_hears_at_once_that_it_is_refused(system: System) -> None:
    await put(system, "2")
    waits = LogWaits(system.ports(Store.A).outbox, 60.0)
    name = "shelf/r/2", Version(0, 1)
    waiting = asyncio.create_task(waits.wait(name, 60.0, fresh=True))
    await asyncio.sleep(0)
    waits.refused([name])
    with pytest.raises(NotLogged):
        await waiting


async def test_what_the_log_refuses_is_found_by_the_doctor(system: System) -> None:
    await put(system, "2")
    relay, _ = refusing(system)
    await relay.run_once(LOOP)
    await system.observer.poll()
    findings = diagnose._store(system.observer.view(Store.A), SystemClock())
    assert [one.level for one in findings if "the log refuses 1 events" in one.text] == [diagnose.Level.FAIL]


class _Calls:
    """A store's replication API that notes acknowledgements. `with_pull`: whether it takes them with a pull."""

    def __init__(self, relay: Relay, *, with_pull: bool) -> None:
        self.acknowledged: list[tuple[str, str]] = []
        ask = relay._client.ask

        async def noted(method: Any, request: Any, seconds: float, *rest: Any) -> Any:
            if isinstance(request, rpb.PullChangesRequest):
                self.acknowledged += [("pull", one.key) for one in request.acknowledged]
                if not with_pull:
                    request.ClearField("acknowledged")
            if isinstance(request, rpb.AckChangesRequest):
                self.acknowledged += [("call", one.key) for one in request.changes]
            answer = await ask(method, request, seconds, *rest)
            if isinstance(answer, rpb.PullChangesResponse) and not with_pull:
                answer.ClearField("takes_acknowledgements")
            return answer

        relay._client.ask = noted  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize("with_pull", [True, False])
async def test_a_pull_acknowledges_the_last_batch_unless_the_store_is_of_an_earlier_release(
    system: System, with_pull: bool
) -> None:
    relay = system.relays[Store.A]
    calls = _Calls(relay, with_pull=with_pull)
    for number in ("1", "2"):
        await put(system, number)
        await relay.run_once(LOOP)
    by = "pull" if with_pull else "call"
    expected = [(by, "shelf/r/1"), *([] if with_pull else [(by, "shelf/r/2")])]
    assert calls.acknowledged == expected
    left = [one.key for one in await system.ports(Store.A).outbox.pull(10, 0)]
    assert left == (["shelf/r/2"] if with_pull else [])
    assert sorted(stored.event.key for stored in await events(system)) == ["shelf/r/1", "shelf/r/2"], "each once"


async def test_a_relay_whose_lease_ends_acknowledges_before_it_asks_for_it_again(system: System) -> None:
    await put(system, "1")
    relay = system.relays[Store.A]
    await relay.run_once(LOOP)
    await system.control.lease("relay:A", "router-1", 0.0)
    assert await system.control.lease("relay:A", "router-2", 60.0)
    relay._leased_until = 0.0
    relaying = asyncio.create_task(relay.run_once(LOOP))
    try:
        outbox = system.ports(Store.A).outbox
        await eventually(lambda: _is_empty(outbox))
    finally:
        relaying.cancel()
        await asyncio.wait([relaying])


async def _is_empty(outbox: Outbox) -> bool:
    return await outbox.pull(1, 0) == []
