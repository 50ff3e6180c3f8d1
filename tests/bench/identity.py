"""A read through the router with tokens of an issuer against the same read without authentication.

Both systems run in this process, so a figure counts client, router and store.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from libs.identity.port import AUTHORIZATION
from libs.pb.sandbox.v1.sandbox_service_pb2 import GetSandboxRequest
from libs.rpc.channel import RawCallable, open_channel
from libs.sandboxes.schema import METADATA, SCHEMAS
from tests.bench.calls import GET, path_of
from tests.bench.measure import Figure, Round, Rounds, Target, alternate
from tests.bench.site import CALL_SECONDS, Site
from tests.contracts.identity_adapters import AUDIENCE, EC, ISSUER, claims, jwks, write
from tests.system.programs import running_programs
from tests.system.store import new

NONE, JWT = "none", "jwt"
TARGET = Target(1.05, of_ratio=True)
_CALLS = 40
_CPU = "all"
_NAME = "one"


async def measure(site: Site) -> list[Figure]:
    return await compare(site.pick(80, 40))


async def compare(rounds: int) -> list[Figure]:
    async with AsyncExitStack() as stack:
        contenders = {
            kind: partial(_round, await stack.enter_async_context(_calling(kind)), _metadata(kind))
            for kind in (NONE, JWT)
        }
        found = await alternate(rounds, contenders)
    none, jwt = found[NONE], found[JWT]
    return [
        Figure(f"{GET} with jwt: CPU", "ms/call", _cpu(jwt), _cpu(none), NONE, TARGET),
        Figure(f"{GET} with jwt: p50", "ms", jwt.p50, none.p50, NONE),
    ]


def _cpu(found: Rounds) -> float:
    """Milliseconds per call: the median of many short rounds, since other processes disturb some of them."""
    return statistics.median(1000 * one.cpu[_CPU] / len(one.milliseconds) for one in found.rounds)


def _metadata(kind: str) -> grpc.aio.Metadata:
    token = ((AUTHORIZATION, f"Bearer {EC.sign(claims())}"),) if kind == JWT else ()
    return grpc.aio.Metadata((METADATA, str(SCHEMAS.newest)), *token)


@asynccontextmanager
async def _calling(kind: str) -> AsyncIterator[RawCallable]:
    """The method at a router whose A has one record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = write(folder / "jwks.json", jwks(EC))
        tokens = {"public_auth": JWT, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_keys": str(keys)}
        settings: dict[str, Any] = tokens if kind == JWT else {"public_auth": NONE}
        async with running_programs(folder, **settings) as programs, open_channel(programs.grpc["router"]) as channel:
            create = channel.multi_callable(path_of("CreateSandbox"))
            await create(new(_NAME).SerializeToString(), metadata=_metadata(kind))
            yield channel.multi_callable(path_of(GET))


async def _round(call: RawCallable, metadata: grpc.aio.Metadata, _: int) -> Round:
    request = GetSandboxRequest(name=f"sandboxes/{_NAME}").SerializeToString()
    milliseconds: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    for _number in range(_CALLS):
        sent = time.perf_counter()
        await call(request, timeout=CALL_SECONDS, metadata=metadata)
        milliseconds.append((time.perf_counter() - sent) * 1000)
    return Round(time.perf_counter() - began, milliseconds, {_CPU: time.process_time() - cpu})
