"""Starts the old service: `python -m services.simple_mcp`; `init` makes an empty database once."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from libs.backend.command import SERVE, main
from libs.backend.process import Backend, run_backend
from libs.clock import SystemClock
from libs.contract.descriptors import Contract
from libs.locks.memory import MemoryLocks
from libs.sandboxes.operations import SandboxOperations
from libs.sandboxes.schema import SCHEMAS
from services.simple_mcp.settings import SimpleMcpSettings
from services.simple_mcp.store import initialise, open_store
from services.simple_mcp.store.audit import open_audit

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
        notice="this endpoint goes away: call the router",
    )
    await run_backend(backend, settings)


async def init(settings: SimpleMcpSettings) -> None:
    initialise(settings.database)
    log.info("made an empty database: %s", settings.database)


@asynccontextmanager
async def _open_locks() -> AsyncIterator[MemoryLocks]:
    yield MemoryLocks()


if __name__ == "__main__":
    sys.exit(main("simple_mcp", SimpleMcpSettings, {SERVE: serve, "init": init}))
