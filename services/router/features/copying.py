"""Features that copy or compare records: jobs, and the evidence from their reports."""

from __future__ import annotations

from services.router.features.shared import Feature, SharedFlows
from services.router.flows.jobs.audit import Audit, LastAudit
from services.router.flows.jobs.backfill import Backfill
from services.router.flows.jobs.reconcile_job import Reconcile
from services.router.flows.jobs.reconcile_schedule import ReconcileSchedule
from services.router.flows.jobs.replay import Replay
from services.router.flows.jobs.validate import Validate


def audit(flows: SharedFlows) -> Feature:
    last = LastAudit(flows.jobs, flows.clock)
    kind = Audit(flows.connections.stores, flows.connections.contract, flows.clock)
    return Feature(kinds=[kind], loops=[last.loop], evidence=last.evidence)


def backfill(flows: SharedFlows) -> Feature:
    return Feature(kinds=[Backfill(flows.connections.stores, flows.clock)])


def reconcile(flows: SharedFlows) -> Feature:
    connections = flows.connections
    schedule = ReconcileSchedule(flows.jobs, flows.settings.reconcile_seconds, flows.clock)
    kind = Reconcile(connections.stores, flows.transfer, connections.event_log, flows.clock, connections.control_store)
    return Feature(kinds=[kind], loops=[schedule.loop], evidence=schedule.evidence)


def replay(flows: SharedFlows) -> Feature:
    connections = flows.connections
    return Feature(kinds=[Replay(connections.stores, connections.event_log, flows.clock, connections.codes)])


def validate(flows: SharedFlows) -> Feature:
    return Feature(kinds=[Validate(flows.connections.stores, flows.clock)])
