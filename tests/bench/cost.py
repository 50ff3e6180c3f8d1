"""The CPU time that one read costs each server, side by side in one run: the stores against bare handlers with the same
statement, the router against a bare proxy (and nginx, where it is installed).

A server's time without calls is measured between the rounds and subtracted, so a figure is the cost of a call alone. An
old client names no schema version: A converts its answers and warns it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import grpc

from libs.ownership.model import Store
from libs.proving.servers.ports import free_port
from libs.rpc.channel import RawCallable
from services.service_layer.store import postgres
from tests.bench.calls import GET, SAYS, get_request, path_of, run_calls
from tests.bench.measure import Contender, Figure, Meter, Round, Rounds, Target, alternate
from tests.bench.site import PROXY, SEED_RECORDS, Site, records

A, OLD_CLIENT, B, ROUTER = "a", "a, old client", "b", "router-1"
BARE_SQLITE, BARE_POSTGRES, NGINX = "bare handler, SQLite", "bare handler, PostgreSQL", "nginx"
STORE_TARGET, ROUTER_TARGET = Target(1.6, of_ratio=True), Target(1.25, of_ratio=True)
ADDED_TARGET = Target(1.15, of_ratio=True)
_ALONE = "b-alone"
_IDLE = "idle"
_IDLE_SECONDS = 0.5
_NGINX = """\
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx-error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {directory}/nginx-body; proxy_temp_path {directory}/nginx-proxy;
  fastcgi_temp_path {directory}/nginx-f; uwsgi_temp_path {directory}/nginx-u; scgi_temp_path {directory}/nginx-s;
  upstream store {{ server {target}; keepalive 32; }}
  server {{ listen {listen} http2; keepalive_requests 1000000000; location / {{ grpc_pass grpc://store; }} }}
}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One server of the comparison."""

    process: str
    call: RawCallable
    metadata: grpc.aio.Metadata | None


async def measure(site: Site) -> list[Figure]:
    servers = await _servers(site)
    figures: list[Figure] = []
    for in_flight, count in ((1, 150), (16, 480)):
        one_round = partial(_round, site, count, in_flight)
        contenders: dict[str, Contender] = {name: partial(one_round, server) for name, server in servers.items()}
        contenders[_IDLE] = partial(_idle, site)
        found = await alternate(site.pick(12, 5), contenders)
        figures += _figures(f"{GET}, {in_flight} in flight", servers, found, in_flight)
    return figures


async def _servers(site: Site) -> Mapping[str, Server]:
    world = await site.world()
    a = world.nodes["a"].public
    dsn = await asyncio.to_thread(site.stack.postgres.create_database, "bench_cost")
    async with postgres.open_store(dsn) as store:
        await store.transfers.apply(records(SEED_RECORDS, Store.B))
    bare_sqlite = await _start_bare(site, BARE_SQLITE, str(world.directory / "a.db"))
    bare_postgres = await _start_bare(site, BARE_POSTGRES, dsn)
    addresses = {
        BARE_SQLITE: (BARE_SQLITE, bare_sqlite),
        A: (A, a),
        OLD_CLIENT: (A, a),
        BARE_POSTGRES: (BARE_POSTGRES, bare_postgres),
        B: (_ALONE, await _start_b(site, dsn)),
        PROXY: (PROXY, site.proxy_address),
        ROUTER: (ROUTER, world.routers[0]),
    }
    if (program := shutil.which("nginx")) is not None:
        addresses[NGINX] = (NGINX, await _start_nginx(site, program, a))
    servers = {}
    for name, (process, address) in addresses.items():
        channel = await site.channel(address)
        says = None if name == OLD_CLIENT else SAYS
        servers[name] = Server(process, channel.multi_callable(path_of(GET)), says)
    return servers


async def _start_bare(site: Site, name: str, database: str) -> str:
    address = f"127.0.0.1:{free_port()}"
    await site.start(name, ["-m", "tests.bench.bare_handler", address, database], address)
    return address


async def _start_b(site: Site, dsn: str) -> str:
    """A B that owns every record, without a router."""
    address = f"127.0.0.1:{free_port()}"
    settings = {
        "database": dsn,
        "event_log": f"sqlite:///{site.directory / 'cost-log.db'}",
        "public": address,
        "internal": f"127.0.0.1:{free_port()}",
    }
    env = {f"SERVICE_LAYER_{name}".upper(): value for name, value in settings.items()}
    await site.start(_ALONE, ["-u", "-m", "services.service_layer"], address, **env)
    return address


async def _start_nginx(site: Site, program: str, target: str) -> str:
    address = f"127.0.0.1:{free_port()}"
    directory = site.directory / "nginx"
    directory.mkdir()
    configuration = directory / "nginx.conf"
    configuration.write_text(_NGINX.format(directory=directory, target=target, listen=address))
    await site.start_program(NGINX, [program, "-p", str(directory), "-c", str(configuration)], address)
    return address


async def _round(site: Site, count: int, in_flight: int, server: Server, _: int) -> Round:
    requests = [get_request(number % SEED_RECORDS) for number in range(count)]
    meter = Meter(site.pids)
    return meter.stop(await run_calls(server.call, requests, in_flight, server.metadata))


async def _idle(site: Site, _: int) -> Round:
    meter = Meter(site.pids)
    await asyncio.sleep(_IDLE_SECONDS)
    return meter.stop([])


def _figures(title: str, servers: Mapping[str, Server], found: Mapping[str, Rounds], in_flight: int) -> list[Figure]:
    cpu = {name: found[name].cpu_above(found[_IDLE], server.process) for name, server in servers.items()}
    direct = found[A]

    def cost(name: str, baseline: str, target: Target | None = None) -> Figure:
        return Figure(f"{title}: CPU of {name}", "ms/call", cpu[name], cpu[baseline], baseline, target)

    def added(name: str, target: Target | None = None) -> Figure:
        mine, bare = found[name].added_p50(direct), found[PROXY].added_p50(direct)
        return Figure(f"{title}: {name} adds, p50", "ms", mine, bare, PROXY, target)

    figures = [
        cost(A, BARE_SQLITE, STORE_TARGET),
        cost(OLD_CLIENT, BARE_SQLITE, STORE_TARGET),
        cost(B, BARE_POSTGRES, STORE_TARGET),
        cost(ROUTER, PROXY, ROUTER_TARGET),
        added(ROUTER, ADDED_TARGET if in_flight == 1 else None),
    ]
    if NGINX in servers:
        figures += [cost(NGINX, PROXY), added(NGINX)]
    for name, bare in ((A, BARE_SQLITE), (B, BARE_POSTGRES), (ROUTER, PROXY)):
        figures.append(Figure(f"{title}: {name}", "calls/s", found[name].per_second, found[bare].per_second, bare))
    return figures
