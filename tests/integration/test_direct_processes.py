"""Direct calls to real processes: answers of the stores themselves, deaths of a store and of the routers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libs.pb.baton.control.v1 import control_pb2
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceStub
from libs.proving.trial.world import Size, World
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from services.router.core.phase import Phase, Setting
from tests.system.direct import Client, seed, start_client
from tests.waiting import eventually

if TYPE_CHECKING:
    from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceAsyncStub
    from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceAsyncStub

NAME = "sandboxes/direct"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """All records belong to B."""
    found = World.embedded(tmp_path / "world", size=Size(xds=True))
    await seed(found.directory / "control.db", Setting(2, Phase.CUTOVER))
    async with found.running():
        yield found


@pytest.fixture
async def client(world: World, tmp_path: Path) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        yield await start_client(stack, tmp_path, world.nodes["router-1"].xds)


async def direct_calls(world: World, name: str = "B") -> int:
    """Calls that a store has answered without a router, since its start."""
    store = next(one for one in world.stores if one.store == name)
    token = ((metadata.TOKEN, store.token),)
    async with open_channel(store.address) as channel:
        stub: ReplicationServiceAsyncStub = ReplicationServiceStub(channel.grpc)
        answer = await stub.SyncDirectCalls(pb.SyncDirectCallsRequest(router="test"), timeout=5, metadata=token)
    return sum(call.calls for call in answer.calls)


async def until_direct(world: World, client: Client) -> None:
    """Call until the store answers without a router."""

    async def direct() -> bool:
        before = await direct_calls(world)
        assert await client.get(NAME) == NAME
        return await direct_calls(world) > before

    await eventually(direct, 30.0)


async def test_a_direct_client_outlives_the_routers_and_is_served_by_one_when_its_store_dies(
    world: World, client: Client
) -> None:
    assert (await client.ask(call="create", name=NAME))["answer"] == NAME
    await until_direct(world, client)

    await world.kill("router-1")
    for number in range(20):
        assert (await client.ask(call="label", name=NAME, label=str(number)))["answer"] == NAME
    await world.start("router-1")
    await until_direct(world, client)

    await world.kill("b-1")

    async def through_a_router() -> bool:
        answer = await client.ask(call="why", name=NAME)
        return answer == {"answer": NAME, "phase": "CUTOVER"}

    await eventually(through_a_router, 30.0)
    await world.start("b-1")
    await until_direct(world, client)
    assert (await client.ask(call="label", name=NAME))["answer"] == NAME


async def test_a_store_that_drains_costs_a_direct_client_no_error(world: World, client: Client) -> None:
    assert (await client.ask(call="create", name=NAME))["answer"] == NAME
    await until_direct(world, client)
    stopping = asyncio.create_task(world.restart("b-1"))
    while not stopping.done():
        assert await client.get(NAME) == NAME
    await stopping
    await until_direct(world, client)


async def test_direct_writes_survive_a_rollback_and_go_on_at_the_other_store(world: World, client: Client) -> None:
    assert (await client.ask(call="create", name=NAME))["answer"] == NAME
    await until_direct(world, client)
    before = await direct_calls(world, "A")
    numbers = itertools.count()

    async def written() -> bool:
        number = str(next(numbers))
        assert (await client.ask(call="label", name=NAME, label=number))["answer"] == NAME
        assert (await client.ask(call="number", name=NAME))["answer"] == number
        return await direct_calls(world, "A") > before

    assert not await written()
    await roll_back(world)
    await eventually(written, 30.0)


async def roll_back(world: World) -> None:
    request = control_pb2.RollbackPhaseRequest(actor="test", reason="test", to=control_pb2.PHASE_OFF)
    async with open_channel(world.controls[0]) as channel:
        stub: ControlServiceAsyncStub = ControlServiceStub(channel.grpc)
        await stub.RollbackPhase(request, timeout=10, metadata=((metadata.TOKEN, world.operator_token),))
