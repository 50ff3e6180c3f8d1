"""The whole system as real processes on free ports, with all their files in one directory.

    async with World.embedded(directory, old_database).running() as world: ...

A process is identified by its name: "a", "b-1", "b-2", "router-1"... It may be killed, paused and started again at any
time on the same ports and data. `watch` reports a process that ends unexpectedly.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.eventlog.address import LogAddress
from libs.eventlog.security import KafkaSecurity
from libs.proving.servers.locate import PROJECT_ROOT
from libs.proving.servers.ports import free_port
from libs.proving.servers.process import Command, ServerProcess
from libs.proving.servers.stack import Stack
from libs.proving.trial.errors import TrialFailed
from libs.proving.trial.secured import USER, Secured
from libs.proving.trial.stores import StoreAccess
from libs.proving.trial.tasks import first_failure
from libs.rpc.channel import open_channel
from libs.tls.process import ClientTls

READY_SECONDS = 40.0
WATCH_SECONDS = 0.2
STOP_SECONDS = 15.0
_HEALTH_SECONDS = 0.5
_READY_POLL_SECONDS = 0.05
_INIT_SECONDS = 30.0

OLD_PREFIX, NEW_PREFIX, ROUTER_PREFIX = "SIMPLE_MCP_", "SERVICE_LAYER_", "BATON_ROUTER_"


@dataclass(frozen=True, slots=True)
class Size:
    """The number of processes. Several processes of B need the real stack: the embedded store supports one."""

    routers: int = 1
    new: int = 1
    workers: int = 1
    """Processes of each router. With more than one, "router-1" is their supervisor."""
    router_settings: tuple[Mapping[str, str], ...] = ()
    """Settings of the first router, the second one and so on; routers beyond them have the default settings."""
    http: bool = False
    """Serve clients over HTTP too."""
    console: bool = False
    """Routers serve the operators' page."""
    secure: bool = False
    """TLS on every leg, tokens, signed events."""
    xds: bool = False
    """Routers give clients direct routes by xDS, and stores pass calls on to the routers' internal listeners."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of every process."""
    metrics: bool = False
    """Every process serves its metrics."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Addresses of the shared servers, in the form of the settings."""

    event_log: LogAddress
    control_store: str
    new_database: str
    redis: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """One process. ``public``: gRPC address for clients. ``private``: address for the router or the operator."""

    name: str
    public: str
    private: str
    process: ServerProcess
    http: str = ""
    """HTTP address for clients; "" if it serves no HTTP."""
    xds: str = ""
    """xDS address for clients; "" if it has no such listener."""
    metrics: str = ""
    """Address of its metrics; "" if it serves none."""
    console: str = ""
    """Address of the operators' page; "" if it serves none."""


@dataclass(slots=True)
class World:
    """Made by `embedded` or `real`; no process runs before `running` or `start`."""

    directory: Path
    servers: Servers
    nodes: Mapping[str, Node]
    token: str
    kind: str
    """"embedded" or "real"."""
    old_database: Path | None = None
    secured: Secured | None = None
    """The system's files, if it is secure."""
    _wanted: set[str] = field(default_factory=set)
    """Names of the processes that should be running."""

    @classmethod
    def embedded(cls, directory: Path, old_database: Path | None = None, size: Size | None = None) -> Self:
        """Files only, without servers. ``old_database`` is copied; None: A begins empty."""
        directory = directory.resolve()
        servers = Servers(
            event_log=LogAddress(f"sqlite:///{directory / 'log.db'}"),
            control_store=f"sqlite:///{directory / 'control.db'}",
            new_database=f"sqlite:///{directory / 'b.db'}",
        )
        return cls._make(directory, servers, size or Size(), "embedded", old_database)

    @classmethod
    def real(
        cls,
        directory: Path,
        stack: Stack,
        old_database: Path | None = None,
        size: Size | None = None,
        secured: Secured | None = None,
    ) -> Self:
        """Kafka, PostgreSQL and Redis, each with a topic or database of this world's own. The control store is a file,
        apart from B's server. Blocks while the database is created.

        ``secured``: whose secrets the servers were started with, if ``size`` is secure.
        """
        directory = directory.resolve()
        suffix = secrets.token_hex(4)
        topic, database = f"trial.{suffix}", f"trial_{suffix}"
        log = LogAddress(
            f"kafka://{stack.kafka.bootstrap}/{topic}", create=True, replication_factor=1, min_insync_replicas=1
        )
        servers = Servers(
            event_log=log,
            control_store=f"sqlite:///{directory / 'control.db'}",
            new_database=stack.postgres.create_database(database),
            redis=stack.redis.url,
        )
        if secured is not None and stack.encrypted is not None:
            servers = Servers(
                event_log=replace(
                    log, url=f"kafka://127.0.0.1:{stack.encrypted.sasl_port}/{topic}", security=secured.kafka()
                ),
                control_store=servers.control_store,
                new_database=f"postgresql://{USER}:{secured.password}@127.0.0.1:{stack.postgres.port}/{database}"
                f"?sslmode=verify-full&sslrootcert={secured.authority.file}",
                redis=f"rediss://{USER}@127.0.0.1:{stack.redis.tls_port}/0",
            )
        return cls._make(directory, servers, size or Size(), "real", old_database, secured)

    @classmethod
    def _make(
        cls,
        directory: Path,
        servers: Servers,
        size: Size,
        kind: str,
        old_database: Path | None,
        secured: Secured | None = None,
    ) -> Self:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        token = secrets.token_hex(16)
        token_file = directory / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(token + "\n")
        if size.secure and secured is None:
            secured = Secured.make(directory / "secured")
        return cls(directory, servers, _nodes(directory, servers, size, secured), token, kind, old_database, secured)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.nodes)

    @property
    def routers(self) -> list[str]:
        """gRPC addresses for clients."""
        return [node.public for name, node in self.nodes.items() if name.startswith("router")]

    @property
    def http_routers(self) -> list[str]:
        """HTTP addresses for clients; empty strings without HTTP."""
        return [node.http for name, node in self.nodes.items() if name.startswith("router")]

    @property
    def consoles(self) -> list[str]:
        """Addresses of the operators' page; empty strings without it."""
        return [node.console for name, node in self.nodes.items() if name.startswith("router")]

    @property
    def public_stores(self) -> list[str]:
        """gRPC addresses for clients of all processes of both stores."""
        return [node.public for name, node in self.nodes.items() if not name.startswith("router")]

    @property
    def xds(self) -> list[str]:
        """xDS addresses for clients."""
        return [node.xds for node in self.nodes.values() if node.xds]

    @property
    def controls(self) -> list[str]:
        """Addresses for operators."""
        return [node.private for name, node in self.nodes.items() if name.startswith("router")]

    @property
    def stores(self) -> list[StoreAccess]:
        """A, and the first of B's processes."""
        return [
            StoreAccess("A", self.nodes["a"].private, self.token, self.operator_tls),
            StoreAccess("B", self.nodes["b-1"].private, self.token, self.operator_tls),
        ]

    @property
    def operator_token(self) -> str:
        """Token for control listeners."""
        return self.token if self.secured is None else self.secured.operator_token()

    @property
    def operator_tls(self) -> ClientTls | None:
        """TLS for internal and control listeners."""
        return None if self.secured is None else self.secured.operator()

    @property
    def store_processes(self) -> list[StoreAccess]:
        """A, and each of B's processes."""
        kinds = {"a": "A", "b": "B"}
        found = {name: kinds.get(name.partition("-")[0]) for name in self.nodes}
        tls = self.operator_tls
        return [StoreAccess(store, self.nodes[name].private, self.token, tls) for name, store in found.items() if store]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Start everything, and stop everything at the end of the block, however it ends."""
        try:
            await self.start_all()
            yield self
        finally:
            # In a task of its own: a second cancellation must not leave processes behind.
            await asyncio.shield(asyncio.ensure_future(self.stop_all()))

    async def start_all(self) -> None:
        """Raises ServerFailed with the end of the log of the process that failed to start."""
        await asyncio.to_thread(self._prepare)
        async with first_failure() as group:
            for name in self.nodes:
                group.create_task(self.start(name))

    async def stop_all(self) -> None:
        """Stop routers first, so that their work is finished. A process that ended before is no error."""
        self._wanted.clear()
        for some in (
            [node for name, node in self.nodes.items() if name.startswith("router")],
            [node for name, node in self.nodes.items() if not name.startswith("router")],
        ):
            await asyncio.gather(*(asyncio.to_thread(node.process.stop, signal.SIGTERM, STOP_SECONDS) for node in some))

    async def start(self, name: str) -> None:
        """Start a process and wait until it serves. Raises ServerFailed with the end of its log."""
        await asyncio.to_thread(self.nodes[name].process.start)
        self._wanted.add(name)
        await self.ready(name)

    async def ready(self, name: str, timeout_seconds: float = READY_SECONDS) -> None:
        """Wait until a process reports that it serves. Raises ServerFailed with the end of its log."""
        node = self.nodes[name]
        deadline = time.monotonic() + timeout_seconds
        tls = None if self.secured is None else self.secured.client("health", ()).tls
        async with open_channel(node.public, tls) as channel:
            stub = health_pb2_grpc.HealthStub(channel.grpc)
            while not await _serves(stub):
                if not node.process.running:
                    raise node.process.failure(f"ended with code {node.process.exit_code} before it served")
                if time.monotonic() > deadline:
                    raise node.process.failure(f"does not serve after {timeout_seconds:g} s")
                await asyncio.sleep(_READY_POLL_SECONDS)

    async def stop(self, name: str) -> None:
        """Stop a process gracefully, as an operator would."""
        self._wanted.discard(name)
        await asyncio.to_thread(self.nodes[name].process.stop, signal.SIGTERM, STOP_SECONDS)

    async def kill(self, name: str) -> None:
        """Send SIGKILL; the process is gone when this returns."""
        self._wanted.discard(name)
        await asyncio.to_thread(self.nodes[name].process.kill)

    async def pause(self, name: str) -> None:
        """Send SIGSTOP: the process stands still, its connections stay."""
        await asyncio.to_thread(self.nodes[name].process.kill, signal.SIGSTOP)

    async def resume(self, name: str) -> None:
        """Continue a paused process. Does not wait until it serves again."""
        await asyncio.to_thread(self.nodes[name].process.kill, signal.SIGCONT)

    async def restart(self, name: str) -> None:
        """Stop a process, if it runs, and start it."""
        await self.stop(name)
        await self.start(name)

    def check(self) -> None:
        """Raises ServerFailed if a process has ended unexpectedly."""
        for name in sorted(self._wanted):
            process = self.nodes[name].process
            if not process.running:
                raise process.failure(f"ended unexpectedly with code {process.exit_code}")

    async def watch(self) -> None:
        """Run `check` repeatedly until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(WATCH_SECONDS)

    def _prepare(self) -> None:
        """Create A's database, at the first start."""
        database = self.directory / "a.db"
        if database.exists():
            return
        if self.old_database is not None:
            if not self.old_database.is_file():
                raise TrialFailed(f"{self.old_database}: there is no such file; it is a database of the old service")
            shutil.copyfile(self.old_database, database)
            return
        node = self.nodes["a"].process.command
        log = self.directory / "a-init.log"
        init = ServerProcess(Command("simple_mcp init", [*node.argv, "init"], log, node.cwd, node.env))
        init.start()
        init.wait_for_exit(_INIT_SECONDS)


def _nodes(directory: Path, servers: Servers, size: Size, secured: Secured | None) -> dict[str, Node]:
    names = ["a", *(f"b-{n + 1}" for n in range(size.new)), *(f"router-{n + 1}" for n in range(size.routers))]
    places = {name: (f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}") for name in names}
    routers_by_name = [name for name in names if name.startswith("router")]
    routers = [places[name][0] for name in routers_by_name]
    new = ",".join(places[name][1] for name in names if name.startswith("b-"))
    inside = {name: f"127.0.0.1:{free_port()}" for name in routers_by_name} if size.xds else {}
    passing = {"router": routers[0], "router_internal": ",".join(inside.values())}
    log = servers.event_log
    shared = {
        "event_log": log.url,
        "event_log_partitions": str(log.partitions),
        "event_log_create": str(log.create).lower(),
        "event_log_replication_factor": str(log.replication_factor),
        "event_log_min_insync_replicas": str(log.min_insync_replicas),
        "token_file": str(directory / "token"),
        **_security(log.security),
        **size.settings,
    }
    kinds: dict[str, tuple[str, str, Callable[[str], dict[str, str]]]] = {
        "a": (
            "simple_mcp",
            OLD_PREFIX,
            lambda _: {"database": str(directory / "a.db"), **passing, "other": new},
        ),
        "b": (
            "service_layer",
            NEW_PREFIX,
            lambda _: {
                "database": servers.new_database,
                "redis": servers.redis,
                **_redis(servers.redis, secured),
                **passing,
                "other": places["a"][1],
            },
        ),
        "router": (
            "router",
            ROUTER_PREFIX,
            lambda name: {
                "store_a": places["a"][1],
                "store_b": new,
                "control_store": servers.control_store,
                **({} if secured else {"control_token_file": str(directory / "token")}),
                "name": name,
                **({"internal": inside[name], **_xds(places)} if size.xds else {}),
                **dict(zip(routers_by_name, size.router_settings, strict=False)).get(name, {}),
            },
        ),
    }
    nodes = {}
    for name, (public, private) in places.items():
        service, prefix, own = kinds[name.partition("-")[0]]
        settings = {**shared, **own(name), **(secured.settings(name) if secured else {}), "public": public}
        settings["control" if service == "router" else "internal"] = private
        settings["http"] = http = f"127.0.0.1:{free_port()}" if size.http else ""
        arguments = ["--workers", str(size.workers)] if service == "router" and size.workers > 1 else []
        if console := f"127.0.0.1:{free_port()}" if size.console and service == "router" else "":
            settings["console"] = console
        if xds := f"127.0.0.1:{free_port()}" if size.xds and service == "router" else "":
            settings["xds"] = xds
        settings["metrics"] = metrics = f"127.0.0.1:{free_port()}" if size.metrics else ""
        command = Command(
            name=name,
            argv=[sys.executable, "-u", "-m", f"services.{service}", *arguments],
            log=directory / f"{name}.log",
            cwd=PROJECT_ROOT,
            env=_environment(prefix, settings),
        )
        nodes[name] = Node(name, public, private, ServerProcess(command), http, xds, metrics, console)
    return nodes


def _xds(places: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Addresses of all processes for clients."""

    def public(kind: str) -> str:
        return ",".join(place[0] for name, place in places.items() if name.partition("-")[0] == kind)

    return {"xds_store_a": public("a"), "xds_store_b": public("b"), "xds_routers": public("router")}


def _security(security: KafkaSecurity) -> dict[str, str]:
    if security.password_file is None:
        return {}
    return {
        "event_log_security": security.protocol,
        "event_log_sasl_mechanism": security.mechanism,
        "event_log_user": security.user,
        "event_log_password_file": str(security.password_file),
        "event_log_ca": str(security.ca),
    }


def _redis(url: str, secured: Secured | None) -> dict[str, str]:
    if secured is None or not url:
        return {}
    return {"redis_password_file": str(secured.password_file), "redis_ca": str(secured.authority.file)}


def _environment(prefix: str, settings: Mapping[str, str]) -> dict[str, str]:
    """The environment with our settings, without inherited settings of the processes."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith((OLD_PREFIX, NEW_PREFIX, ROUTER_PREFIX))
    }
    return inherited | {f"{prefix}{name}".upper(): value for name, value in settings.items()}


async def _serves(stub: Any) -> bool:
    with suppress(grpc.aio.AioRpcError):
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    return False
