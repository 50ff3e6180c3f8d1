"""The operator's API: fields in, flows, fields out. Errors are raised as they are; the server makes them statuses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from libs.clock import Clock
from libs.errors import InvalidField
from libs.ownership.model import BUCKETS, Store
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1 import control_pb2_grpc
from libs.rpc.errors import Context
from libs.rpc.server import TypedService
from services.router.api.flags import FlagMethods, flags_of
from services.router.api.messages import (
    PHASE_NUMBERS,
    UNKNOWN,
    entry_to_pb,
    finding_to_pb,
    gates_to_pb,
    phase_from_pb,
    progress_to_pb,
    setting_to_pb,
    timestamp,
)
from services.router.api.rehearsal import Jobs, JobsServicer, fill_status
from services.router.api.shadow import ShadowMethods
from services.router.control.port import Progress
from services.router.flows.backfill import Backfill
from services.router.flows.diagnose import Surroundings, diagnose
from services.router.flows.explain import Explainer
from services.router.flows.flags import Switches
from services.router.flows.migration import Decision, Migration
from services.router.flows.observe import Observer, SettingCache
from services.router.flows.shadow import Shadow
from services.router.flows.traffic import Traffic

SERVICE = "baton.control.v1.ControlService"
DEFAULT_JOURNAL_ENTRIES = 50


class MoverView(Protocol):
    """What the mover tells of itself."""

    @property
    def progress(self) -> Progress: ...

    @property
    def buckets_to_b(self) -> int:
        """Whose target is B now."""
        ...

    @property
    def buckets_at_b(self) -> int | None:
        """Of which A owns neither a row nor the absence; None: not known."""
        ...

    @property
    def measured_rate(self) -> float:
        """Records per second of the last pass that moved something; 0: never."""
        ...

    @property
    def settled(self) -> bool:
        """Each bucket is where the setting wants it."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The flows behind the API."""

    migration: Migration
    cache: SettingCache
    observer: Observer
    traffic: Traffic
    mover: MoverView
    backfill: Backfill
    around: Surroundings
    switches: Switches
    explainer: Explainer
    jobs: Jobs
    shadow: Shadow
    clock: Clock


class ControlServicer(FlagMethods, JobsServicer, ShadowMethods, control_pb2_grpc.ControlServiceServicer):
    """One router's control API. The listener, with its token, tells who calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._flags = parts
        self._shadow = parts
        self._jobs = parts.jobs

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: N802
        parts = self._parts
        b = parts.observer.view(Store.B).status
        to_return = b.owned_records if b else 0
        answer = pb.GetStatusResponse(
            setting=setting_to_pb(parts.cache.current),
            setting_stale=parts.cache.stale,
            stores=[self._store(store) for store in Store],
            buckets=BUCKETS,
            buckets_to_b=parts.mover.buckets_to_b,
            buckets_at_b=UNKNOWN if parts.mover.buckets_at_b is None else parts.mover.buckets_at_b,
            handover=progress_to_pb(parts.mover.progress),
            backfill=progress_to_pb(parts.backfill.progress),
            handoffs=parts.traffic.handoffs,
            stale_reads=parts.traffic.stale_reads,
            unavailable=parts.traffic.unavailable,
            records_to_return=to_return if b else UNKNOWN,
            return_seconds=_seconds_to_return(to_return if b else None, parts.mover.measured_rate),
            log_trouble=parts.observer.log_trouble,
            settled=parts.mover.settled,
            flags=flags_of(parts),
        )
        fill_status(answer, parts.jobs)
        for key, times in parts.traffic.ping_pong():
            answer.ping_pong.add(key=key, handoffs=times)
        return answer

    async def PlanPhase(self, request: pb.PlanPhaseRequest, context: Context) -> pb.PlanPhaseResponse:  # noqa: N802
        plan = await self._parts.migration.plan()
        return pb.PlanPhaseResponse(
            setting=setting_to_pb(plan.setting),
            next=PHASE_NUMBERS[plan.next] if plan.next else pb.PHASE_UNSPECIFIED,
            gates=gates_to_pb(plan.results),
            blocked=plan.blocked,
            effect=plan.effect,
        )

    async def AdvancePhase(  # noqa: N802
        self, request: pb.AdvancePhaseRequest, context: Context
    ) -> pb.AdvancePhaseResponse:
        decision = Decision(request.actor, request.reason, request.generation, request.override)
        setting, results = await self._parts.migration.advance(decision)
        return pb.AdvancePhaseResponse(setting=setting_to_pb(setting), gates=gates_to_pb(results))

    async def RollbackPhase(  # noqa: N802
        self, request: pb.RollbackPhaseRequest, context: Context
    ) -> pb.RollbackPhaseResponse:
        decision = Decision(request.actor, request.reason, request.generation)
        setting = await self._parts.migration.rollback(decision, phase_from_pb(request.to))
        return pb.RollbackPhaseResponse(setting=setting_to_pb(setting))

    async def SetCanary(self, request: pb.SetCanaryRequest, context: Context) -> pb.SetCanaryResponse:  # noqa: N802
        decision = Decision(request.actor, request.reason, request.generation)
        setting = await self._parts.migration.set_canary(decision, request.permille)
        return pb.SetCanaryResponse(setting=setting_to_pb(setting))

    async def LiftHold(self, request: pb.LiftHoldRequest, context: Context) -> pb.LiftHoldResponse:  # noqa: N802
        setting = await self._parts.migration.lift_hold(Decision(request.actor, request.reason, request.generation))
        return pb.LiftHoldResponse(setting=setting_to_pb(setting))

    async def ListJournal(self, request: pb.ListJournalRequest, context: Context) -> pb.ListJournalResponse:  # noqa: N802
        entries = await self._parts.migration.journal(request.limit or DEFAULT_JOURNAL_ENTRIES)
        return pb.ListJournalResponse(entries=[entry_to_pb(entry) for entry in entries])

    async def StartBackfill(  # noqa: N802
        self, request: pb.StartBackfillRequest, context: Context
    ) -> pb.StartBackfillResponse:
        if not math.isfinite(request.rate):
            raise InvalidField("rate", request.rate, "a finite number of records per second")
        progress = await self._parts.backfill.start(request.actor, request.rate)
        return pb.StartBackfillResponse(progress=progress_to_pb(progress))

    async def CancelBackfill(  # noqa: N802
        self, request: pb.CancelBackfillRequest, context: Context
    ) -> pb.CancelBackfillResponse:
        progress = await self._parts.backfill.cancel(request.actor)
        return pb.CancelBackfillResponse(progress=progress_to_pb(progress))

    async def Diagnose(self, request: pb.DiagnoseRequest, context: Context) -> pb.DiagnoseResponse:  # noqa: N802
        findings = await diagnose(self._parts.around, self._parts.clock)
        return pb.DiagnoseResponse(
            findings=[finding_to_pb(finding) for finding in findings], now_time=timestamp(self._parts.clock.now())
        )

    def _store(self, store: Store) -> pb.StoreStatus:
        view = self._parts.observer.view(store)
        traffic = self._parts.traffic
        answer = pb.StoreStatus(
            store=STORE_NUMBERS[store],
            reachable=view.reachable,
            note=view.trouble,
            lag_events=UNKNOWN if view.lag_events is None else view.lag_events,
            lag_seconds=UNKNOWN if view.lag_seconds is None else view.lag_seconds,
            reads=traffic.reads[store],
            writes=traffic.writes[store],
            failures=traffic.failures[store],
        )
        status = view.status
        if status is not None:
            answer.serving = status.serving and view.reachable
            answer.note = view.trouble or status.reason
            answer.backend = status.backend
            answer.records = status.records
            answer.owned_records = status.owned_records
            answer.owned_buckets = status.owned_absences
            answer.outbox_entries = status.outbox.entries
            answer.outbox_oldest_seconds = status.outbox.oldest_seconds
            answer.parked = status.feed.parked_now
            answer.feed_read = status.feed.read
            answer.feed_applied = status.feed.applied
            answer.feed_old = status.feed.old
            answer.feed_trouble = status.feed.trouble
        return answer


def control_service(parts: Parts) -> TypedService:
    """For `libs.rpc.server.Server`, on a listener of its own with a token of its own."""
    return TypedService(SERVICE, ControlServicer(parts), control_pb2_grpc.add_ControlServiceServicer_to_server)


def _seconds_to_return(records: int | None, rate: float) -> float:
    """At the rate of the last hand-over; negative when not known."""
    if records == 0:
        return 0.0
    return records / rate if records is not None and rate > 0 else float(UNKNOWN)
