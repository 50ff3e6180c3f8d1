"""The old service: `python -m services.simple_mcp`. `init` creates an empty database once.

`leave` gives the file back to the old program, provided that the other store owns no record and no bucket. `status`
reports whether `leave` is possible.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from libs.backend.process import SERVE, Backend, main, run_backend
from libs.clock import SystemClock
from libs.contract.descriptors import Contract
from libs.locks.memory import MemoryLocks
from libs.sandboxes.operations import SandboxOperations
from libs.sandboxes.schema import SCHEMAS
from services.simple_mcp.settings import SimpleMcpSettings
from services.simple_mcp.store import MIGRATIONS, initialise, open_store
from services.simple_mcp.store.audit import open_audit
from services.simple_mcp.store.leave import leave as leave_file
from services.simple_mcp.store.leave import status as file_status

log = logging.getLogger(__name__)

CONTRACT = "libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService"


async def serve(settings: SimpleMcpSettings) -> None:
    backend = Backend(
        operations=SandboxOperations(),
        contract=Contract.load(CONTRACT),
        schema_version=SCHEMAS.newest,
        open_store=partial(open_store, settings.database, SystemClock(), settings.outbox_limits),
        open_locks=_open_locks,
        open_audit=partial(open_audit, settings.database, SystemClock()),
        public_schema=SCHEMAS.oldest,
        notice="this endpoint will be removed: call the router",
    )
    await run_backend(backend, settings)


async def init(settings: SimpleMcpSettings) -> None:
    initialise(settings.database)
    log.info("created an empty database: %s", settings.database)


async def leave(settings: SimpleMcpSettings) -> None:
    left = await asyncio.to_thread(leave_file, settings.database, MIGRATIONS)
    log.info("%s is the old program's again: %d rows; %d tombstones were dropped", settings.database, *left)
    log.info("to begin another migration, give service_layer an empty database and a new log")


async def status(settings: SimpleMcpSettings) -> None:
    for line in await asyncio.to_thread(file_status, settings.database):
        print(line)


@asynccontextmanager
async def _open_locks() -> AsyncIterator[MemoryLocks]:
    yield MemoryLocks()


if __name__ == "__main__":
    sys.exit(main("simple_mcp", SimpleMcpSettings, {SERVE: serve, "init": init, "leave": leave, "status": status}))
