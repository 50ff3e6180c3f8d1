"""A, B and a router in this process, each with its own listeners, opened as their programs open them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from libs.backend.process import Backend, open_backend
from libs.clock import SystemClock
from libs.contract.descriptors import Contract
from libs.locks.memory import MemoryLocks
from libs.proving.servers.ports import free_port
from libs.sandboxes.operations import SandboxOperations
from libs.sandboxes.schema import SCHEMAS
from services.router.features.router import open_router
from services.router.settings import RouterSettings
from services.service_layer.settings import ServiceLayerSettings
from services.service_layer.store import embedded
from services.simple_mcp.settings import SimpleMcpSettings
from services.simple_mcp.store import initialise
from services.simple_mcp.store import open_store as open_old_store
from tests.contracts.identity_adapters import write

CONTRACT = "libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService"
PLACES = ("a", "b", "router")
TOKEN = "t" * 16
"""Shared token of the programs, if they authenticate their callers."""


@dataclass(frozen=True)
class Programs:
    """Addresses of A, B and a router in this process."""

    http: Mapping[str, str]
    grpc: Mapping[str, str]
    internal: Mapping[str, str]
    address: str
    """Address of the router's control API."""
    passed_on: str = ""
    """Address of the router's internal listener; "" if it has none."""

    def url(self, place: str) -> str:
        return f"http://{self.http[place]}/mcp"


@asynccontextmanager
async def _locks() -> AsyncIterator[MemoryLocks]:
    yield MemoryLocks()


@asynccontextmanager
async def running_programs(
    folder: Path,
    *,
    router_settings: Any = None,
    store_settings: Any = None,
    router_internal: bool = False,
    **settings_of_all: Any,
) -> AsyncIterator[Programs]:
    """A owns everything. B passes calls that it cannot answer on to the router.

    `router_settings`, `store_settings`: mappings with settings of the router and of the stores alone.
    `router_internal`: they pass calls on to the router's internal listener."""
    router = f"127.0.0.1:{free_port()}"
    inside = f"127.0.0.1:{free_port()}" if router_internal else ""
    if settings_of_all.get("public_auth", "none") != "none":
        settings_of_all.setdefault("token_file", write(folder / "token", TOKEN))
    common: dict[str, Any] = {
        "internal": "127.0.0.1:0",
        "router_internal": inside,
        "http": "127.0.0.1:0",
        "event_log": "memory:",
        **settings_of_all,
        **(store_settings or {}),
    }
    old = SimpleMcpSettings(public="127.0.0.1:0", database=folder / "a.db", router=router, **common)
    new = ServiceLayerSettings(public="127.0.0.1:0", database=f"sqlite:///{folder}/b.db", router=router, **common)
    initialise(old.database)
    shared: dict[str, Any] = {
        "operations": SandboxOperations(),
        "contract": Contract.load(CONTRACT),
        "schema_version": SCHEMAS.newest,
        "open_locks": _locks,
    }
    assert new.file is not None
    a = Backend(
        open_store=partial(open_old_store, old.database, SystemClock(), old.outbox_limits),
        public_schema=SCHEMAS.oldest,
        notice="this endpoint will be removed: call the router",
        **shared,
    )
    b = Backend(open_store=partial(embedded.open_store, new.file, SystemClock(), new.outbox_limits), **shared)
    async with AsyncExitStack() as stack:
        at_a = await stack.enter_async_context(open_backend(a, old))
        at_b = await stack.enter_async_context(open_backend(b, new))
        settings = RouterSettings(
            public=router,
            internal=inside,
            control="127.0.0.1:0",
            http="127.0.0.1:0",
            store_a=at_a.internal.address,
            store_b=at_b.internal.address,
            event_log="memory:",
            **{"control_store": "memory:", **settings_of_all, **(router_settings or {})},
        )
        at_router = await stack.enter_async_context(open_router(settings))
        tasks = [asyncio.create_task(loop.run()) for loop in at_router.loops]
        assert at_a.http is not None and at_b.http is not None and at_router.http is not None
        try:
            yield Programs(
                {"a": at_a.http.address, "b": at_b.http.address, "router": at_router.http.address},
                {"a": at_a.public.address, "b": at_b.public.address, "router": router},
                {"a": at_a.internal.address, "b": at_b.internal.address},
                at_router.control.address,
                inside,
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
