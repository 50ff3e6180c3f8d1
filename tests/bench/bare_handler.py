"""A bare handler, as the minimum cost of GetSandbox in Python: it parses the name, runs the store's own statement for a
point read, and answers the stored payload. It checks nothing.

python -m tests.bench.bare_handler LISTEN DATABASE
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from typing import Any

import asyncpg
import grpc

from libs.ownership.model import bucket_of
from libs.pb.sandbox.v1.sandbox_service_pb2 import GetSandboxRequest
from libs.process import event_loop
from libs.proving.trial.requests import SERVICE
from libs.store.sqlite_schema import ROW_PAYLOAD, Statements
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_pool import PoolSettings
from services.simple_mcp.store.flat import LAYOUT
from tests.bench.bare_postgres import SETTINGS
from tests.bench.proxy import OPTIONS

Read = Callable[[str], Awaitable[bytes]]


def from_sqlite(connection: sqlite3.Connection) -> Read:
    statement = Statements(LAYOUT).read

    async def read(key: str) -> bytes:
        found = connection.execute(statement, (key, bucket_of(key))).fetchone()
        payload: bytes = found[ROW_PAYLOAD]
        return payload

    return read


def from_postgres(pool: Any) -> Read:
    async def read(key: str) -> bytes:
        found = await pool.fetchrow(sql.READ, key, bucket_of(key))
        payload: bytes = found["payload"]
        return payload

    return read


async def serve(listen: str, database: str) -> None:
    async with AsyncExitStack() as stack:
        if database.startswith("postgresql://"):
            size = PoolSettings().request_pool
            made = asyncpg.create_pool(database, min_size=size, max_size=size, server_settings=SETTINGS)
            read = from_postgres(await stack.enter_async_context(made))
        else:
            read = from_sqlite(stack.enter_context(closing(sqlite3.connect(database, isolation_level=None))))

        async def handle(request: GetSandboxRequest, _: Any) -> bytes:
            return await read(request.name)

        method: Any = grpc.unary_unary_rpc_method_handler(handle, GetSandboxRequest.FromString)
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"GetSandbox": method}),))
        server.add_insecure_port(listen)
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        runner.run(serve(*sys.argv[1:]))
