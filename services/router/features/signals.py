"""Metrics of a router: the evidence of the gates, the migration, its clients' calls, and the stores as it sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from libs.clock import Clock
from libs.ownership.model import BUCKETS, Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.telemetry.instruments import Reading, observe, observe_one
from services.router.core.gates import Verdict
from services.router.core.jobs import Job, JobState
from services.router.core.phase import CANARY_FULL, Phase
from services.router.features.shared import Feature, SharedFlows
from services.router.flows.steering.evidence_metrics import EvidenceMetrics
from services.router.flows.traffic import Traffic


def metrics(flows: SharedFlows) -> Feature:
    """Export the metrics of a router. Each router reports the evidence that it has, so alerts take the maximum over
    them."""
    cache = flows.connections.cache
    EvidenceMetrics(
        flows.connections.meter,
        lambda: flows.evidence(cache.current),
        lambda: flows.migration.limits(cache.current),
        flows.clock,
    )
    _measure_migration(flows)
    _measure_traffic(flows)
    _measure_stores(flows)
    return Feature()


def _measure_migration(flows: SharedFlows) -> None:
    meter, cache, mover = flows.connections.meter, flows.connections.cache, flows.mover

    def phases() -> Iterable[Reading]:
        return [Reading(phase is cache.current.phase, {"phase": phase.value}) for phase in Phase]

    def verdicts() -> Iterable[Reading]:
        return [
            Reading(result.verdict is verdict, {"gate": result.name, "verdict": verdict.value})
            for result in flows.migration.outlook(cache.current).results
            for verdict in Verdict
        ]

    def rollbacks() -> Iterable[Reading]:
        return [Reading(count, {"trigger": trigger}) for trigger, count in flows.migration.rollbacks.items()]

    def old_clients() -> int:
        views = (flows.observer.view(store).status for store in Store)
        return len(flows.measurement.clients()) + sum(len(status.clients) for status in views if status is not None)

    observe(meter, "baton.phase.info", phases)
    observe(meter, "baton.gate.verdict", verdicts)
    observe_one(meter, "baton.setting.generation", lambda: cache.current.generation)
    observe_one(meter, "baton.setting.age", lambda: cache.age_seconds)
    observe_one(meter, "baton.hold", lambda: cache.current.hold)
    observe_one(meter, "baton.canary.set", lambda: cache.current.canary_permille / CANARY_FULL)
    observe_one(meter, "baton.buckets.target.share", lambda: mover.buckets_to_b / BUCKETS)
    observe_one(meter, "baton.buckets.actual.share", lambda: _share_of_buckets(mover.buckets_at_b))
    observe_one(meter, "baton.settled", lambda: mover.settled)
    observe(meter, "baton.rollbacks", rollbacks)
    observe_one(meter, "baton.old.clients", old_clients)
    jobs = JobGauges(flows.clock, lambda: flows.jobs.view)
    observe(meter, "baton.job.progress", jobs.progress)
    observe(meter, "baton.job.state", jobs.states)
    observe(meter, "baton.job.idle", jobs.idle)


def _share_of_buckets(number: int | None) -> float | None:
    return None if number is None else number / BUCKETS


@dataclass(slots=True)
class JobGauges:
    """The newest job of each lane."""

    clock: Clock
    view: Callable[[], Iterable[Job]]
    """All jobs, newest first."""
    _advanced: dict[str, tuple[tuple[str, int, str], float]] = field(default_factory=dict)
    """The last job, its progress, and the time at which this router first saw it, by lane."""

    def progress(self) -> Iterable[Reading]:
        return [Reading(min(job.done / job.total, 1.0), {"lane": job.lane}) for job in self._newest() if job.total]

    def states(self) -> Iterable[Reading]:
        return [
            Reading(job.state is state, {"lane": job.lane, "state": state.value})
            for job in self._newest()
            for state in JobState
        ]

    def idle(self) -> Iterable[Reading]:
        now = self.clock.monotonic()
        return [Reading(self._idle(job, now), {"lane": job.lane}) for job in self._newest()]

    def _idle(self, job: Job, now: float) -> float:
        if not job.state.wants_a_runner:
            self._advanced.pop(job.lane, None)
            return 0.0
        shown = job.id, job.done, job.note
        known = self._advanced.get(job.lane)
        if known is None or known[0] != shown:
            self._advanced[job.lane] = shown, now
            return 0.0
        return now - known[1]

    def _newest(self) -> Iterable[Job]:
        found: dict[str, Job] = {}
        for job in self.view():
            found.setdefault(job.lane, job)
        return found.values()


def _measure_traffic(flows: SharedFlows) -> None:
    meter, traffic = flows.connections.meter, flows.traffic

    def answered() -> Iterable[Reading]:
        kinds = (("read", traffic.reads), ("write", traffic.writes))
        return [Reading(count[store], {"store": store.value, "kind": kind}) for kind, count in kinds for store in Store]

    observe(meter, "baton.answered.calls", answered)
    observe(meter, "baton.failed.calls", lambda: _by_store(traffic, lambda one, store: one.failures[store]))
    observe(meter, "baton.waiting.calls", lambda: _by_store(traffic, lambda one, store: one.waiting[store]))
    observe_one(meter, "baton.handoffs", lambda: traffic.handoffs)
    observe_one(meter, "baton.stale.reads", lambda: traffic.stale_reads)
    observe_one(meter, "baton.unavailable.calls", lambda: traffic.unavailable)


def _by_store(traffic: Traffic, read: Callable[[Traffic, Store], int]) -> Iterable[Reading]:
    return [Reading(read(traffic, store), {"store": store.value}) for store in Store]


def _measure_stores(flows: SharedFlows) -> None:
    meter, observer = flows.connections.meter, flows.observer

    def reachable() -> Iterable[Reading]:
        return [Reading(observer.view(store).reachable, {"store": store.value}) for store in Store]

    def serving() -> Iterable[Reading]:
        views = ((store, observer.view(store)) for store in Store)
        return [
            Reading(view.reachable and view.status is not None and view.status.serving, {"store": store.value})
            for store, view in views
        ]

    def lags(read: Callable[[Store], float | None]) -> Iterable[Reading]:
        known = ((store, read(store)) for store in Store)
        return [Reading(lag, {"store": store.value}) for store, lag in known if lag is not None]

    def each(name: str, read: Callable[[pb.GetStatusResponse], float]) -> None:
        """Export a part of both stores' last good answers."""

        def answers() -> Iterable[Reading]:
            known = ((store, observer.view(store).status) for store in Store)
            return [Reading(read(status), {"store": store.value}) for store, status in known if status is not None]

        observe(meter, name, answers)

    def events() -> Iterable[Reading]:
        known = ((store, observer.view(store).status) for store in Store)
        return [
            Reading(getattr(status.feed, result), {"store": store.value, "result": result})
            for store, status in known
            if status is not None
            for result in ("applied", "old", "parked", "journaled")
        ]

    def missing() -> Iterable[Reading]:
        known = ((store, observer.processes.missing(store)) for store in Store)
        return [Reading(number, {"store": store.value}) for store, number in known if number is not None]

    observe(meter, "baton.store.reachable", reachable)
    observe(meter, "baton.store.processes.missing", missing)
    observe(meter, "baton.store.serving", serving)
    observe(meter, "baton.feed.lag", lambda: lags(lambda store: observer.view(store).lag_seconds))
    observe(meter, "baton.feed.lag.events", lambda: lags(lambda store: observer.view(store).lag_events))
    observe(meter, "baton.feed.events", events)
    observe_one(meter, "baton.log.reachable", lambda: not observer.log_trouble)
    each("baton.store.records", lambda status: status.records)
    each("baton.store.owned.records", lambda status: status.owned_records)
    each("baton.store.owned.buckets", lambda status: status.owned_buckets)
    each("baton.outbox.entries", lambda status: status.outbox.entries)
    each("baton.outbox.size", lambda status: status.outbox.bytes)
    each("baton.outbox.age", lambda status: status.outbox.oldest_seconds)
    each("baton.outbox.fill.share", lambda status: status.outbox.fill_share)
    each("baton.conflicts", lambda status: status.conflicts)
