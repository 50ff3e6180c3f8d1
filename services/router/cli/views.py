"""Answers of the control API as plain values with stable names: what `-o json` prints and tables are made from."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from libs.ownership.wire import STORES
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.record.v1 import record_pb2
from services.router.cli.client import phase_name, setting_from_pb
from services.router.core.phase import Setting
from services.router.core.setting_changes import changes

View = dict[str, Any]

LEDGER_COUNTS = ("sampled", "checked", "superseded", "dropped", "waiting", "lost")


def known(value: float) -> float | None:
    """Negative stands for "not known"."""
    return value if value >= 0 else None


def time_of(message: Timestamp) -> str:
    return datetime.fromtimestamp(message.ToNanoseconds() / 1e9, UTC).isoformat(timespec="milliseconds")


def seconds_since(message: Timestamp) -> float:
    """By this machine's clock."""
    return round(max(0.0, time.time() - message.ToNanoseconds() / 1e9), 1)


def setting_view(setting: Setting) -> View:
    return {
        "phase": setting.phase.value,
        "generation": setting.generation,
        "canary_percent": setting.canary_permille / 10,
        "hold": setting.hold,
        "shadow_percent": setting.shadow_permille / 10,
        "shadow_same": setting.shadow_same,
        "set_flags": dict(setting.flags),
        "limits": dict(setting.limits),
    }


def flag_view(flag: pb.Flag) -> View:
    return {
        "name": flag.name,
        "value": flag.value if flag.HasField("value") else None,
        "source": flag.source,
        "good_seconds": known(round(flag.good_seconds, 3)),
        "trouble": flag.trouble,
    }


def gate_view(gate: pb.Gate) -> View:
    return {
        "name": gate.name,
        "verdict": pb.Verdict.Name(gate.verdict).removeprefix("VERDICT_"),
        "evidence": gate.evidence,
        "threshold": gate.threshold,
        "sentence": gate.sentence,
        "runbook": gate.runbook,
        "samples": gate.samples,
        "least_samples": gate.least_samples,
        "seconds_left": known(round(gate.seconds_left, 1)),
    }


def measured_view(calls: pb.MeasuredCalls) -> View:
    return {
        "recent_calls": calls.recent_calls,
        "recent_faults": calls.recent_faults,
        "calls": calls.calls,
        "faults": calls.faults,
        "calls_per_second": round(calls.calls_per_second, 1),
        "p99_seconds": known(round(calls.p99_seconds, 6)),
    }


def automatic_view(rollback: pb.AutomaticRollback) -> View:
    return {
        "time": time_of(rollback.time),
        "reason": rollback.reason,
        "before": setting_view(setting_from_pb(rollback.before)),
        "after": setting_view(setting_from_pb(rollback.after)),
    }


def progress_view(progress: pb.Progress) -> View:
    return {
        "running": progress.running,
        "done": progress.done,
        "total": progress.total,
        "rate": round(progress.rate, 1),
        "eta_seconds": known(progress.eta_seconds),
        "note": progress.note,
        "finished_time": time_of(progress.finished_time) if progress.HasField("finished_time") else None,
    }


def job_view(job: pb.Job) -> View:
    return {
        "id": job.id,
        "kind": job.kind,
        "lane": job.lane,
        "arguments": dict(sorted(job.arguments.items())),
        "state": pb.Job.State.Name(job.state).removeprefix("STATE_"),
        "unit": job.unit,
        "done": job.done,
        "total": job.total or None,
        "rate": round(job.rate, 1),
        "eta_seconds": known(round(job.eta_seconds, 1)),
        "waits": job.waits,
        "note": job.note,
        "wanted_rate": job.wanted_rate or None,
        "actor": job.actor,
        "runner": job.runner,
        "created_time": time_of(job.create_time),
        "ended_time": time_of(job.end_time) if job.HasField("end_time") else None,
        "report": json.loads(job.report) if job.report else None,
    }


def walk_view(progress: pb.Progress) -> View:
    """Of a canary that grows by itself."""
    return {
        "running": progress.running,
        "step": progress.done,
        "steps": progress.total,
        "note": progress.note,
        "finished_time": time_of(progress.finished_time) if progress.HasField("finished_time") else None,
    }


def rehearsal_view(result: pb.Rehearsal) -> View:
    """What came of a rehearsal."""
    return {
        "passed": result.passed,
        "note": result.note,
        "finished_time": time_of(result.finished_time),
        "buckets": list(result.buckets),
        "records": result.records,
        "there_seconds": round(result.there_seconds, 3),
        "back_seconds": round(result.back_seconds, 3),
        "calls": result.calls,
        "errors": result.errors,
        "handoffs": result.handoffs,
    }


def store_view(store: pb.StoreStatus) -> View:
    # Of a store that has never answered nothing is known; of one that is away, what it said last.
    answered = bool(store.reachable or store.backend)
    return {
        "reachable": store.reachable,
        "serving": store.serving,
        "note": store.note,
        "backend": store.backend,
        "records": store.records if answered else None,
        "owned_records": store.owned_records if answered else None,
        "owned_buckets": store.owned_buckets if answered else None,
        "unfilled_records": store.unfilled_records if answered else None,
        "outbox_entries": store.outbox_entries if answered else None,
        "outbox_oldest_seconds": round(store.outbox_oldest_seconds, 3) if answered else None,
        "lag_events": known(store.lag_events),
        "lag_seconds": known(round(store.lag_seconds, 3)),
        "parked": store.parked if answered else None,
        "reads": store.reads,
        "writes": store.writes,
        "failures": store.failures,
        "waiting": store.waiting,
        "feed_read": store.feed_read,
        "feed_applied": store.feed_applied,
        "feed_old": store.feed_old,
        "feed_trouble": store.feed_trouble,
    }


def status_view(status: pb.GetStatusResponse) -> View:
    return {
        **setting_view(setting_from_pb(status.setting)),
        "setting_stale": status.setting_stale,
        "settled": status.settled,
        "buckets": status.buckets,
        "buckets_to_b": status.buckets_to_b,
        "buckets_at_b": known(status.buckets_at_b),
        "stores": {"A": store_view(status.stores[0]), "B": store_view(status.stores[1])},
        "handover": progress_view(status.handover),
        "jobs": [job_view(job) for job in status.jobs],
        "canary_auto": walk_view(status.canary_auto),
        "rehearsing": status.rehearsal.note if status.rehearsal.running else "",
        "last_rehearsal": rehearsal_view(status.last_rehearsal) if status.HasField("last_rehearsal") else None,
        "handoffs": status.handoffs,
        "stale_reads": status.stale_reads,
        "unavailable": status.unavailable,
        "going_back": {
            "records": known(status.records_to_return),
            "seconds": known(status.return_seconds),
            "writes_lost": status.writes_lost,
            "possible": status.rollback_possible,
            "note": status.rollback_note,
        },
        "phase_since": time_of(status.phase_time) if status.HasField("phase_time") else None,
        "phase_seconds": seconds_since(status.phase_time) if status.HasField("phase_time") else None,
        "phase_actor": status.phase_actor,
        "phase_reason": status.phase_reason,
        "routers": [
            {"name": one.name, "generation": one.generation, "age_seconds": round(one.age_seconds, 1)}
            for one in status.routers
        ],
        "percent_at_b": None if status.permille_at_b < 0 else status.permille_at_b / 10,
        "next": phase_name(status.next).value if status.next else None,
        "blocked": status.blocked,
        "gates": [gate_view(gate) for gate in status.gates],
        "alerts": list(status.alerts),
        "judge": status.judge,
        "last_automatic": automatic_view(status.last_automatic) if status.HasField("last_automatic") else None,
        "measured": dict(zip("AB", map(measured_view, status.measured), strict=False)),
        "log_trouble": status.log_trouble,
        "flags": [flag_view(flag) for flag in status.flags],
        "logged_phases": [phase_name(phase).value for phase in status.logged_phases],
        "ledger": counts_view(status.ledger),
        "ping_pong": [{"key": entry.key, "handoffs": entry.handoffs} for entry in status.ping_pong],
        "clients": [client_view(client) for client in status.clients],
    }


def plan_view(plan: pb.PlanPhaseResponse) -> View:
    return {
        **setting_view(setting_from_pb(plan.setting)),
        "next": phase_name(plan.next).value if plan.next else None,
        "effect": plan.effect,
        "blocked": plan.blocked,
        "gates": [gate_view(gate) for gate in plan.gates],
    }


def entry_view(entry: pb.JournalEntry) -> View:
    return {
        "generation": entry.generation,
        "time": time_of(entry.time),
        "actor": entry.actor,
        "action": entry.action,
        "reason": entry.reason,
        "before": setting_view(setting_from_pb(entry.before)),
        "after": setting_view(setting_from_pb(entry.after)),
        "gates": [gate_view(gate) for gate in entry.gates],
        "overridden": entry.overridden,
        "changes": changes(setting_from_pb(entry.before), setting_from_pb(entry.after)),
    }


def explanation_view(answer: pb.ExplainResponse) -> View:
    return {
        "target": store_name(answer.target),
        "rule": answer.rule,
        "because": answer.because,
        "then": answer.then,
        "bucket": known(answer.bucket),
        "canary_buckets": answer.canary_buckets,
        "setting": setting_view(setting_from_pb(answer.setting)),
        "setting_stale": answer.setting_stale,
        "flags": [flag_view(flag) for flag in answer.flags],
        "rows": [
            {
                "store": store_name(row.store),
                "trouble": row.trouble,
                "exists": row.exists,
                "live": row.live,
                "version": f"{row.version.term}-{row.version.revision}" if row.exists else None,
                "owner": store_name(row.owner),
            }
            for row in answer.rows
        ],
    }


def store_name(number: record_pb2.Store.ValueType) -> str | None:
    """None: no store."""
    store = STORES.get(number)
    return store.value if store else None


def client_view(status: pb.ClientStatus) -> View:
    client = status.client
    return {
        "name": client.name,
        "at": f"store {STORES[status.store]}" if status.store else "router",
        "schema_version": client.schema_version,
        "calls": client.calls,
        "idle_seconds": round(client.idle_seconds, 3),
    }


def counts_view(counts: pb.LedgerCounts) -> View:
    return {name: getattr(counts, name) for name in LEDGER_COUNTS}
