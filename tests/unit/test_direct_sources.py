"""What direct routes are made from: settled buckets, steering, health of processes; and who may get them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from libs.contract.descriptors import Contract
from libs.ownership.model import BUCKETS, Store
from services.router.core.phase import Phase, Setting
from services.router.core.plan import NO_FLAGS, Flags
from services.router.core.routes import NO_ROUTES, Rpc, Run, Settled
from services.router.flows.steering.direct_routes import DirectRoutes, rpcs_of
from services.router.flows.steering.endpoints import Endpoints
from tests.system.direct import echo
from tests.system.programs import CONTRACT
from tests.waiting import eventually

B = Store.B


@dataclass
class Steering:
    current: Setting = field(default_factory=lambda: Setting(1, Phase.CUTOVER))
    flags: Flags = NO_FLAGS
    lasting_flags: Flags = NO_FLAGS
    when_changed: list[Any] = field(default_factory=list)

    def change(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        for note in self.when_changed:
            note()


@dataclass
class Moved:
    at_home: Settled = (B,) * BUCKETS


def known(steering: Steering, mover: Moved) -> DirectRoutes:
    found = DirectRoutes(Contract.load(CONTRACT), steering, mover, (), 10)
    found.serving = frozenset(Store)
    return found


def test_methods_that_name_one_record_can_be_direct() -> None:
    rpcs = {rpc.path.rpartition("/")[2]: rpc for rpc in rpcs_of(Contract.load(CONTRACT))}
    assert rpcs["GetSandbox"] == Rpc("/sandbox.v1.SandboxService/GetSandbox", "get", True, True)
    assert rpcs["AcquireLease"].is_keyed and not rpcs["AcquireLease"].is_read
    assert {name for name, rpc in rpcs.items() if not rpc.is_keyed} == {"ListSandboxes", "WatchSandboxes"}


def test_a_store_that_does_not_report_its_direct_calls_gets_none() -> None:
    direct = known(Steering(), Moved())
    direct.look()
    assert direct.current.direct_at(B)
    direct.reporting = frozenset({Store.A})
    direct.look()
    assert not direct.current.direct_at(B)


def test_a_change_of_the_setting_is_in_the_routes_before_it_returns() -> None:
    steering = Steering()
    direct = known(steering, Moved())
    direct.look()
    assert direct.current.direct_at(B)["/sandbox.v1.SandboxService/GetSandbox"] == (Run(0, BUCKETS, B),)
    before = direct.changes.count
    steering.change(current=Setting(2, Phase.OFF, hold=True))
    assert direct.changes.count > before
    assert (direct.current.generation, direct.current.direct_at(B)) == (2, {})


def test_nothing_is_announced_while_nothing_changes() -> None:
    direct = known(Steering(), Moved())
    direct.look()
    before = direct.changes.count
    direct.look()
    assert direct.changes.count == before


async def test_buckets_that_arrive_and_flags_of_a_provider_are_seen_soon() -> None:
    steering, mover = Steering(), Moved((None,) * BUCKETS)
    direct = known(steering, mover)
    running = asyncio.create_task(direct.loop.run())
    try:
        await eventually(lambda: direct.current is not NO_ROUTES)
        assert direct.current.direct_at(B) == {}
        mover.at_home = (B,) * BUCKETS
        await eventually(lambda: len(direct.current.direct_at(B)) == 8)
        steering.flags = Flags(use_service_layer=False)
        await eventually(lambda: not direct.current.direct_at(B))
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@asynccontextmanager
async def watched(**groups: str) -> AsyncIterator[Endpoints]:
    found = Endpoints({name: partial(str, one) for name, one in groups.items()}, None, lambda: None)
    running = [asyncio.create_task(loop.run()) for loop in found.loops]
    try:
        yield found
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_name_stands_for_the_addresses_that_it_resolves_to() -> None:
    server = echo("one").server
    await server.start()
    try:
        async with watched(store=f"localhost:{server.port}") as endpoints:
            await eventually(lambda: f"127.0.0.1:{server.port}" in endpoints.serving["store"])
            assert all(address.endswith(f":{server.port}") for address in endpoints.known("store"))
    finally:
        await server.drain(0.1)


async def test_a_group_without_a_process_that_serves_is_an_alert() -> None:
    server = echo("one").server
    await server.start(serving=False)
    try:
        async with watched(store=server.address, other="") as endpoints:
            await eventually(lambda: "it does not serve" in "".join(endpoints.alerts))
            assert [alert.partition(":")[0] for alert in endpoints.alerts] == ["store"]
            await server.set_serving(True)
            await eventually(lambda: endpoints.serving["store"] == (server.address,))
            assert endpoints.alerts == []
    finally:
        await server.drain(0.1)
