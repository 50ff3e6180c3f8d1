"""A router's control API in front of a whole system in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from opentelemetry.metrics import NoOpMeter

from libs.clock import SystemClock
from libs.eventlog.codes import Codes
from libs.eventlog.signed import SignedLog
from libs.ownership.model import Store
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.rpc.channel import open_channel
from libs.rpc.server import Server, ServerConfig
from libs.tasks import Loop
from services.router.control.memory import MemoryControlStore
from services.router.features import FEATURES, log, signals, steering
from services.router.features.connections import Connections
from services.router.features.shared import SharedFlows
from services.router.flows.jobs.rehearsal import PropagationDelays
from services.router.flows.moving.transfer import Transfer
from services.router.settings import RouterSettings
from tests.contracts.pb.toy import shelf_pb2
from tests.system.whole import System, running_system

if TYPE_CHECKING:
    from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceAsyncStub


QUICK = PropagationDelays(seen_by_all_seconds=0.5, counted_by_all_seconds=0.05)
"""Delays for one router in one process."""


@dataclass
class ControlledSystem:
    """A router with its control API."""

    system: System
    flows: SharedFlows
    address: str
    control: ControlServiceAsyncStub
    server: Server
    """Server of the control API."""

    @property
    def store(self) -> MemoryControlStore:
        return self.system.control

    async def put(self, count: int) -> None:
        """Create records at the store that the setting selects."""
        for number in range(count):
            order = shelf_pb2.PutOrder(token=str(uuid4()), where=shelf_pb2.Place(room="r", isbn=f"{number:05}"))
            await self.system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)

    async def records_at(self, store: Store) -> int:
        return (await self.system.ports(store).inspection.census()).records


APART = frozenset(
    {log.relays, log.adopted_logs, log.heartbeat, log.retention, steering.direct_clients, signals.metrics}
)
"""Features of a router that are left out: the system below has its own, or a test would wait for them."""


@asynccontextmanager
async def running_controlled_system(
    *, token: bytes | None = None, codes: Codes | None = None, **system: Any
) -> AsyncIterator[ControlledSystem]:
    """The options of `running_system`. `token`: the token of the control listener. `codes`: those of the router."""
    async with running_system(**system) as running, AsyncExitStack() as stack:
        flows = _flows(running, codes)
        server = Server(ServerConfig("127.0.0.1:0", "control", token=token), [flows.control_api()])
        stack.push_async_callback(server.drain, 0.2)
        await server.start()
        loops = (running.setting.loop, flows.jobs.loop, flows.measurement.loop, *flows.feature_loops)
        async with running_loops(*loops), open_channel(server.address) as channel:
            yield ControlledSystem(running, flows, server.address, ControlServiceStub(channel.grpc), server)


def _flows(running: System, codes: Codes | None) -> SharedFlows:
    """The shared flows of a router on this system."""
    connections = Connections(
        running.control,
        running.log if codes is None else SignedLog(running.log, codes),
        codes,
        running.stores,
        running.setting,
        running.switches,
        running.contract,
        NoOpMeter(""),
    )
    flows = SharedFlows(
        settings=RouterSettings(
            store_a="127.0.0.1:1",
            store_b="127.0.0.1:2",
            control_store="memory:",
            event_log="memory:",
            reconcile_seconds=0,
        ),
        name="router-1",
        clock=SystemClock(),
        connections=connections,
        traffic=running.traffic,
        transfer=Transfer(running.stores),
        mover=running.mover,
        observer=running.observer,
        shadow=running.shadow,
        auditor=running.auditor,
        clients=running.clients,
        public_address=lambda: running.router.address,
    )
    for feature in FEATURES:
        if feature is steering.rehearsal:
            flows.add([partial(steering.rehearsal, waits=QUICK)])
        elif feature not in APART:
            flows.add([feature])
    return flows


@asynccontextmanager
async def running_loops(*loops: Loop) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop.run()) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
