"""The new service: `python -m services.service_layer`. `migrate` brings its database's schema to this release; `check`
checks the database without changing it.

A process imports PostgreSQL and Redis only if it uses them, because an import takes a second or two.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from libs.backend.audit import AuditParts, Scratch
from libs.backend.process import SERVE, Backend, main, run_backend
from libs.clock import SystemClock
from libs.contract.descriptors import Contract
from libs.locks.memory import MemoryLocks
from libs.locks.port import LockManager
from libs.sandboxes.audit import SandboxAudit
from libs.sandboxes.operations import SandboxOperations
from libs.sandboxes.schema import SCHEMAS
from libs.store.port import StorePorts
from services.service_layer.settings import ServiceLayerSettings
from services.service_layer.store import embedded

log = logging.getLogger(__name__)

CONTRACT = "libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService"


async def serve(settings: ServiceLayerSettings) -> None:
    backend = Backend(
        operations=SandboxOperations(),
        contract=Contract.load(CONTRACT),
        schema_version=SCHEMAS.newest,
        open_store=lambda: _open_store(settings),
        open_locks=lambda: _open_locks(settings),
        open_audit=lambda: _open_audit(settings),
        server_id=lambda: _server_id(settings),
    )
    await run_backend(backend, settings)


async def migrate(settings: ServiceLayerSettings) -> None:
    if settings.file is None:
        from services.service_layer.store import postgres_schema

        version = await postgres_schema.migrate(settings.database)
        log.info("the database has schema %s", version)
        return
    async with _open_store(settings) as store:
        log.info("the database is ready: %s", store.backend)


async def check(settings: ServiceLayerSettings) -> None:
    if settings.file is not None:
        log.info("the embedded store is a file and has no server to check")
        return
    from services.service_layer.store import postgres_schema

    log.info("the database fits: %s", await postgres_schema.check(settings.database))


def _open_store(settings: ServiceLayerSettings) -> AbstractAsyncContextManager[StorePorts]:
    clock = SystemClock()
    if settings.file is not None:
        return embedded.open_store(settings.file, clock, settings.outbox_limits)
    from services.service_layer.store import postgres, postgres_pool

    pools = postgres_pool.PoolSettings(settings.request_pool, settings.apply_pool, settings.control_pool)
    options = postgres.PostgresOptions(pools=pools, migrate=settings.migrate_at_start)
    return postgres.open_store(settings.database, clock, settings.outbox_limits, options)


async def _server_id(settings: ServiceLayerSettings) -> str:
    if settings.file is not None:
        return ""
    from services.service_layer.server import server_id

    return await server_id(settings.database)


@asynccontextmanager
async def _open_audit(settings: ServiceLayerSettings) -> AsyncIterator[AuditParts]:
    scratch: Scratch
    if settings.file is not None:
        scratch = partial(embedded.open_scratch, settings.file, SystemClock())
    else:
        from services.service_layer.store.postgres_scratch import open_scratch

        scratch = partial(open_scratch, settings.database, SystemClock())
    yield AuditParts(SandboxAudit(), scratch=scratch)


@asynccontextmanager
async def _open_locks(settings: ServiceLayerSettings) -> AsyncIterator[LockManager]:
    if settings.redis:
        from libs.locks.redis import RedisLocks
        from libs.locks.redis_security import RedisSecurity

        security = RedisSecurity(
            settings.redis_password_file, settings.redis_ca, settings.redis_certificate, settings.redis_key
        )
        async with RedisLocks.open(settings.redis, security=security) as locks:
            yield locks
    else:
        yield MemoryLocks()


if __name__ == "__main__":
    sys.exit(main("service_layer", ServiceLayerSettings, {SERVE: serve, "migrate": migrate, "check": check}))
