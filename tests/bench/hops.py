"""A read by a client with xDS, through a router, and through Envoy, against the same read at the store itself."""

from __future__ import annotations

import json
import os
from functools import partial

import grpc

from libs.ownership.model import bucket_of
from libs.pb.baton.replication.v1 import replication_pb2
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceStub
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.pb.sandbox.v1.sandbox_service_pb2 import CreateSandboxRequest, GetSandboxRequest
from libs.proving.servers.ports import free_port
from libs.proving.trial.world import Size, World
from libs.rpc.channel import RawCallable
from libs.rpc.metadata import BUCKET, TOKEN
from libs.sandboxes.schema import METADATA, SCHEMAS
from tests.bench.calls import GET, path_of, run_calls
from tests.bench.measure import Contender, Figure, Meter, Round, Rounds, Target, alternate, percentile
from tests.bench.site import CALL_SECONDS, CLIENT, Site
from tests.system.envoy import envoy_program, envoy_settings
from tests.waiting import eventually

NAME = "sandboxes/hops"
TARGET = "xds:///sandbox.v1.SandboxService"
SAYS = grpc.aio.Metadata((METADATA, str(SCHEMAS.newest)), (BUCKET, str(bucket_of(NAME))))
DIRECT, XDS, ROUTER, ENVOY = "direct", "xds", "router", "envoy"
READY_SECONDS = 60.0


async def measure(site: Site) -> list[Figure]:
    listen = f"127.0.0.1:{free_port()}"
    size = Size(xds=True, router_settings=({"xds_envoy": listen, "xds_sample_permille": "0"},))
    world = World.embedded(site.directory / "hops", size=size)
    async with world.running():
        addresses = {DIRECT: world.nodes["a"].public, XDS: TARGET, ROUTER: world.routers[0]}
        xds = world.nodes["router-1"].xds
        file = site.directory / "bootstrap.json"
        server = {"server_uri": xds, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
        file.write_text(json.dumps({"xds_servers": [server], "node": {"id": "bench"}}))
        # gRPC reads it at the first channel with xDS.
        os.environ["GRPC_XDS_BOOTSTRAP"] = str(file)
        if (program := envoy_program()) is not None:
            await _start_envoy(site, str(program), xds, listen)
            addresses[ENVOY] = listen
        calls = {name: (await site.channel(target)).multi_callable(path_of(GET)) for name, target in addresses.items()}
        await _create(site, world)
        for name, call in calls.items():
            await eventually(partial(_is_ready, world, name, call), READY_SECONDS)
        figures: list[Figure] = []
        for in_flight, count in ((1, 100), (16, 320)):
            one_round = partial(_round, site, world, count, in_flight)
            contenders: dict[str, Contender] = {name: partial(one_round, call) for name, call in calls.items()}
            figures += _figures(in_flight, await alternate(site.pick(24, 12), contenders))
        return figures


async def _start_envoy(site: Site, program: str, xds: str, listen: str) -> None:
    file = site.directory / "envoy.json"
    file.write_text(json.dumps(envoy_settings(xds)))
    options = ["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]
    await site.start_program(ENVOY, [program, "-c", str(file), *options], listen)


async def _create(site: Site, world: World) -> None:
    sandbox = Sandbox(account="bench", spec=SandboxSpec(image="registry.example/bench:1", cpu_millis=500))
    request = CreateSandboxRequest(sandbox_id=NAME.partition("/")[2], sandbox=sandbox)
    call = (await site.channel(world.routers[0])).multi_callable(path_of("CreateSandbox"))
    await call(request.SerializeToString(), timeout=CALL_SECONDS, metadata=SAYS)


async def _is_ready(world: World, name: str, call: RawCallable) -> bool:
    """Whether a call answers, and A answers it by itself unless it goes through the router."""
    before = await _direct_calls(world)
    try:
        await call(_request(), timeout=CALL_SECONDS, metadata=SAYS)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return name == ROUTER or await _direct_calls(world) > before


async def _direct_calls(world: World) -> int:
    a = world.nodes["a"]
    async with grpc.aio.insecure_channel(a.private) as channel:
        answer = await ReplicationServiceStub(channel).SyncDirectCalls(
            replication_pb2.SyncDirectCallsRequest(router="bench"), timeout=5, metadata=((TOKEN, world.token),)
        )
    return sum(call.calls for call in answer.calls)


def _request() -> bytes:
    return GetSandboxRequest(name=NAME).SerializeToString()


async def _round(site: Site, world: World, count: int, in_flight: int, call: RawCallable, _: int) -> Round:
    pids = {name: pid for name, node in world.nodes.items() if (pid := node.process.pid)}
    pids |= {name: pid for name, pid in site.pids.items() if name in (CLIENT, ENVOY)}
    meter = Meter(pids)
    return meter.stop(await run_calls(call, [_request()] * count, in_flight, SAYS))


def _cpu(rounds: Rounds) -> float:
    """CPU milliseconds of all processes for a call, the client's among them. The lower quartile of the rounds: load of
    other programs only adds."""
    return percentile((1000 * sum(one.cpu.values()) / len(one.milliseconds) for one in rounds.rounds), 0.25)


def _p50(rounds: Rounds) -> float:
    return percentile((one.p50 for one in rounds.rounds), 0.25)


def _figures(in_flight: int, found: dict[str, Rounds]) -> list[Figure]:
    direct = found[DIRECT]
    figures = []
    for name in (XDS, ROUTER, ENVOY):
        if name in found:
            target = Target(1.05, of_ratio=True) if name == XDS else None
            title = f"{GET}, {in_flight} in flight, {name}"
            figures += [
                Figure(f"{title}: p50", "ms", _p50(found[name]), _p50(direct), DIRECT, target),
                Figure(f"{title}: CPU of all processes", "ms/call", _cpu(found[name]), _cpu(direct), DIRECT, target),
            ]
    return figures
