"""Flags at work: set by an operator or a provider, seen by routers, steering calls, and losing nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from libs.clock import SystemClock
from libs.flags.openfeature import OpenFeatureSource, load_factory
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc import metadata
from libs.rpc.channel import Channel
from libs.rpc.errors import reason_of
from libs.tasks import Loop
from services.router.core.phase import Phase, Setting
from services.router.core.plan import NO_FLAGS, Flags
from services.router.flows.moving.mover import Mover
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.migration import Decision
from tests.contracts.flag_adapters import SHARED, Adapter, FlagdAdapter, ProviderAdapter
from tests.contracts.pb.toy import shelf_pb2
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.whole import AnotherRouter, another_router, step
from tests.waiting import eventually

ALL = "toy.routing.use_service_layer"
CREATE, GET, LIST, UPDATE = (
    f"toy.routing.{operation}_shelf_use_service_layer" for operation in ("create", "get", "list", "update")
)
NAMES = [ALL, CREATE, GET, LIST, UPDATE]
ANN = Decision("ann", "a test")


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(mover=False) as running:
        yield running


async def call(client: Channel, method: str, request: Any, *, why: bool = True) -> tuple[bytes, dict[str, Any]]:
    """The answer's bytes and its trailing metadata; errors are raised."""
    asked = ((metadata.EXPLAIN, "1"),) if why else ()
    made = client.multi_callable(f"/toy.Shelf/{method}")(request.SerializeToString(), timeout=5, metadata=asked)
    return await made, dict(await made.trailing_metadata() or ())


def put(name: str) -> shelf_pb2.PutOrder:
    return shelf_pb2.PutOrder(token=str(uuid4()), where=shelf_pb2.Place(room="r", isbn=name))


def lend(name: str, reader: str) -> shelf_pb2.LendOrder:
    return shelf_pb2.LendOrder(path=f"shelf/r/{name}", reader=reader, token=str(uuid4()))


def look(name: str) -> shelf_pb2.LookOrder:
    return shelf_pb2.LookOrder(path=f"shelf/r/{name}")


async def owner_of(controlled: ControlledSystem, name: str) -> Store | None:
    found = [(await controlled.system.ports(store).records.read(f"shelf/r/{name}")).row for store in Store]
    newest = max((row for row in found if row is not None), key=lambda row: row.version, default=None)
    return newest.owner if newest else None


async def set_flag(controlled: ControlledSystem, name: str, value: bool | None, **fields: Any) -> pb.SetFlagResponse:
    request = pb.SetFlagRequest(actor="ann", reason="a test", name=name, value=value, **fields)
    return await controlled.control.SetFlag(request)


async def test_a_flag_is_in_force_at_once_is_journaled_and_shown(controlled: ControlledSystem) -> None:
    answer = await set_flag(controlled, UPDATE, True)
    assert (dict(answer.setting.flags), answer.setting.generation) == ({UPDATE: True}, 2)
    assert controlled.system.setting.flags.operations == {"update": True}
    newest = (await controlled.control.ListJournal(pb.ListJournalRequest())).entries[0]
    assert (newest.action, newest.actor, newest.reason) == ("flag", "ann", "a test")
    assert (dict(newest.before.flags), dict(newest.after.flags)) == ({}, {UPDATE: True})
    status = await controlled.control.GetStatus(pb.GetStatusRequest())
    assert [flag.name for flag in status.flags] == NAMES
    assert [flag.name for flag in status.flags if flag.HasField("value")] == [UPDATE]
    assert {flag.source for flag in status.flags} == {"control store"}


@pytest.mark.parametrize("name", ["", "update", "sandbox.routing.use_service_layer", ALL + "x"])
async def test_an_unknown_flag_is_refused_with_all_that_there_are_and_changes_nothing(
    controlled: ControlledSystem, name: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await set_flag(controlled, name, True)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert all(known in (caught.value.details() or "") for known in NAMES)
    assert (await controlled.store.load()).generation == 1


async def test_a_decision_on_an_old_generation_changes_nothing(controlled: ControlledSystem) -> None:
    await set_flag(controlled, ALL, True, generation=1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await set_flag(controlled, ALL, False, generation=1)
    assert reason_of(caught.value)[0] == "OUTDATED"
    assert controlled.system.setting.flags.use_service_layer is True


async def test_two_who_set_flags_at_once_lose_neither(controlled: ControlledSystem) -> None:
    async def insist(name: str) -> None:
        while True:
            try:
                await set_flag(controlled, name, True)
            except grpc.aio.AioRpcError as error:
                assert reason_of(error)[0] == "OUTDATED"  # noqa: PT017
            else:
                return

    await asyncio.gather(*(insist(name) for name in NAMES))
    assert dict((await controlled.store.load()).flags) == dict.fromkeys(NAMES, True)
    assert len(await controlled.store.journal(100)) == 1 + len(NAMES)


async def test_an_operations_flag_takes_along_what_it_writes_and_nothing_else(controlled: ControlledSystem) -> None:
    await controlled.put(2)
    await set_flag(controlled, UPDATE, True)
    _, told = await call(controlled.system.client, "Lend", lend("00000", "ann"))
    assert (told[metadata.STORE], told[metadata.REASON]) == ("B", "update flag")
    assert [await owner_of(controlled, name) for name in ("00000", "00001")] == [Store.B, Store.A]
    _, told = await call(controlled.system.client, "Look", look("00000"))
    assert (told[metadata.STORE], told[metadata.REASON]) == ("B", "phase"), "the owner answers, whatever the plan says"
    await set_flag(controlled, UPDATE, None)
    await call(controlled.system.client, "Lend", lend("00000", "bob"))
    assert await owner_of(controlled, "00000") is Store.A


async def test_a_caller_who_asks_is_told_backend_rule_phase_version_and_staleness(controlled: ControlledSystem) -> None:
    client = controlled.system.client
    _, told = await call(client, "Put", put("x"))
    expected = {metadata.PHASE: "OFF", metadata.REASON: "phase", metadata.STORE: "A", metadata.STALE: "0"}
    assert told == {**expected, metadata.VERSION: "0-1"}
    _, told = await call(client, "Lend", lend("x", "ann"))
    assert told[metadata.VERSION] == "0-2"
    _, told = await call(client, "Look", look("x"))
    assert told == {**expected, metadata.VERSION: "0-2"}
    _, told = await call(client, "Browse", shelf_pb2.BrowseOrder())
    assert told == {**expected, metadata.STORE: "A,B"}


async def test_a_caller_who_does_not_ask_is_told_nothing(controlled: ControlledSystem) -> None:
    for method, request in (("Put", put("x")), ("Look", look("x")), ("Browse", shelf_pb2.BrowseOrder())):
        assert (await call(controlled.system.client, method, request, why=False))[1] == {}


async def refused(client: Channel, method: str, request: Any, *, why: bool = True) -> dict[str, Any]:
    """Trailing metadata of an error, without the error's own details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(client, method, request, why=why)
    told = dict(caught.value.trailing_metadata() or ())
    return {name: value for name, value in told.items() if str(name).startswith("baton-")}


async def test_errors_are_explained_too(controlled: ControlledSystem) -> None:
    client = controlled.system.client
    told = await refused(client, "Look", look("none"))
    assert told[metadata.STORE] == "A"
    assert (told[metadata.PHASE], told[metadata.REASON], told[metadata.STALE]) == ("OFF", "phase", "0")
    await call(client, "Put", put("x"))
    assert (await refused(client, "Put", put("x")))[metadata.STORE] == "A"
    assert await refused(client, "Browse", shelf_pb2.BrowseOrder(most=-1)) == {
        metadata.PHASE: "OFF",
        metadata.REASON: "phase",
    }
    assert await refused(client, "Look", look("none"), why=False) == {}


async def test_a_stale_answer_is_explained_as_such(controlled: ControlledSystem) -> None:
    await call(controlled.system.client, "Put", put("x"))
    await eventually(lambda: owner_known_at_b(controlled))
    await controlled.system.stop(Store.A)
    _, told = await call(controlled.system.client, "Look", look("x"))
    assert (told[metadata.STORE], told[metadata.STALE], told[metadata.VERSION]) == ("B", "1", "0-1")
    _, told = await call(controlled.system.client, "Browse", shelf_pb2.BrowseOrder())
    assert (told[metadata.STORE], told[metadata.STALE]) == ("B", "1")
    told = await refused(controlled.system.client, "Lend", lend("x", "ann"))
    assert told == {metadata.PHASE: "OFF", metadata.REASON: "phase"}, "no store has answered"


async def owner_known_at_b(controlled: ControlledSystem) -> bool:
    return (await controlled.system.ports(Store.B).records.read("shelf/r/x")).row is not None


@pytest.mark.parametrize(("flag", "depends_on_b"), [(False, False), (None, False), (True, True)])
async def test_a_list_depends_on_the_store_that_its_flag_names(
    controlled: ControlledSystem, flag: bool | None, depends_on_b: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await controlled.put(2)
    await set_flag(controlled, LIST, flag)

    records = controlled.system.ports(Store.B).records
    page = type(records).page

    async def fail_at_b(own: Any, wanted: Any) -> Any:
        if own is records:
            raise RuntimeError("a defect of B's")
        return await page(own, wanted)

    monkeypatch.setattr(type(records), "page", fail_at_b)
    if depends_on_b:
        told = await refused(controlled.system.client, "Browse", shelf_pb2.BrowseOrder())
        assert (told[metadata.STORE], told[metadata.REASON]) == ("B", "list flag")
        return
    data, told = await call(controlled.system.client, "Browse", shelf_pb2.BrowseOrder())
    assert len(shelf_pb2.Books.FromString(data).found) == 2
    assert (told[metadata.STORE], told[metadata.STALE]) == ("A", "1")


@pytest.fixture(params=["flagd", "provider", "named"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    if request.param == "flagd":
        return FlagdAdapter(tmp_path / "flags.json")
    if request.param == "provider":
        return ProviderAdapter()
    adapter = ProviderAdapter()
    SHARED.put({})
    adapter.provider = SHARED
    adapter.source = OpenFeatureSource("named", load_factory("tests.contracts.flag_adapters:make_shared"))
    return adapter


async def test_a_providers_flags_steer_and_an_operators_go_before_them(
    controlled: ControlledSystem, adapter: Adapter
) -> None:
    await controlled.put(1)
    async with another_router(controlled.system, refresh_seconds=0.05, provider=adapter.source) as router:
        adapter.put({GET: True})
        await eventually(lambda: router.switches.current.operations.get("get") is True)
        _, told = await call(router.client, "Look", look("00000"))
        assert (told[metadata.REASON], told[metadata.STORE]) == ("get flag", "A"), "the owner answers"
        await set_flag(controlled, GET, False)
        await eventually(lambda: router.switches.current.operations.get("get") is False)
        await set_flag(controlled, GET, None)
        await eventually(lambda: router.switches.current.operations.get("get") is True)
        adapter.put({})
        await eventually(lambda: not router.switches.current.operations)


async def test_a_broken_file_leaves_the_last_good_flags_in_force_and_is_shown(
    controlled: ControlledSystem, tmp_path: Path
) -> None:
    adapter = FlagdAdapter(tmp_path / "flags.json")
    adapter.put({ALL: True})
    async with another_router(controlled.system, provider=adapter.source) as router:
        await eventually(lambda: router.switches.current.use_service_layer is True)
        adapter.path.write_text("{")
        await eventually(lambda: router.switches.trouble)
        _, told = await call(router.client, "Put", put("x"))
        assert (told[metadata.REASON], told[metadata.STORE]) == ("global flag", "B")
        shown = router.switches.views(0.0, "")[0]
        assert (shown.value, shown.source) == (True, f"flagd file {adapter.path}")
        assert "not JSON" in shown.trouble
        adapter.put({ALL: False})
        await eventually(lambda: router.switches.current.use_service_layer is False)
        assert router.switches.trouble == ""


async def test_a_router_without_its_control_store_keeps_the_flags_and_says_so(controlled: ControlledSystem) -> None:
    await set_flag(controlled, CREATE, True)
    controlled.store.reachable = False
    await eventually(lambda: controlled.flows.cache.stale)
    listed = await controlled.control.ListFlags(pb.ListFlagsRequest())
    (found,) = [flag for flag in listed.flags if flag.name == CREATE]
    assert (found.value, found.trouble) == (True, "the control store is out of reach")
    _, told = await call(controlled.system.client, "Put", put("x"))
    assert (told[metadata.STORE], told[metadata.REASON]) == ("B", "create flag")


async def test_records_follow_the_flag_for_everything_when_it_is_true_and_when_it_is_unset() -> None:
    async with running_controlled_system() as controlled:
        await controlled.put(3)
        await set_flag(controlled, ALL, True)
        await eventually(lambda: controlled.system.mover.settled and controlled.system.mover.buckets_at_b == 1024, 30)
        assert [await owner_of(controlled, f"{number:05}") for number in range(3)] == [Store.B] * 3
        await set_flag(controlled, GET, False)
        await eventually(lambda: controlled.system.mover.settled)
        assert controlled.system.mover.buckets_to_b == 1024, "the flag of an operation moves nothing"
        await set_flag(controlled, ALL, None)
        await eventually(lambda: controlled.system.mover.settled and controlled.system.mover.buckets_at_b == 0, 30)


@dataclass
class Steered:
    """The mover's settings, as the test chooses them."""

    current: Setting
    flags: Flags
    lasting_flags: Flags

    async def changed(self, since: Setting, timeout_seconds: float) -> Setting:
        return self.current


async def test_records_do_not_follow_a_flag_that_may_be_over_in_a_moment(controlled: ControlledSystem) -> None:
    await controlled.put(3)
    steered = Steered(Setting(9, Phase.CUTOVER), Flags(False), NO_FLAGS)
    mover = Mover(
        controlled.system.stores, Transfer(controlled.system.stores), steered, controlled.store, "mover", SystemClock()
    )
    loop = Loop("mover", mover.run_once)
    for lasting, wanted in ((NO_FLAGS, 1024), (Flags(False), 0)):
        steered.lasting_flags = lasting
        await mover.run_once(loop)
        await mover.run_once(loop)
        assert (mover.buckets_to_b, mover.buckets_at_b, mover.settled) == (wanted, wanted, True)


RUNS = 60
"""Writes of each client."""


async def test_routers_that_see_flips_at_different_times_lose_nothing(controlled: ControlledSystem) -> None:
    """Three routers, of which one sees each flip at once, one soon and one late. Each client writes its own book, and
    reads it, through any of them."""
    await step(controlled.flows.migration, Decision("ann", "a test", override=True))
    assert controlled.system.setting.current.phase is Phase.SHADOW
    chance = random.Random(7)
    async with AsyncExitStack() as stack:
        others: list[AnotherRouter] = [
            await stack.enter_async_context(another_router(controlled.system, refresh_seconds=seconds))
            for seconds in (0.05, 0.4)
        ]
        routers = [controlled.system.client, *(other.client for other in others)]
        books = [f"{number:02}" for number in range(6)]
        for book in books:
            await call(routers[0], "Put", put(book))
        clients = [asyncio.create_task(keep_writing(routers, book, random.Random(book))) for book in books]
        flips = 0
        while not all(client.done() for client in clients):
            await controlled.flows.migration.set_flag(ANN, chance.choice(NAMES), chance.choice([True, False, None]))
            flips += 1
            await asyncio.wait(clients, timeout=0.05)
        await asyncio.gather(*clients)
        assert flips > 3
        assert controlled.system.traffic.handoffs + sum(other.traffic.handoffs for other in others) > 0
        for book in books:
            owners = [
                store
                for store in Store
                if (row := (await controlled.system.ports(store).records.read(f"shelf/r/{book}")).row)
                and row.owner is store
            ]
            assert len(owners) <= 1, book


async def keep_writing(routers: list[Channel], book: str, chance: random.Random) -> None:
    for number in range(RUNS):
        reader = f"{book}-{number}"
        data, _ = await call(chance.choice(routers), "Lend", lend(book, reader))
        assert shelf_pb2.Book.FromString(data).reader == reader
        data, told = await call(chance.choice(routers), "Look", look(book))
        assert (shelf_pb2.Book.FromString(data).reader, told[metadata.STALE]) == (reader, "0")
