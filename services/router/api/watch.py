"""The status of a migration, as one router knows it: the one source for command line, dashboard and metrics."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence

from libs.errors import InvalidField
from libs.ownership.model import BUCKETS, Store
from libs.ownership.wire import STORE_NUMBERS, STORES
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.flags import flags_of
from services.router.api.jobs import latest_jobs
from services.router.api.ledger import counts_to_pb
from services.router.api.messages import (
    PHASE_NUMBERS,
    gates_to_pb,
    handover_to_pb,
    setting_to_pb,
    timestamp,
)
from services.router.api.parts import Parts
from services.router.api.rehearsal import fill_status
from services.router.control.port import JournalEntry
from services.router.core.attention import StoreSeen, attention
from services.router.core.gates import GateResult, Verdict
from services.router.core.gates.service import ERRORS
from services.router.core.measure import Counts, total
from services.router.core.phase import Phase
from services.router.core.rollback_cost import AtB, rollback_cost
from services.router.flows.steering.automatic_rollback import AutomaticRollback
from services.router.flows.steering.measure import Measurement
from services.router.flows.steering.report import OldClient
from services.router.flows.stores import StoreViews
from services.router.flows.traffic import Totals

RECENT_SECONDS = 30
"""Of `MeasuredCalls.recent_calls`."""

DEFAULT_INTERVAL_SECONDS = 1.0
SHORTEST_INTERVAL_SECONDS = 0.1
LONGEST_INTERVAL_SECONDS = 60.0


class WatchMethods:
    """Part of the control API's servicer."""

    _watched: Parts

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: N802
        return status_of(self._watched)

    async def WatchStatus(  # noqa: N802
        self, request: pb.WatchStatusRequest, context: Context
    ) -> AsyncGenerator[pb.WatchStatusResponse, None]:
        seconds = request.interval_seconds or DEFAULT_INTERVAL_SECONDS
        if not math.isfinite(seconds) or not SHORTEST_INTERVAL_SECONDS <= seconds <= LONGEST_INTERVAL_SECONDS:
            wanted = f"{SHORTEST_INTERVAL_SECONDS:g} to {LONGEST_INTERVAL_SECONDS:g} seconds, or 0 for 1"
            raise InvalidField("interval_seconds", request.interval_seconds, wanted)
        while True:
            yield pb.WatchStatusResponse(status=status_of(self._watched))
            await asyncio.sleep(seconds)


def status_of(parts: Parts) -> pb.GetStatusResponse:
    at_b = parts.mover.buckets_at_b
    totals = parts.measurement.totals()
    answer = pb.GetStatusResponse(
        setting=setting_to_pb(parts.cache.current),
        setting_stale=parts.cache.stale,
        stores=[_store(parts, store, totals) for store in Store],
        buckets=BUCKETS,
        buckets_to_b=parts.mover.buckets_to_b,
        buckets_at_b=at_b,
        permille_at_b=None if at_b is None else round(1000 * at_b / BUCKETS),
        handover=handover_to_pb(parts.mover.progress),
        jobs=latest_jobs(parts.jobs),
        handoffs=totals.handoffs,
        stale_reads=totals.stale_reads,
        unavailable=totals.unavailable,
        rollback_cost=_cost(parts),
        log_trouble=parts.observer.log_trouble,
        settled=parts.mover.settled,
        flags=flags_of(parts),
        logged_phases=[PHASE_NUMBERS[phase] for phase in Phase if phase in parts.logged_phases],
        ledger=counts_to_pb(parts.measurement.ledger()),
    )
    _add_phase(answer, parts)
    fill_status(answer, parts)
    for key, times in parts.traffic.ping_pong():
        answer.ping_pong.add(key=key, handoffs=times)
    add_clients(answer, parts.observer, parts.measurement.clients())
    _add_outlook(answer, parts)
    _add_automatic(answer, parts.automatic_rollback, parts.measurement)
    _add_attention(answer, parts)
    return answer


def _cost(parts: Parts) -> pb.RollbackCost:
    view = parts.observer.view(Store.B)
    b = AtB(view.reachable, view.status.owned_records if view.status else None, parts.mover.measured_rate)
    cost = rollback_cost(parts.cache.current, b)
    # A handoff moves each record back and keeps every acknowledged write, so `writes_lost` is 0 and not an estimate.
    return pb.RollbackCost(
        possible=cost.possible, records=cost.records, seconds=cost.seconds, writes_lost=0, note=cost.note
    )


def _add_phase(answer: pb.GetStatusResponse, parts: Parts) -> None:
    """Since when the phase is what it is; and who else routes."""
    if (entry := parts.phase_since.entry) is not None:
        answer.phase_time.CopyFrom(timestamp(entry.time_seconds))
        answer.phase_actor, answer.phase_reason = entry.actor, entry.reason
    for name, generation, age in parts.measurement.routers():
        answer.routers.add(name=name, generation=generation, age_seconds=age)


def _add_attention(answer: pb.GetStatusResponse, parts: Parts) -> None:
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
        )
        for store in answer.stores
    ]
    failed = [f"job {job.id} FAILED: {job.note}" for job in answer.jobs if job.state == pb.Job.STATE_FAILED]
    limits = parts.migration.limits(parts.cache.current)
    answer.alerts.extend(attention(seen, answer.log_trouble, failed, limits[ERRORS]))
    answer.alerts.extend(
        f"the log refuses events of store {STORES[store.store]}: {store.set_aside}: baton doctor"
        for store in answer.stores
        if store.set_aside
    )


def _add_outlook(answer: pb.GetStatusResponse, parts: Parts) -> None:
    """The next step, and what blocks it."""
    setting = parts.cache.current
    plan = parts.migration.outlook(setting)
    answer.next = PHASE_NUMBERS[plan.next] if plan.next else pb.PHASE_UNSPECIFIED
    answer.gates.extend(gates_to_pb(plan.results))
    answer.blocked = plan.blocked or blocked_by(plan.results)
    answer.alerts.extend(parts.migration.alerts(setting))
    if lost := answer.ledger.lost:
        answer.alerts.append(f"{lost} acknowledged writes are not in the store that owns them: baton ledger")


def blocked_by(results: tuple[GateResult, ...]) -> str:
    """The gates that do not pass, in words; "" when all do."""
    return "; ".join(f"{r.name} {r.verdict.value}: {r.evidence}" for r in results if r.verdict is not Verdict.PASS)


def _add_automatic(answer: pb.GetStatusResponse, automatic: AutomaticRollback, measurement: Measurement) -> None:
    answer.automatic_rollback = automatic.view
    if automatic.alarm:
        answer.alerts.append(automatic.alarm)
    if automatic.last is not None:
        answer.last_automatic.CopyFrom(automatic_to_pb(automatic.last))
    window = measurement.seconds()[:RECENT_SECONDS]
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
        )


def automatic_to_pb(entry: JournalEntry) -> pb.AutomaticRollback:
    return pb.AutomaticRollback(
        time=timestamp(entry.time_seconds),
        reason=entry.reason,
        before=setting_to_pb(entry.before),
        after=setting_to_pb(entry.after),
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


def _store(parts: Parts, store: Store, totals: Totals) -> pb.StoreStatus:
    view = parts.observer.view(store)
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
        waiting=parts.traffic.waiting[store],
    )
    status = view.status
    if status is not None:
        answer.serving = status.serving and view.reachable
        answer.note = view.trouble or status.reason
        answer.backend = status.backend
        answer.records = status.records
        answer.owned_records = status.owned_records
        answer.owned_buckets = status.owned_absences
        answer.unfilled_records = status.unfilled_records
        answer.outbox_entries = status.outbox.entries
        answer.outbox_oldest_seconds = status.outbox.oldest_seconds
        answer.parked = status.feed.parked_now
        answer.feed_read = status.feed.read
        answer.feed_applied = status.feed.applied
        answer.feed_old = status.feed.old
        answer.feed_trouble = status.feed.trouble
        if status.outbox.aside:
            answer.set_aside = f"{status.outbox.aside} events, first {status.outbox.aside_first}"
    return answer
