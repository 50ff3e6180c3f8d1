"""A router's control API in front of a whole system in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from libs.clock import SystemClock
from libs.ownership.model import Store
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.rpc.channel import open_channel
from libs.rpc.server import Server, ServerConfig
from libs.tasks import Loop
from services.router.api.control import control_service
from services.router.api.parts import Parts
from services.router.control.memory import MemoryControlStore
from services.router.core.gates import Evidence, Limits
from services.router.core.phase import Setting
from services.router.flows.calls.explain import Explainer
from services.router.flows.feed.conflicts import Conflicts
from services.router.flows.feed.events import LogEvents
from services.router.flows.feed.parked import ParkedEvents
from services.router.flows.feed.repair import RecordRepair
from services.router.flows.jobs.audit import Audit, LastAudit
from services.router.flows.jobs.backfill import TO_B, Backfill
from services.router.flows.jobs.canary import CanaryAuto
from services.router.flows.jobs.log_gap import GapWatch
from services.router.flows.jobs.reconcile import Reconcile
from services.router.flows.jobs.reconcile_schedule import Reconciling
from services.router.flows.jobs.recover import Recover, Seize
from services.router.flows.jobs.rehearsal import Rehearsal, Rehearsals, Waits
from services.router.flows.jobs.replay import Replay
from services.router.flows.jobs.restart_events import RestartEvents
from services.router.flows.jobs.runner import Around, Jobs
from services.router.flows.jobs.validate import Validate
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.automatic_rollback import AutomaticRollback
from services.router.flows.steering.diagnose import Surroundings
from services.router.flows.steering.measure import Measurement, Sources, answered_by_b
from services.router.flows.steering.migration import Migration
from services.router.flows.steering.observe import Observer
from services.router.flows.steering.phase_since import PhaseSince
from services.router.flows.steering.probe import Probe
from services.router.flows.steering.report import old_clients
from services.router.flows.steering.under_way import under_way
from tests.contracts.pb.toy import shelf_pb2
from tests.shelf import CONTRACT
from tests.system import System, running_system

if TYPE_CHECKING:
    from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceAsyncStub


QUICK = Waits(seen_by_all_seconds=0.5, counted_by_all_seconds=0.05)
"""For one router in one process."""


@dataclass
class Panel:
    """A router with its control API."""

    system: System
    parts: Parts
    address: str
    control: ControlServiceAsyncStub
    server: Server
    """Server of the control API."""

    @property
    def store(self) -> MemoryControlStore:
        return self.system.control

    async def put(self, count: int) -> None:
        """Create records at the store that the setting selects."""
        for number in range(count):
            order = shelf_pb2.PutOrder(token=str(uuid4()), where=shelf_pb2.Place(room="r", isbn=f"{number:05}"))
            await self.system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)

    async def records_at(self, store: Store) -> int:
        return (await self.system.ports(store).inspection.census()).records


@asynccontextmanager
async def running_panel(*, token: bytes | None = None, **system: Any) -> AsyncIterator[Panel]:
    """Options are those of `running_system`; `token`: token that the control listener requires."""
    clock = SystemClock()
    async with running_system(**system) as running:
        observer = Observer(running.stores, running.log, clock, interval_seconds=0.02)
        cache = running.setting
        gap = GapWatch(running.control)
        parts, evidence_loops = _parts(running, observer, gap)
        server = Server(ServerConfig("127.0.0.1:0", "control", token=token), [control_service(parts)])
        await server.start()
        loops = (
            observer.loop,
            cache.loop,
            parts.jobs.loop,
            parts.rehearsals.loop,
            parts.measurement.loop,
            parts.automatic_rollback.loop,
            parts.phase_since.loop,
            gap.loop,
            *evidence_loops,
        )
        async with running_loops(*loops), open_channel(server.address) as channel:
            yield Panel(running, parts, server.address, ControlServiceStub(channel.grpc), server)
        await server.drain(0.2)


@asynccontextmanager
async def running_loops(*loops: Loop) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop.run()) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _parts(running: System, observer: Observer, gap: GapWatch) -> tuple[Parts, tuple[Loop, ...]]:
    """The flows, and the loops of those that only give evidence."""
    clock, cache = SystemClock(), running.setting

    def evidence(setting: Setting) -> Evidence:
        seen = observer.evidence(setting, running.mover.buckets_at_b, jobs.finished_seconds_ago(TO_B))
        seen = rehearsals.evidence(reconciling.evidence(last_audit.evidence(seen)))
        seen = measurement.evidence(seen)
        return gap.evidence(replace(seen, under_way=under_way(jobs, running.mover, observer)))

    measurement = Measurement(
        running.control,
        running.traffic.meter,
        "router-1",
        clock,
        Sources(
            lambda: (cache.current.shadow_since, running.shadow.counts),
            running.traffic.answered,
            lambda: running.auditor.ledger.counts,
            running.traffic.totals,
            lambda: cache.current.generation,
            lambda: old_clients(running.clients, clock),
        ),
    )
    migration = Migration(running.control, cache, evidence, clock)
    kinds = (
        Backfill(running.stores, clock),
        Audit(running.stores, CONTRACT, clock),
        Replay(running.stores, running.log, clock),
        Reconcile(running.stores, Transfer(running.stores), running.log, clock),
        Validate(running.stores, clock),
        Seize(running.stores, running.log, clock, running.control),
        Recover(running.stores, running.log, clock, running.control, Transfer(running.stores)),
        CanaryAuto(migration, cache, lambda: answered_by_b(measurement), lambda: running.mover.settled, clock),
        Rehearsal(running.stores, migration, cache, measurement.answered, clock, QUICK),
    )
    jobs = Jobs(running.control, kinds, Around("router-1", clock))
    last_audit = LastAudit(jobs, clock)
    reconciling = Reconciling(jobs, 0.0, clock)
    rehearsals = Rehearsals(jobs, migration, cache, running.traffic, clock)
    automatic = AutomaticRollback(running.control, migration, measurement, cache, observer, clock, "router-1", Limits())
    explainer = Explainer(CONTRACT, cache, running.stores)
    around = Surroundings(
        observer, cache, running.control, running.log.partitions, {"control listener": False}, lambda: gap.text
    )
    events = LogEvents(running.log, CONTRACT)
    parts = Parts(
        migration,
        cache,
        observer,
        running.traffic,
        running.mover,
        jobs,
        around,
        running.switches,
        explainer,
        rehearsals,
        running.shadow,
        measurement,
        automatic,
        running.auditor,
        frozenset(),
        clock,
        events,
        ParkedEvents(running.stores, migration),
        RestartEvents(running.stores, jobs, migration, running.control),
        Conflicts(running.stores, migration, events.content_of),
        RecordRepair(running.stores, migration, running.contract, events.content_of),
        PhaseSince(running.control, cache),
        Probe(running.contract, running.stores, lambda: running.router.address, clock),
        Limits(),
    )
    return parts, (last_audit.loop, reconciling.loop)
