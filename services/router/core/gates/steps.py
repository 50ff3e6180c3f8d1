"""What the steps before must have done, and what keeps the last phase closed. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from libs.text import plain
from services.router.core.evidence import Evidence, Limits
from services.router.core.gates.gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Gate,
    Judgement,
    Verdict,
    by_age,
    time_shown,
)

SETTLED_LAG_SECONDS = 5.0
"""Lag that steady traffic may cause."""

CLOCKS_APART_SECONDS = 5.0
"""A larger difference between clocks is shown as an alert. Nothing is ordered or expired by them."""


def canary(evidence: Evidence, limits: Limits) -> Judgement:
    percent = evidence.canary_permille / 10
    return Judgement(PASS if percent == 100 else FAIL, f"the canary is at {plain(percent)} %")


def buckets(evidence: Evidence, limits: Limits) -> Judgement:
    if evidence.buckets_at_b is None:
        return Judgement(INCONCLUSIVE, "a store is out of reach")
    done = evidence.buckets_at_b == evidence.buckets
    return Judgement(PASS if done else FAIL, f"{evidence.buckets_at_b} of {evidence.buckets} buckets are at B")


def rehearsal(evidence: Evidence, limits: Limits) -> Judgement:
    ago = evidence.rehearsal_seconds_ago
    if ago is None:
        return Judgement(INCONCLUSIVE, "going back was not rehearsed")
    shown = f"a rehearsal ended {time_shown(ago)} ago"
    if evidence.rehearsal_trouble:
        return Judgement(FAIL, f"{shown}: {evidence.rehearsal_trouble}")
    return by_age(ago, limits.rehearsal_seconds, f"{shown} without trouble")


def a_owns_nothing(evidence: Evidence, limits: Limits) -> Judgement:
    records, absences, entries = evidence.a_owned_records, evidence.a_owned_absences, evidence.a_outbox_entries
    if records is None or absences is None or entries is None:
        return Judgement(INCONCLUSIVE, "A is out of reach")
    # A record that A has just given up may be nowhere but in its outbox.
    verdict = PASS if records == absences == entries == 0 else FAIL
    seen = f"A owns {records} records and the absence of {absences} buckets"
    return Judgement(verdict, f"{seen}, and {entries} of its changes are not in the log")


def no_active_clients(evidence: Evidence, limits: Limits) -> Judgement:
    watched, idle = evidence.clients_watched_seconds, evidence.client_idle_seconds
    if idle is not None and idle < limits.client_seconds:
        return Judgement(Verdict.FAIL, f"{evidence.client_name!r} called A directly {time_shown(idle)} ago")
    if watched is None:
        return Judgement(Verdict.INCONCLUSIVE, "nobody has looked yet who calls A directly")
    if watched < limits.client_seconds:
        return Judgement(Verdict.INCONCLUSIVE, f"none in the {time_shown(watched)} that are known of")
    return Judgement(Verdict.PASS, f"none in {time_shown(limits.client_seconds)}")


def nothing_under_way(evidence: Evidence, limits: Limits) -> Judgement:
    found, lag = list(evidence.under_way or ()), evidence.lag_seconds
    if lag is not None and lag > SETTLED_LAG_SECONDS:
        found.append(f"a feed is {lag:.1f} s behind")
    if found:
        return Judgement(Verdict.FAIL, "; ".join(found))
    if evidence.under_way is None or lag is None:
        return Judgement(Verdict.INCONCLUSIVE, "a store or the control store is out of reach, or a feed stands still")
    return Judgement(Verdict.PASS, "none")


def clock_alert(evidence: Evidence, limits: Limits) -> str:
    """Why a person must look at the clocks; "" if there is no need."""
    apart = evidence.clocks_apart_seconds
    if apart <= CLOCKS_APART_SECONDS:
        return ""
    return f"clocks are {apart:.0f} s apart: shown times and ages are wrong; set them by NTP (baton doctor names them)"


GATES: Sequence[Gate] = (
    Gate(
        "canary-complete",
        "The canary has reached every bucket.",
        lambda limits: "100 %",
        canary,
        "baton canary set 100",
    ),
    Gate(
        "buckets-done",
        "Every bucket is handed over.",
        lambda limits: "all buckets at B",
        buckets,
        "baton status: the handover's note; it goes on by itself as long as both stores serve",
    ),
    Gate(
        "rehearsal",
        "Going back was rehearsed on live buckets.",
        lambda limits: f"without trouble, at most {time_shown(limits.rehearsal_seconds)} ago",
        rehearsal,
        "baton rehearse --buckets 4",
    ),
    Gate(
        "a-owns-nothing",
        "A owns no record, may create none, and holds back no change.",
        lambda limits: "0 records, 0 buckets, 0 changes",
        a_owns_nothing,
        "baton status: wait for the handover and for A's outbox",
        overridable=False,
    ),
    Gate(
        "no-active-clients",
        "No client calls A directly any more.",
        lambda limits: f"none for {time_shown(limits.client_seconds)}",
        no_active_clients,
        "baton status lists them: give each one the router's address; what called before A was watched is not known",
        overridable=False,
    ),
    Gate(
        "nothing-under-way",
        "No job, move, recovery or conflict is open, and both feeds run.",
        lambda limits: f"none, lag at most {SETTLED_LAG_SECONDS:g} s",
        nothing_under_way,
        "baton jobs, baton status, baton conflicts: wait for each or end it",
        overridable=False,
    ),
)
