"""The status of a migration, as one router sees it: the only source for command line, dashboard and metrics."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from libs.errors import InvalidField
from libs.ownership.model import BUCKETS, Store
from libs.ownership.wire import STORE_NUMBERS, STORES
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.telemetry.v1 import telemetry_pb2
from libs.rpc.errors import Context
from services.router.api.jobs import latest_jobs
from services.router.api.lost_writes import counts_to_pb
from services.router.api.messages import (
    PHASE_NUMBERS,
    gates_to_pb,
    handover_to_pb,
    setting_to_pb,
    timestamp,
)
from services.router.control.port import JournalEntry
from services.router.core.attention import StoreSeen, attention, certificate_warnings
from services.router.core.bucket_runs import BucketRun, BucketState, runs
from services.router.core.gates import GateResult, Verdict
from services.router.core.gates.service import ERRORS
from services.router.core.measure import Counts, total
from services.router.core.rollback_cost import AtB, rollback_cost
from services.router.core.routes import Settled
from services.router.flows.jobs.runner import Jobs
from services.router.flows.moving.mover import Handover
from services.router.flows.steering.automatic_rollback import AutomaticRollback
from services.router.flows.steering.measure import Measurement
from services.router.flows.steering.migration import Migration
from services.router.flows.steering.observe import Observer, SettingCache
from services.router.flows.steering.report import OldClient
from services.router.flows.stores import StoreViews
from services.router.flows.traffic import Totals, Traffic

RECENT_SECONDS = 30
"""The period of `MeasuredCalls.recent_calls`."""

DEFAULT_INTERVAL_SECONDS = 1.0
SHORTEST_INTERVAL_SECONDS = 0.1
LONGEST_INTERVAL_SECONDS = 60.0


class MoverView(Protocol):
    """The mover's own account."""

    @property
    def progress(self) -> Handover: ...

    @property
    def buckets_to_b(self) -> int:
        """Buckets whose target is B now."""
        ...

    @property
    def buckets_at_b(self) -> int | None:
        """Number of buckets that A does not own and in which it owns no record; None if unknown."""
        ...

    @property
    def measured_rate(self) -> float:
        """Records per second in the last pass that moved records; 0 if there was none."""
        ...

    @property
    def at_home(self) -> Settled:
        """Home of each bucket, if the bucket and all its records are there."""
        ...

    @property
    def states(self) -> Sequence[BucketState]:
        """State of each bucket; empty while unknown."""
        ...

    @property
    def states_age_seconds(self) -> float | None:
        """Time since both stores reported their buckets; None while they have not."""
        ...

    @property
    def settled(self) -> bool:
        """Whether each bucket is at its target."""
        ...

    on_their_way: int
    """Records that no store owned at the last look."""


@dataclass(frozen=True, slots=True)
class StatusMethods:
    """Methods of the control API."""

    cache: SettingCache
    observer: Observer
    mover: MoverView
    measurement: Measurement
    migration: Migration
    jobs: Jobs
    traffic: Traffic
    additions: Sequence[Callable[[pb.GetStatusResponse], None]] = ()
    """The features' parts of the status."""

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: N802
        return self.status()

    async def WatchStatus(  # noqa: N802
        self, request: pb.WatchStatusRequest, context: Context
    ) -> AsyncGenerator[pb.WatchStatusResponse, None]:
        seconds = request.interval_seconds or DEFAULT_INTERVAL_SECONDS
        if not math.isfinite(seconds) or not SHORTEST_INTERVAL_SECONDS <= seconds <= LONGEST_INTERVAL_SECONDS:
            wanted = f"{SHORTEST_INTERVAL_SECONDS:g} to {LONGEST_INTERVAL_SECONDS:g} seconds, or 0 for 1"
            raise InvalidField("interval_seconds", request.interval_seconds, wanted)
        while True:
            yield pb.WatchStatusResponse(status=self.status())
            await asyncio.sleep(seconds)

    def status(self) -> pb.GetStatusResponse:
        at_b = self.mover.buckets_at_b
        totals = self.measurement.totals()
        answer = pb.GetStatusResponse(
            setting=setting_to_pb(self.cache.current),
            setting_stale=self.cache.stale,
            stores=[self._store(store, totals) for store in Store],
            buckets=BUCKETS,
            buckets_to_b=self.mover.buckets_to_b,
            buckets_at_b=at_b,
            permille_at_b=None if at_b is None else round(1000 * at_b / BUCKETS),
            handover=handover_to_pb(self.mover.progress),
            jobs=latest_jobs(self.jobs),
            handoffs=totals.handoffs,
            stale_reads=totals.stale_reads,
            unavailable=totals.unavailable,
            rollback_cost=self._cost(),
            log_trouble=self.observer.log_trouble,
            settled=self.mover.settled,
            ledger=counts_to_pb(self.measurement.ledger()),
            bucket_runs=[run_to_pb(run) for run in runs(self.mover.states)],
            buckets_age_seconds=self.mover.states_age_seconds,
        )
        for name, generation, age in self.measurement.routers():
            answer.routers.add(name=name, generation=generation, age_seconds=age)
        for key, times in self.traffic.ping_pong():
            answer.ping_pong.add(key=key, handoffs=times)
        add_clients(answer, self.observer, self.measurement.clients())
        _add_measured(answer, self.measurement)
        self._add_outlook(answer)
        for add in self.additions:
            add(answer)
        self._add_attention(answer)
        return answer

    def _cost(self) -> pb.RollbackCost:
        view = self.observer.view(Store.B)
        b = AtB(view.reachable, view.status.owned_records if view.status else None, self.mover.measured_rate)
        cost = rollback_cost(self.cache.current, b)
        # A handoff moves each record back and keeps every acknowledged write: `writes_lost` is 0 and not an estimate.
        return pb.RollbackCost(
            possible=cost.possible, records=cost.records, seconds=cost.seconds, writes_lost=0, note=cost.note
        )

    def _store(self, store: Store, totals: Totals) -> pb.StoreStatus:
        view = self.observer.view(store)
        side = 0 if store is Store.A else 1
        answer = pb.StoreStatus(
            store=STORE_NUMBERS[store],
            reachable=view.reachable,
            note=view.trouble,
            lag_events=view.lag_events,
            lag_seconds=view.lag_seconds,
            reads=totals.reads[side],
            writes=totals.writes[side],
            failures=totals.failures[side],
            waiting=self.traffic.waiting[store],
        )
        status = view.status
        if status is not None:
            answer.serving = status.serving and view.reachable
            answer.note = view.trouble or status.reason
            answer.backend = status.backend
            answer.records = status.records
            answer.owned_records = status.owned_records
            answer.owned_buckets = status.owned_buckets
            answer.unfilled_records = status.unfilled_records
            answer.outbox_entries = status.outbox.entries
            answer.outbox_oldest_seconds = status.outbox.oldest_seconds
            answer.parked = status.feed.parked_now
            answer.unauthenticated = status.feed.unauthenticated_now
            answer.event_auth = status.feed.event_auth
            answer.public_auth = status.public_auth
            answer.public_auth_optional = status.public_auth_optional
            if status.HasField("certificate"):
                answer.certificate.CopyFrom(status.certificate)
            if status.pools:
                answer.pool_in_use = sum(pool.in_use for pool in status.pools)
                answer.pool_size = sum(pool.size for pool in status.pools)
                answer.pool_waiting = sum(pool.waiting for pool in status.pools)
            answer.feed_read = status.feed.read
            answer.feed_applied = status.feed.applied
            answer.feed_old = status.feed.old
            answer.feed_trouble = status.feed.trouble
            if status.outbox.aside:
                answer.set_aside = f"{status.outbox.aside} events, first {status.outbox.aside_first}"
        return answer

    def _add_outlook(self, answer: pb.GetStatusResponse) -> None:
        """Add the next step and the gates that block it."""
        setting = self.cache.current
        plan = self.migration.outlook(setting)
        answer.next = PHASE_NUMBERS[plan.next] if plan.next else pb.PHASE_UNSPECIFIED
        answer.gates.extend(gates_to_pb(plan.results))
        answer.blocked = plan.blocked or blocked_by(plan.results)
        answer.alerts.extend(self.migration.alerts(setting))
        if lost := answer.ledger.lost:
            answer.alerts.append(f"{lost} acknowledged writes are not in the store that owns them: baton ledger")

    def _add_attention(self, answer: pb.GetStatusResponse) -> None:
        calls = {measured.store: measured for measured in answer.measured}
        seen = [
            StoreSeen(
                STORES[store.store].value,
                store.reachable,
                store.serving,
                store.note,
                store.feed_trouble,
                store.parked,
                Counts(calls[store.store].recent_calls, calls[store.store].recent_faults),
                store.unauthenticated,
                self.observer.processes.locks_away(STORES[store.store]),
                self.observer.processes.missing(STORES[store.store]) or 0,
            )
            for store in answer.stores
        ]
        failed = [f"job {job.id} FAILED: {job.note}" for job in answer.jobs if job.state == pb.Job.STATE_FAILED]
        limits = self.migration.limits(self.cache.current)
        answer.alerts.extend(attention(seen, answer.log_trouble, failed, limits[ERRORS]))
        if answer.HasField("certificate"):
            answer.alerts.extend(certificate_warnings("this router", *days_of(answer.certificate)))
        for store in answer.stores:
            if store.HasField("certificate"):
                owner = f"store {STORES[store.store]}"
                answer.alerts.extend(certificate_warnings(owner, *days_of(store.certificate)))
        answer.alerts.extend(
            f"the log refuses events of store {STORES[store.store]}: {store.set_aside}: baton doctor"
            for store in answer.stores
            if store.set_aside
        )


def days_of(certificate: telemetry_pb2.Certificate) -> tuple[float | None, str]:
    """The days that are left, and why replaced files are not in force."""
    return certificate.days if certificate.HasField("days") else None, certificate.reload_trouble


def blocked_by(results: tuple[GateResult, ...]) -> str:
    """List the gates that do not pass, in words; "" if all do."""
    return "; ".join(f"{r.name} {r.verdict.value}: {r.evidence}" for r in results if r.verdict is not Verdict.PASS)


def _add_measured(answer: pb.GetStatusResponse, measurement: Measurement) -> None:
    window = measurement.seconds()[:RECENT_SECONDS]
    history = measurement.history()[::-1]
    past = {Store.A: [a for a, _ in history], Store.B: [b for _, b in history]}
    for store, recent in ((Store.A, total(a for a, _ in window)), (Store.B, total(b for _, b in window))):
        gated = measurement.recent(store)
        side = measurement.side(store)
        answer.measured.add(
            store=STORE_NUMBERS[store],
            recent_calls=recent.calls,
            recent_faults=recent.faults,
            calls=gated.calls,
            faults=gated.faults,
            calls_per_second=side.calls_per_second,
            p99_seconds=side.p99_seconds,
            direct_calls_per_second=side.direct_calls_per_second,
            p50_seconds=side.p50_seconds,
            operations=[pb.OperationRate(operation=name, calls_per_second=rate) for name, rate in side.operations],
            history_calls=[counts.calls for counts in past[store]],
            history_faults=[counts.faults for counts in past[store]],
        )


def run_to_pb(run: BucketRun) -> pb.BucketRun:
    owner, target, arrived, in_rehearsal, seized = run.state
    return pb.BucketRun(
        first=run.first,
        count=run.length,
        owner=STORE_NUMBERS[owner] if owner else record_pb2.STORE_UNSPECIFIED,
        target=STORE_NUMBERS[target],
        on_the_way=not arrived,
        rehearsal=in_rehearsal,
        seized=seized,
    )


def add_clients(answer: pb.GetStatusResponse, views: StoreViews, at_routers: Sequence[OldClient]) -> None:
    """Add the clients that must change before A or an old schema version can end: at the stores and at all routers."""
    for store in Store:
        status = views.view(store).status
        for client in status.clients if status is not None else ():
            answer.clients.add(client=client, store=STORE_NUMBERS[store])
    for seen in at_routers:
        client = answer.clients.add().client
        client.name, client.schema_version, client.calls = seen.name, seen.schema_version, seen.calls
        client.idle_seconds = seen.idle_seconds


def add_passed_on(answer: pb.GetStatusResponse, passed_on: Mapping[Store, int]) -> None:
    """Add the direct calls that the stores have passed on to routers."""
    for store in answer.stores:
        store.passed_on = passed_on[STORES[store.store]]


def add_phase(answer: pb.GetStatusResponse, entry: JournalEntry | None) -> None:
    """Add when the phase was entered, by whom and why."""
    if entry is not None:
        answer.phase_time.CopyFrom(timestamp(entry.time_seconds))
        answer.phase_actor, answer.phase_reason = entry.actor, entry.reason


def add_automatic_rollback(answer: pb.GetStatusResponse, automatic: AutomaticRollback) -> None:
    """Add its view, its alarm and the last rollback that it made."""
    answer.automatic_rollback = automatic.view
    if automatic.alarm:
        answer.alerts.append(automatic.alarm)
    if automatic.last is not None:
        answer.last_automatic.CopyFrom(automatic_to_pb(automatic.last))


def automatic_to_pb(entry: JournalEntry) -> pb.AutomaticRollback:
    return pb.AutomaticRollback(
        time=timestamp(entry.time_seconds),
        reason=entry.reason,
        before=setting_to_pb(entry.before),
        after=setting_to_pb(entry.after),
    )
