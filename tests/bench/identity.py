"""A read through the router with tokens of an issuer, of an admin and of a caller of one account, and one over TLS on
every leg, against the same plain read.

All systems run in this process, so a figure counts client, router and store.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from libs.identity.port import AUTHORIZATION
from libs.pb.sandbox.v1.sandbox_service_pb2 import GetSandboxRequest
from libs.rpc.channel import RawCallable, open_channel
from libs.sandboxes.schema import METADATA, SCHEMAS
from libs.tls.files import NamedFile, TlsFiles
from libs.tls.making import Authority
from libs.tls.process import ClientTls
from tests.bench.calls import GET, path_of
from tests.bench.measure import Figure, Round, Rounds, Target, alternate
from tests.bench.site import CALL_SECONDS, Site
from tests.contracts.identity_adapters import AUDIENCE, EC, ISSUER, claims, jwks, write
from tests.system.programs import running_programs
from tests.system.store import new

PLAIN, JWT, ACCOUNT, TLS = "plain", "jwt", "jwt of one account", "TLS"
TARGET = Target(1.05, of_ratio=True)
_CALLS = 40
_CPU = "all"
_NAME = "one"


@dataclass(frozen=True, slots=True)
class Reader:
    """A client of one system whose A has one record."""

    address: str
    call: RawCallable
    metadata: grpc.aio.Metadata
    tls: ClientTls | None


async def measure(site: Site) -> list[Figure]:
    return await compare(site.pick(80, 40))


async def compare(rounds: int) -> list[Figure]:
    async with AsyncExitStack() as stack:
        readers = {kind: await stack.enter_async_context(_reading(kind)) for kind in (PLAIN, JWT, ACCOUNT, TLS)}
        found = await alternate(rounds, {kind: partial(_round, reader) for kind, reader in readers.items()})
        opened = await alternate(rounds, {kind: partial(_opened, readers[kind]) for kind in (PLAIN, TLS)})
    plain = found[PLAIN]
    return [
        Figure(f"{GET} with jwt: CPU", "ms/call", _cpu(found[JWT]), _cpu(plain), PLAIN, TARGET),
        Figure(f"{GET} with jwt: p50", "ms", found[JWT].p50, plain.p50, PLAIN),
        Figure(f"{GET} with {ACCOUNT}: CPU", "ms/call", _cpu(found[ACCOUNT]), _cpu(found[JWT]), JWT, TARGET),
        Figure(f"{GET} over TLS: CPU", "ms/call", _cpu(found[TLS]), _cpu(plain), PLAIN),
        Figure(f"{GET} over TLS: p50", "ms", found[TLS].p50, plain.p50, PLAIN),
        Figure("new connection and first read over TLS: p50", "ms", opened[TLS].p50, opened[PLAIN].p50, PLAIN),
    ]


def _cpu(found: Rounds) -> float:
    """Milliseconds per call: the median of many short rounds, since other processes disturb some of them."""
    return statistics.median(1000 * one.cpu[_CPU] / len(one.milliseconds) for one in found.rounds)


@asynccontextmanager
async def _reading(kind: str) -> AsyncIterator[Reader]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings, token, tls = _security(kind, folder)
        metadata = grpc.aio.Metadata((METADATA, str(SCHEMAS.newest)), *token)
        async with (
            running_programs(folder, **settings) as programs,
            open_channel(programs.grpc["router"], tls) as channel,
        ):
            create = channel.multi_callable(path_of("CreateSandbox"))
            await create(new(_NAME).SerializeToString(), metadata=metadata)
            yield Reader(programs.grpc["router"], channel.multi_callable(path_of(GET)), metadata, tls)


def _security(kind: str, folder: Path) -> tuple[dict[str, Any], list[tuple[str, str]], ClientTls | None]:
    """Settings of all programs, and the client's token and TLS."""
    if kind in (JWT, ACCOUNT):
        granted = {"accounts": ["acme"]} if kind == ACCOUNT else {"accounts": None, "roles": ["admin"]}
        keys = write(folder / "jwks.json", jwks(EC))
        issuer = {"public_auth": JWT, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_keys": str(keys)}
        return issuer, [(AUTHORIZATION, f"Bearer {EC.sign(claims(**granted))}")], None
    if kind == TLS:
        authority = Authority(folder)
        pair = authority.issue("all", ("127.0.0.1",))
        files = {"tls_certificate": pair.certificate, "tls_key": pair.key, "tls_ca": authority.file}
        trusted = TlsFiles(None, None, NamedFile("tls_ca", authority.file))
        return {"public_auth": "none", **files}, [], ClientTls(trusted)
    return {"public_auth": "none"}, [], None


async def _round(reader: Reader, _: int) -> Round:
    began, cpu = time.perf_counter(), time.process_time()
    milliseconds = [await _read(reader.call, reader.metadata) for _number in range(_CALLS)]
    return Round(time.perf_counter() - began, milliseconds, {_CPU: time.process_time() - cpu})


async def _opened(reader: Reader, _: int) -> Round:
    """One read over a connection of its own."""
    began, cpu = time.perf_counter(), time.process_time()
    async with open_channel(reader.address, reader.tls) as channel:
        await _read(channel.multi_callable(path_of(GET)), reader.metadata)
        milliseconds = [(time.perf_counter() - began) * 1000]
    return Round(time.perf_counter() - began, milliseconds, {_CPU: time.process_time() - cpu})


async def _read(call: RawCallable, metadata: grpc.aio.Metadata) -> float:
    """Milliseconds."""
    request = GetSandboxRequest(name=f"sandboxes/{_NAME}").SerializeToString()
    sent = time.perf_counter()
    await call(request, timeout=CALL_SECONDS, metadata=metadata)
    return (time.perf_counter() - sent) * 1000
