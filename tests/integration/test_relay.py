"""The relay: what is acknowledged is in the log, what is not comes again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from libs.eventlog.cloudevents import read_headers
from libs.eventlog.port import LogUnavailable, Stored
from libs.ownership.model import Store, Version
from libs.ownership.wire import record_of_event
from libs.rpc.tasks import Loop
from services.router.flows.relay import EVENT_TYPE, HEARTBEAT_TYPE, Relay
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system import System, running_system

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
    await system.relays[Store.A].run_once(LOOP)
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
