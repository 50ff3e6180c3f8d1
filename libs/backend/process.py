"""A backend's process: opens everything, serves, drains when it is stopped, and fails loudly if a part fails.

`python -m services.NAME [--config FILE] [COMMAND]` serves if there is no command.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from libs.backend.admission import Admission, open_other
from libs.backend.arrivals import Arrivals
from libs.backend.audit import AuditApi, AuditParts
from libs.backend.calls import Calls, Dependencies
from libs.backend.direct import DirectCalls, measure_direct
from libs.backend.event_auth import EventAuth
from libs.backend.feed import ApplyLoop
from libs.backend.logged import LogWaits
from libs.backend.lost_rows import RowCountLoop
from libs.backend.passing import Passing
from libs.backend.recovery import RecoveryApi
from libs.backend.repair import RepairApi
from libs.backend.replication import Replication, StoreFacts
from libs.backend.serving import AdmissionLoop, Serving
from libs.backend.settings import BackendSettings
from libs.backend.signals import measure_store
from libs.backend.upkeep import PruneLoop, UpkeepLoop
from libs.clock import Clock, SystemClock
from libs.contract.descriptors import Contract
from libs.contract.operations import Operations
from libs.contract.schemas import NEWEST
from libs.eventlog.address import log_name
from libs.eventlog.key_ring import open_key_ring
from libs.eventlog.lazy import LazyEventLog
from libs.identity.opening import ANYBODY, AUTH_SETTING, NONE, Identity, open_identity
from libs.locks.measured import MeasuredLocks
from libs.locks.port import LockManager
from libs.process import certificate_of, open_basis, stop_signal
from libs.rpc.auth import read_token
from libs.rpc.channel import open_channel
from libs.rpc.clients import Clients
from libs.rpc.forwarded import ForwardedPrincipal
from libs.rpc.gate import CONNECTION_SHARE
from libs.rpc.limits import INTERNAL_REQUEST_BYTES, REQUEST_BYTES
from libs.rpc.metadata import LOGGED
from libs.rpc.refusals import measure_refusals
from libs.rpc.server import RawService, Server, ServerConfig, TypedService
from libs.rpc.signals import Signals
from libs.store.port import StorePorts
from libs.tasks import Background
from libs.telemetry.vitals import Gauges
from libs.tls.files import TlsFiles
from libs.tls.process import ClientTls

if TYPE_CHECKING:
    from libs.http.listener import HttpListener
import argparse
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from libs.process import run
from libs.settings import USAGE_EXIT_CODE, WrongSetting, load
from libs.telemetry import logs

log = logging.getLogger(__name__)

S = TypeVar("S", bound=BackendSettings)

SERVE = "serve"

_OPEN_LOG_SECONDS = 3.0
"""How long a start waits for an unavailable log, which is tried again while the process serves."""
_LEAST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Backend:
    """The parts that differ between backends."""

    operations: Operations
    contract: Contract
    schema_version: int
    """Highest schema version of payloads that it understands."""
    open_store: Callable[[], AbstractAsyncContextManager[StorePorts]]
    """Opens the store, migrated and ready for use."""
    open_locks: Callable[[], AbstractAsyncContextManager[LockManager]]
    server_id: Callable[[], Awaitable[str]] | None = None
    """Returns the identity of the database server."""
    open_audit: Callable[[], AbstractAsyncContextManager[AuditParts]] | None = None
    """Opens the store's support for audits."""
    public_schema: int = NEWEST
    """Schema version of clients that send none."""
    notice: str = ""
    """Warning to clients if there is a router that they should call instead, since the public listener will be shut
    down; "" if it stays."""


@dataclass(frozen=True, slots=True)
class Running:
    """A backend that serves."""

    public: Server
    internal: Server
    feed: ApplyLoop
    upkeep: UpkeepLoop
    pruning: PruneLoop
    logged: LogWaits
    serving: Serving
    writes: Background
    admission_loop: AdmissionLoop
    row_count: RowCountLoop
    http: HttpListener | None = None
    identity: Identity = ANYBODY

    def __str__(self) -> str:
        http = f" http={self.http.address}" if self.http is not None else ""
        return f"public={self.public.address} internal={self.internal.address}{http}"

    async def drain(self, timeout_seconds: float) -> None:
        """Send clients away and answer every call that still arrives, within the timeout. A second call has no effect.

        The public listener ends first: calls that it passes on to the router may come back to the internal one.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_seconds
        doors = (self.public, self.http) if self.http is not None else (self.public,)
        await asyncio.gather(*(door.drain(timeout_seconds / 2) for door in doors))
        self.serving.leaving.set()
        await self.internal.drain(max(end - clock(), _LEAST_SECONDS))
        self.serving.drain()
        await self.writes.drain(max(end - clock(), _LEAST_SECONDS))


@asynccontextmanager
async def open_backend(
    backend: Backend, settings: BackendSettings, clock: Clock | None = None
) -> AsyncIterator[Running]:
    """A backend that listens and serves. The caller runs its loops. Raises BatonError if it cannot start."""
    clock = clock or SystemClock()
    identity = await open_identity(settings, clock)
    token = _read_token(settings)
    keys = open_key_ring(settings.event_keys, clock) if settings.event_keys else None
    async with AsyncExitStack() as stack:
        tls, signals = await stack.enter_async_context(open_basis(settings))
        ports = await stack.enter_async_context(backend.open_store())
        locks = MeasuredLocks(await stack.enter_async_context(backend.open_locks()), clock, signals.metrics.meter)
        server_id = await backend.server_id() if backend.server_id is not None else ""
        event_log = LazyEventLog(settings.log_address)
        stack.push_async_callback(event_log.close)
        if away := await event_log.try_open(_OPEN_LOG_SECONDS):
            log.warning("event_log: out of reach at the start, tried again while serving: %s", away)
        serving = Serving()
        other = open_other(settings.other, token, tls.client) if settings.other else nullcontext()
        ask_other = await stack.enter_async_context(other)
        auth = EventAuth(settings.event_auth, log_name(settings.event_log), ports.feed, keys)
        arrivals = Arrivals(ports, backend.operations.check_row, ask_other, auth)
        feed = ApplyLoop(ports, event_log.get, clock, arrivals, lambda: serving.admitted, signals.spans)
        writes = Background(settings.writes, "writes")
        logged = LogWaits(ports.outbox, settings.log_wait_seconds, lambda: feed.replaced)
        direct = DirectCalls(clock)
        measure_direct(signals.metrics.meter, direct)
        measure_store(signals.metrics.meter, ports, serving, feed.behind_seconds)
        deps = Dependencies(
            serving,
            writes,
            clock,
            logged,
            locks,
            feed.behind_seconds,
            public_logged=settings.ack == LOGGED,
            no_lock_needed=locks.no_lock_needed,
            public_schema=backend.public_schema,
            account_records=settings.account_records,
            clients=Clients(
                backend.contract.schemas,
                clock,
                everybody=bool(backend.notice),
                notice=backend.notice if settings.router or settings.router_internal else "",
            ),
            direct=direct,
        )
        calls = Calls(backend.operations, backend.contract, ports, deps)
        facts = StoreFacts(
            backend.schema_version,
            server_id,
            settings.outbox_limits,
            Gauges(lambda: ports.connections_in_use, lambda: locks.state.held),
            locks,
            public_auth=settings.public_auth or "",
            public_auth_optional=settings.public_auth_optional,
            certificate=lambda: certificate_of(tls),
            account_records=settings.account_records,
        )
        replication = Replication(backend.operations, backend.contract, ports, feed, deps, facts)
        audit: list[TypedService] = []
        if backend.open_audit is not None:
            parts = await stack.enter_async_context(backend.open_audit())
            audit.append(AuditApi(parts, serving, clock).service())
        passing = await stack.enter_async_context(_open_passing(settings, tls.client, token))
        internal_limits = settings.limits(settings.internal_calls, INTERNAL_REQUEST_BYTES)
        admission = Admission(ports, event_log.get, ask_other, arrivals.read, auth)
        admission_loop = AdmissionLoop(ports, admission, serving)
        recovery = RecoveryApi(ports, serving, admission_loop, feed)
        repair = RepairApi(backend.operations, ports, deps)
        internal = Server(
            ServerConfig(
                settings.internal,
                "internal",
                internal_limits,
                token,
                "token_file",
                ForwardedPrincipal(),
                tls=tls.private,
                signals=signals,
            ),
            [calls.internal(), replication.service(), recovery.service(), repair.service(), *audit],
        )
        public, http = _public_doors(backend, settings, calls.public(passing), signals, identity, tls.public, internal)
        admission_loop.set_health = (
            internal.set_serving,
            public.set_serving,
            *([http.set_serving] if http is not None else []),
        )
        running = Running(
            public,
            internal,
            feed,
            UpkeepLoop(ports, clock),
            PruneLoop(ports),
            logged,
            serving,
            writes,
            admission_loop,
            RowCountLoop(ports, admission.rows),
            http,
            identity,
        )
        stack.push_async_callback(running.drain, settings.drain_seconds)
        await internal.start(serving=False)
        await public.start(serving=False)
        if http is not None:
            await http.start()
        await admission_loop.admit()
        yield running


def _read_token(settings: BackendSettings) -> bytes | None:
    """Raises WrongSetting, TokenUnfit."""
    if settings.token_file is not None:
        return read_token(settings.token_file)
    if settings.public_auth not in (None, NONE):
        raise WrongSetting(
            "token_file: it is not set: the listener `internal` believes its callers who their clients are, and"
            f" public_auth = {settings.public_auth}; give the stores and the routers one token"
        )
    return None


@asynccontextmanager
async def _open_passing(
    settings: BackendSettings, tls: ClientTls | None, token: bytes | None
) -> AsyncIterator[Passing | None]:
    """The way to a router; None without a router."""
    inside = bool(settings.router_internal)
    address = settings.router_internal or settings.router
    if not address:
        yield None
        return
    async with open_channel(address, tls) as router:
        yield Passing(router, settings.default_deadline_seconds, internal=inside, token=token)


def _public_doors(
    backend: Backend,
    settings: BackendSettings,
    contract: RawService,
    signals: Signals,
    identity: Identity,
    tls: TlsFiles | None,
    internal: Server,
) -> tuple[Server, HttpListener | None]:
    """The listeners for clients: gRPC, and HTTP if a setting has its address. With them the refusals of all listeners
    are measured."""
    limits = replace(
        settings.limits(settings.public_calls, REQUEST_BYTES),
        connection_share=CONNECTION_SHARE,
        caller=settings.caller_limits,
    )
    public = Server(
        ServerConfig(
            settings.public,
            "public",
            limits,
            authenticator=identity.authenticator,
            auth_setting=AUTH_SETTING,
            tls=tls,
            signals=signals,
        ),
        [contract],
    )
    refused: dict[str, Mapping[str, int]] = {"public": public.gate.refused, "internal": internal.gate.refused}
    measure_refusals(signals.metrics.meter, refused)
    if not settings.http:
        return public, None
    # Only a process that serves HTTP loads it.
    from libs.http.opening import http_listener

    schema = backend.public_schema
    http = http_listener(
        settings.http,
        backend.contract,
        contract,
        public,
        signals.metrics.meter,
        default_schema=schema,
        identity=identity,
    )
    refused["http"] = http.hosts.refused
    return public, http


async def run_backend(backend: Backend, settings: BackendSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises the error of a failed part, and DatabaseReplaced if the
    database has changed its identity."""
    stop = stop_signal()
    # The task group is outside: loops run while calls are finished, and end when all is drained.
    async with asyncio.TaskGroup() as owned, open_backend(backend, settings) as running:
        loops = (
            running.feed,
            running.upkeep,
            running.pruning,
            running.logged,
            running.admission_loop,
            running.row_count,
        )
        tasks = [owned.create_task(one.loop.run()) for one in loops]
        tasks += [owned.create_task(loop.run()) for loop in running.identity.loops]
        log.info("ready %s", running)
        # The starter of the process learns the addresses from it, also if the system chose the ports.
        print(f"ready {running}", flush=True)
        lost = await running.admission_loop.lost_before(stop)
        log.info("draining")
        await running.drain(settings.drain_seconds)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if lost is not None:
        raise lost
    log.info("stopped")


def main(
    program: str,
    kind: type[S],
    commands: Mapping[str, Callable[[S], Coroutine[Any, Any, None]]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Read arguments and settings, and run the command. Returns the exit code: 0, 1 failed, 2 a wrong setting."""
    prefix = kind.model_config.get("env_prefix", "")
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{program}",
        description=f"Settings come from the environment ({prefix}...) and from the file that --config names.",
    )
    parser.add_argument("--config", type=Path, help="a TOML file with settings")
    parser.add_argument("command", nargs="?", choices=list(commands), default=SERVE)
    given = parser.parse_args(arguments)
    logs.configure("info", as_json=False)
    try:
        settings = load(kind, given.config)
    except WrongSetting as error:
        log.error("%s", error)
        return USAGE_EXIT_CODE
    logs.configure(settings.log_level, as_json=settings.log_format == "json")
    return run(commands[given.command](settings))
