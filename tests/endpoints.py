"""The three servers of the contract in one process over stores in memory, each with both of its listeners."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from libs.ownership.model import Store
from tests.http_doors import KIT, http_door
from tests.system import running_system
from tests.unit.backends import CONTRACT, backend

ROOT = Path(__file__).parents[1]
NAMES = ("old service", "new service", "router")


@dataclass(frozen=True)
class Endpoint:
    """The addresses of one server."""

    grpc: str
    http: str


@asynccontextmanager
async def endpoint(name: str) -> AsyncIterator[Endpoint]:
    """`name`: one of NAMES."""
    async with AsyncExitStack() as stack:
        if name == "router":
            system = await stack.enter_async_context(running_system(KIT))
            service, server, schema = system.service, system.router, 0
        else:
            old = name == "old service"
            # Without a router, A owns all buckets.
            found = await stack.enter_async_context(backend(Store.A, old=old))
            service, server, schema = found.service, found.server, 1 if old else 0
        door = await stack.enter_async_context(http_door(CONTRACT, service, server, default_schema=schema))
        yield Endpoint(server.address, door.address)
