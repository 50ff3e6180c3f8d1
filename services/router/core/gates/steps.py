"""Gates on earlier steps, and on anything that still needs A before the last phase. Pure."""

from __future__ import annotations

from libs.text import plain
from services.router.core.evidence import Evidence
from services.router.core.gates.gate import FAIL, INCONCLUSIVE, PASS, Finding, Gate, by_age, time_shown
from services.router.core.thresholds import Limits, days

SETTLED_LAG_SECONDS = 5.0
"""Lag that steady traffic may cause."""


def canary(evidence: Evidence, limits: Limits) -> Finding:
    percent = evidence.canary_permille / 10
    return Finding(PASS if percent == 100 else FAIL, f"the canary is at {plain(percent)} %")


def buckets(evidence: Evidence, limits: Limits) -> Finding:
    if evidence.buckets_at_b is None:
        return Finding(INCONCLUSIVE, "a store is unreachable")
    done = evidence.buckets_at_b == evidence.buckets
    return Finding(PASS if done else FAIL, f"{evidence.buckets_at_b} of {evidence.buckets} buckets are at B")


REHEARSAL_AGE = days("gate_rehearsal_days", 7, "Days for which a rehearsal is valid.")


def rehearsal(evidence: Evidence, limits: Limits) -> Finding:
    ago = evidence.rehearsal_seconds_ago
    if ago is None:
        return Finding(INCONCLUSIVE, "the rollback was not rehearsed")
    shown = f"a rehearsal ended {time_shown(ago)} ago"
    if evidence.rehearsal_failure:
        return Finding(FAIL, f"{shown}: {evidence.rehearsal_failure}")
    return by_age(ago, limits[REHEARSAL_AGE], f"{shown} without a failure")


def a_owns_nothing(evidence: Evidence, limits: Limits) -> Finding:
    records, buckets, changes = evidence.a_owned_records, evidence.a_owned_buckets, evidence.a_outbox_entries
    if records is None or buckets is None or changes is None:
        return Finding(INCONCLUSIVE, "A is unreachable")
    # The release of a record may still wait in A's outbox.
    verdict = PASS if records == buckets == changes == 0 else FAIL
    return Finding(verdict, f"A owns {records} records and {buckets} buckets, and {changes} changes wait in its outbox")


CLIENT_SILENCE = days("gate_client_days", 28, "Days without a direct call to A.")


def no_active_clients(evidence: Evidence, limits: Limits) -> Finding:
    watched, idle = evidence.clients_watched_seconds, evidence.client_idle_seconds
    if idle is not None and idle < limits[CLIENT_SILENCE]:
        return Finding(FAIL, f"{evidence.client_name!r} called A directly {time_shown(idle)} ago")
    if watched is None:
        return Finding(INCONCLUSIVE, "direct calls to A were not observed yet")
    if watched < limits[CLIENT_SILENCE]:
        return Finding(INCONCLUSIVE, f"none in the {time_shown(watched)} observed so far")
    return Finding(PASS, f"none in {time_shown(limits[CLIENT_SILENCE])}")


def nothing_under_way(evidence: Evidence, limits: Limits) -> Finding:
    found, lag = list(evidence.under_way or ()), evidence.lag_seconds
    if lag is not None and lag > SETTLED_LAG_SECONDS:
        found.append(f"a feed is {lag:.1f} s behind")
    if found:
        return Finding(FAIL, "; ".join(found))
    if evidence.under_way is None or lag is None:
        return Finding(INCONCLUSIVE, "a store or the control store is unreachable, or a feed has stopped")
    return Finding(PASS, "none")


GATES = (
    Gate(
        name="canary-complete",
        sentence="The canary has reached every bucket.",
        requires="100 %",
        verdict=canary,
        page="handover",
        runbook="baton canary set 100",
    ),
    Gate(
        name="buckets-done",
        sentence="Every bucket is handed over.",
        requires="all buckets at B",
        verdict=buckets,
        page="handover",
        runbook="baton status: the note of the handover; it continues by itself while both stores serve. A cohort below"
        " 100 % keeps records at A: baton canary cohort list",
    ),
    Gate(
        name="rehearsal",
        sentence="A rollback was rehearsed on live buckets.",
        requires="no failure, in a rehearsal of the last $gate_rehearsal_days",
        verdict=rehearsal,
        thresholds=(REHEARSAL_AGE,),
        page="rehearsal",
        runbook="baton rehearse --buckets 4",
    ),
    Gate(
        name="a-owns-nothing",
        sentence="A owns no record and no bucket, and its outbox is empty.",
        requires="0 records, 0 buckets, 0 changes",
        verdict=a_owns_nothing,
        page="handover",
        runbook="baton status: wait for the handover and for A's outbox",
        overridable=False,
    ),
    Gate(
        name="no-active-clients",
        sentence="No client calls A directly any more.",
        requires="none for $gate_client_days",
        verdict=no_active_clients,
        thresholds=(CLIENT_SILENCE,),
        page="old-clients",
        runbook="baton status lists them: give each one the router's address; earlier direct calls are not recorded",
        overridable=False,
    ),
    Gate(
        name="nothing-under-way",
        sentence="No job, move, recovery or conflict is open, and both feeds run.",
        requires=f"none, lag at most {SETTLED_LAG_SECONDS:g} s",
        verdict=nothing_under_way,
        page="last-step",
        runbook="baton jobs, baton status, baton conflicts: wait for each or end it",
        overridable=False,
    ),
)
