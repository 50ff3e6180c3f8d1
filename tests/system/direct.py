"""A router's xDS listener, with clients that are programs of their own.

The router steers a real A and B. In the place of their public listeners, and of its own, clients reach servers that
answer every call with their own name: so an answer shows the route that its call took.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from baton_client.bootstrap import bootstrap
from baton_client.tls import Tls
from libs.clock import SystemClock
from libs.contract.descriptors import Contract
from libs.ownership.model import BUCKETS
from libs.pb.baton.control.v1 import control_pb2
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.pb.baton.xds.v1 import xds_pb2 as pb
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.proving.servers.ports import free_port
from libs.rpc.channel import Channel, open_channel
from libs.rpc.server import RawService, Server, ServerConfig
from libs.tls.files import TlsFiles
from libs.tls.process import ClientTls
from services.router.api.discovery import SERVICE
from services.router.control.port import JournalEntry
from services.router.control.sqlite import SqliteControlStore
from services.router.core.discovery import ROUTES
from services.router.core.phase import Setting
from tests.certificates import LOCAL, Authority, Pair, files
from tests.system.http import ROOT
from tests.system.programs import CONTRACT, Programs, running_programs
from tests.waiting import eventually

NAMES = ("store-a", "store-b", "router")
SECONDS = 30.0
TARGET = "xds:///sandbox.v1.SandboxService"


@dataclass
class Echo:
    """A server of the contract that answers with its name. It says by health whether it serves."""

    name: str
    server: Server
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def address(self) -> str:
        return self.server.address


def echo(name: str, address: str = "127.0.0.1:0", tls: TlsFiles | None = None) -> Echo:
    contract = Contract.load(CONTRACT)
    calls: Counter[str] = Counter()
    answer = sandbox_pb2.Sandbox(name=name).SerializeToString()

    def handler(method: str) -> Any:
        async def handle(request: bytes, context: Any) -> bytes:
            calls[method] += 1
            # A page of a list is another message: its field 1 is the sandboxes, and 2 the token.
            return b"\x12" + bytes([len(name)]) + name.encode() if method == "ListSandboxes" else answer

        return handle

    methods = {one: handler(one) for one, method in contract.methods.items() if method.watch is None}
    return Echo(name, Server(ServerConfig(address, "public", tls=tls), [RawService(contract.service, methods)]), calls)


class Client:
    """A program with a channel of its own (`tests.direct_client`)."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(SECONDS):
            line = await self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def get(self, name: str, *, bucket: bool = True) -> str:
        """The name of the server that answers, or the code of the error."""
        answer = await self.ask(call="get", name=name, bucket=bucket)
        return str(answer["answer"])

    async def list(self) -> str:
        return str((await self.ask(call="list"))["answer"])

    async def update(self, name: str) -> str:
        return str((await self.ask(call="update", name=name))["answer"])

    async def until(self, name: str, answer: str, seconds: float = SECONDS) -> None:
        """Call until that server answers."""

        async def answers() -> bool:
            found = await self.get(name)
            assert found == answer
            return True

        await eventually(answers, seconds)


@dataclass(frozen=True)
class Secured:
    """Certificates of one CA, for all legs. Those of stores and routers have one name in common."""

    authority: Authority
    common: str = "baton.test"

    def pair(self, name: str) -> Pair:
        return self.authority.issue(name, *LOCAL, self.common)

    def settings(self) -> dict[str, Any]:
        """Settings of A, B and the router."""
        pair, ca = self.pair("all"), self.authority.file
        own = {"tls_certificate": pair.certificate, "tls_key": pair.key, "tls_ca": ca}
        return {**own, "tls_client_ca": ca, "tls_public_client_ca": ca, "tls_server_name": self.common}

    def files(self, name: str) -> TlsFiles:
        """Files of a server that requires a certificate."""
        return files(self.pair(name), self.authority.file)

    def client(self) -> ClientTls:
        return ClientTls(files(self.pair("operator"), self.authority.file), self.common)

    def tls(self) -> Tls:
        """TLS of a client of the service."""
        pair = self.authority.issue("client", "client.test")
        return Tls(ca=self.authority.file, certificate=pair.certificate, key=pair.key)


@dataclass
class Direct:
    programs: Programs
    folder: Path
    echoes: dict[str, Echo]
    xds: str
    """Address of the router's xDS listener."""
    control: Any
    """Stub of its control API."""
    stack: AsyncExitStack

    async def client(self, target: str = TARGET, *, tls: Tls | None = None) -> Client:
        """Start a program that calls the target."""
        return await start_client(self.stack, self.folder, self.xds, target, tls)

    async def alerts(self) -> str:
        """All alerts of the router's status."""
        return "\n".join((await self.control.GetStatus(control_pb2.GetStatusRequest(), timeout=5)).alerts)

    async def set_flag(self, name: str, value: bool | None) -> None:
        request = control_pb2.SetFlagRequest(actor="test", reason="test", name=f"sandbox.routing.{name}", value=value)
        await self.control.SetFlag(request, timeout=5)

    async def roll_back(self) -> None:
        request = control_pb2.RollbackPhaseRequest(actor="test", reason="test", to=control_pb2.PHASE_OFF)
        await self.control.RollbackPhase(request, timeout=5)


async def start_client(
    stack: AsyncExitStack, folder: Path, xds: str, target: str = TARGET, tls: Tls | None = None
) -> Client:
    """Start a program that calls the target. `xds`: address of a router's listener. `tls`: of the client."""
    file = folder / f"bootstrap-{free_port()}.json"
    file.write_text(json.dumps(bootstrap(xds, node="test", tls=tls)))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.direct_client",
        target,
        *(map(str, (tls.ca, tls.certificate, tls.key)) if tls is not None else ()),
        cwd=ROOT,
        env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(file), "PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python/src'}"},
        stdin=PIPE,
        stdout=PIPE,
    )
    stack.push_async_callback(_end, process)
    return Client(process)


async def _end(process: Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def seed(file: Path, setting: Setting) -> None:
    """Make this the setting of a control store."""
    async with SqliteControlStore.open(file, clock=SystemClock()) as store:
        before = await store.load()
        assert await store.change(JournalEntry(0.0, "test", "advance", "test", before, setting))


@asynccontextmanager
async def running_direct(
    folder: Path,
    setting: Setting | None = None,
    settings: Mapping[str, Any] | None = None,
    secured: Secured | None = None,
) -> AsyncIterator[Direct]:
    """`setting`: of generation 2; None for the first one. `settings`: of the router. `secured`: for TLS on all legs."""
    control_store = folder / "control.db"
    if setting is not None:
        await seed(control_store, setting)
    async with AsyncExitStack() as stack:
        tls = secured.settings() if secured else {}
        echoes = {name: echo(name, tls=secured.files(name) if secured else None) for name in NAMES}
        for one in echoes.values():
            await one.server.start()
            stack.push_async_callback(one.server.drain, 0.1)
        xds = f"127.0.0.1:{free_port()}"
        own = {
            "control_store": f"sqlite:///{control_store}",
            "xds": xds,
            "xds_store_a": echoes["store-a"].address,
            "xds_store_b": echoes["store-b"].address,
            "xds_routers": echoes["router"].address,
            "xds_sample_permille": 0,
            **(settings or {}),
        }
        programs = await stack.enter_async_context(running_programs(folder, router_settings=own, **tls))
        client_tls = secured.client() if secured else None
        channel = await stack.enter_async_context(open_channel(programs.address, client_tls))
        clients = await stack.enter_async_context(AsyncExitStack())
        if setting is not None:
            async with RawClient.connected(xds, client_tls) as client:
                await client.complete()
        yield Direct(programs, folder, echoes, xds, ControlServiceStub(channel.grpc), clients)


class RawClient:
    """A client that speaks the protocol itself, and subscribes to routes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stream: Any = channel.stream_stream(
            f"/{SERVICE}/StreamAggregatedResources",
            request_serializer=pb.DiscoveryRequest.SerializeToString,
            response_deserializer=pb.DiscoveryResponse.FromString,
        )()

    @classmethod
    def connected(cls, xds: str, tls: ClientTls | None = None) -> RawClient:
        """`xds`: address of a router's listener."""
        return cls(Channel(xds, tls).grpc)

    async def __aenter__(self) -> RawClient:
        await self._stream.write(pb.DiscoveryRequest(type_url=ROUTES, resource_names=["baton"]))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stream.cancel()
        await self._channel.close()

    async def complete(self) -> pb.DiscoveryResponse:
        """Accept routes until every bucket is direct. The last response is left unanswered."""
        while direct_reads(found := await self.routes()) < BUCKETS:
            await self.answer(found)
        return found

    async def routes(self) -> pb.DiscoveryResponse:
        async with asyncio.timeout(SECONDS):
            found: pb.DiscoveryResponse = await self._stream.read()
        assert found.type_url == ROUTES
        return found

    async def answer(self, response: pb.DiscoveryResponse, error: str = "") -> None:
        request = pb.DiscoveryRequest(
            type_url=ROUTES,
            resource_names=["baton"],
            version_info=response.version_info,
            response_nonce=response.nonce,
            error_detail=pb.Status(code=3, message=error) if error else None,
        )
        await self._stream.write(request)


def direct_reads(response: pb.DiscoveryResponse) -> int:
    """Number of buckets whose reads are direct."""
    routes = pb.RouteConfiguration.FromString(response.resources[0].value).virtual_hosts[0].routes
    ranges = [
        header.range_match for one in routes if one.match.path.endswith("/GetSandbox") for header in one.match.headers
    ]
    return sum(found.end - found.start for found in ranges)
