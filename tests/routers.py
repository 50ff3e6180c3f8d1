"""Additional routers in front of a system in one process, each with its own view of setting and flags."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from libs.clock import SystemClock
from libs.flags.memory import MemoryFlags
from libs.flags.port import FlagSource
from libs.rpc.channel import Channel, open_channel
from libs.rpc.clients import Clients
from libs.rpc.server import Server, ServerConfig
from libs.tasks import Background
from services.router.api.proxy import Proxy
from services.router.core.flags import FlagNames
from services.router.flows.calls.forward import Forward, ReadPolicy
from services.router.flows.calls.listing import Listing
from services.router.flows.calls.patience import Patience
from services.router.flows.calls.watching import Watching
from services.router.flows.moving.bucket_owners import Absences
from services.router.flows.moving.handoff import Handoffs
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.flags import Switches
from services.router.flows.steering.observe import SettingCache
from services.router.flows.traffic import Traffic
from tests.shelf import CONTRACT
from tests.system import WATCH_PATIENCE_SECONDS, System


@dataclass
class Another:
    setting: SettingCache
    switches: Switches
    traffic: Traffic
    client: Channel


@asynccontextmanager
async def another_router(
    system: System, *, refresh_seconds: float = 0.5, provider: FlagSource | None = None
) -> AsyncIterator[Another]:
    """A router that shares stores and control store with the system's router, and moves no buckets."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        switches = Switches(FlagNames.of(CONTRACT), MemoryFlags("control store"), provider, clock)
        stack.callback(switches.close)
        setting = SettingCache(system.control, clock, switches, interval_seconds=refresh_seconds)
        await setting.refresh()
        traffic = Traffic()
        transfer = Transfer(system.stores)
        handoffs = Handoffs(transfer, Absences(transfer), traffic)
        patience = Patience(traffic, 0.0)
        forward = Forward(system.stores, handoffs, traffic, clock, ReadPolicy(), patience)
        listing = Listing(system.stores, traffic, ReadPolicy(), system.shadow, clock, patience)
        writes = Background(100, "writes")
        watching = Watching(system.stores, setting, clock, WATCH_PATIENCE_SECONDS)
        proxy = Proxy(
            CONTRACT,
            forward,
            listing,
            setting,
            traffic,
            writes,
            clock,
            system.shadow,
            system.auditor,
            watching=watching,
            clients=Clients(CONTRACT.schemas, clock),
        )
        server = Server(ServerConfig("127.0.0.1:0", "public"), [proxy.service()])
        await server.start()
        stack.push_async_callback(server.drain, 0.0)
        client = await stack.enter_async_context(open_channel(server.address))
        tasks = [asyncio.create_task(loop.run()) for loop in (setting.loop, *switches.loops)]
        try:
            yield Another(setting, switches, traffic, client)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await writes.drain(1.0)
