"""The alerting rules for Prometheus: those of the gates, and those of the system around them. Pure.

Each alert has a runbook (`core.runbooks`). `make alerts` writes deploy/alerts.yaml from here.
"""

from __future__ import annotations

from typing import Any

from services.router.core.gates import GATES
from services.router.core.gates.gate import Alert
from services.router.core.runbooks import BY_ALERT, FOLDER
from services.router.core.thresholds import Threshold

RUNBOOKS = f"{FOLDER}/"
"""Where the runbooks are, by default: a path of this repository."""

SYSTEM = (
    Alert(
        "BatonAutomaticRollback",
        "page",
        'sum(increase(baton_rollbacks_total{trigger="automatic"}[15m])) > 0',
        "B failed, and a router has sent all traffic back to A.",
        "baton journal: the reason. All traffic stays at A until baton hold lift. No write is lost.",
    ),
    Alert(
        "BatonNoRollback",
        "page",
        "max(baton_rollback_alarm) == 1",
        "B fails, and Baton may not roll back by itself.",
        "baton status: the objection. Clients suffer: baton rollback OFF. No write is lost.",
        lasting="15s",
    ),
    Alert(
        "BatonHold",
        "ticket",
        "max(baton_hold) == 1",
        "All traffic has been held at A for an hour since a rollback.",
        "baton journal: the reason of the rollback. Once it is gone: baton hold lift.",
        lasting="1h",
    ),
    Alert(
        "BatonStoreDown",
        "page",
        "max by (store) (baton_store_serving) == 0",
        "Store {{ $labels.store }} does not serve, as no router gets good answers from it.",
        "baton doctor: unreachable, fenced or not ready. Writes to its records wait; reads come from the replica.",
        lasting="1m",
    ),
    Alert(
        "BatonProcessMissing",
        "ticket",
        "max by (store) (baton_store_processes_missing) > 0",
        "Store {{ $labels.store }} lacks {{ $value }} of its processes. The others serve.",
        "Start them, or take their addresses out of the routers' settings.",
        lasting="1m",
    ),
    Alert(
        "BatonLogDown",
        "page",
        "max(baton_log_reachable) == 0",
        "No router reaches the event log.",
        "Start Kafka. Calls go on until an outbox is full: baton status shows its age.",
        lasting="2m",
    ),
    Alert(
        "BatonControlStoreDown",
        "page",
        "min(baton_setting_age_seconds) > 30",
        "No router has reached the control store for {{ $value | humanizeDuration }}.",
        "Start the control store. Routers keep phase and flags; nothing can be changed, and B's failure rolls back"
        " nothing.",
        lasting="1m",
    ),
    Alert(
        "BatonOutboxNearFull",
        "page",
        "max by (store) (baton_outbox_fill_share) > 0.8",
        "The outbox of {{ $labels.store }} is {{ $value | humanizePercentage }} full; at 100 % writes fail.",
        "baton doctor: the relay, the log. Until then raise outbox_entries, outbox_bytes or outbox_seconds.",
        lasting="1m",
    ),
    Alert(
        "BatonJobFailed",
        "ticket",
        'max by (lane) (baton_job_state{state="FAILED"}) == 1',
        "The job of the lane {{ $labels.lane }} has failed and waits for an operator.",
        "baton jobs: its note; baton jobs resume or cancel.",
    ),
    Alert(
        "BatonJobStuck",
        "ticket",
        "min by (lane) (baton_job_idle_seconds) > 600",
        "The job of the lane {{ $labels.lane }} has not advanced for {{ $value | humanizeDuration }}.",
        "baton jobs shows the reason for the wait. Jobs slow down while live traffic suffers.",
    ),
    Alert(
        "BatonConflicts",
        "page",
        "max by (store) (baton_conflicts) > 0",
        "A seizure has left {{ $value }} open conflicts at {{ $labels.store }}.",
        "baton conflicts lists both versions of each record; an operator decides.",
    ),
    Alert(
        "BatonXdsRefused",
        "ticket",
        "sum(increase(baton_xds_refused_total[10m])) > 0",
        "Clients with xDS refuse this router's routes (NACK) and keep old ones.",
        "baton doctor, and the router's log: the client and its reason. Their calls are passed on, none is lost.",
    ),
    Alert(
        "BatonCertificateExpires",
        "page",
        "min by (instance) (baton_tls_certificate_days) < 14",
        "The certificate of {{ $labels.instance }} expires in {{ $value | humanize }} days.",
        "Replace the files of tls_certificate and tls_key; the process reads them again without a restart.",
    ),
    Alert(
        "BatonCertificateReload",
        "ticket",
        "max by (instance) (baton_tls_reload_failing) > 0",
        "{{ $labels.instance }} cannot use {{ $value }} replaced TLS files; the last good ones are in force.",
        "baton doctor: the file and the reason.",
        lasting="5m",
    ),
)


def all_alerts() -> list[tuple[Alert, tuple[Threshold[float], ...]]]:
    """Every alert, with the thresholds that its condition may name."""
    of_gates = [(alert, gate.thresholds) for gate in GATES.values() for alert in gate.alerts]
    return [*of_gates, *((alert, ()) for alert in SYSTEM)]


def rules(runbooks: str = RUNBOOKS) -> list[dict[str, Any]]:
    """The rules of deploy/alerts.yaml. `runbooks`: the beginning of each `runbook_url`."""
    found = []
    for alert, thresholds in all_alerts():
        rule = alert.rule(thresholds)
        rule["annotations"]["runbook_url"] = f"{runbooks}{BY_ALERT[alert.name].name}.md"
        found.append(rule)
    return found
