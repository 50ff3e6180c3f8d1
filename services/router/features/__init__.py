"""All features of a router."""

from __future__ import annotations

from collections.abc import Callable

from services.router.features import copying, ending, log, recovery, signals, steering, webhooks
from services.router.features.shared import Feature, SharedFlows

FEATURES: tuple[Callable[[SharedFlows], Feature], ...] = (
    steering.automatic_rollback,
    steering.canary_auto,
    steering.cohorts,
    steering.direct_clients,
    steering.direct_traffic,
    steering.doctor,
    steering.flags,
    steering.identity,
    steering.ledger,
    steering.limits,
    steering.phase_since,
    steering.probe,
    steering.rehearsal,
    steering.shadow,
    copying.audit,
    copying.backfill,
    copying.reconcile,
    copying.replay,
    copying.validate,
    signals.metrics,
    recovery.conflicts,
    recovery.records,
    recovery.recover,
    ending.ending,
    webhooks.gate_webhook,
    webhooks.notices,
    log.adopted_logs,
    log.events,
    log.heartbeat,
    log.relays,
    log.retention,
    # Last, because the log gap is added to the work under way that other features have reported.
    log.log_gap,
)
"""All features, in the order in which they add to the evidence and to the status."""
