"""What keeps the last phase closed, and clocks that differ. Pure."""

from __future__ import annotations

from services.router.core.evidence import Evidence, Judgement, Limits, Verdict, time_shown

SETTLED_LAG_SECONDS = 5.0
"""Lag that steady traffic may cause."""

CLOCKS_APART_SECONDS = 5.0
"""A larger difference between clocks is shown as an alert. Nothing is ordered or expired by them."""


def nothing_under_way(evidence: Evidence, limits: Limits) -> Judgement:
    found, lag = list(evidence.under_way or ()), evidence.lag_seconds
    if lag is not None and lag > SETTLED_LAG_SECONDS:
        found.append(f"a feed is {lag:.1f} s behind")
    if found:
        return Judgement(Verdict.FAIL, "; ".join(found))
    if evidence.under_way is None or lag is None:
        return Judgement(Verdict.INCONCLUSIVE, "a store or the control store is out of reach, or a feed stands still")
    return Judgement(Verdict.PASS, "none")


def no_active_clients(evidence: Evidence, limits: Limits) -> Judgement:
    watched, idle = evidence.clients_watched_seconds, evidence.client_idle_seconds
    if idle is not None and idle < limits.client_seconds:
        return Judgement(Verdict.FAIL, f"{evidence.client_name!r} called A directly {time_shown(idle)} ago")
    if watched is None:
        return Judgement(Verdict.INCONCLUSIVE, "nobody has looked yet who calls A directly")
    if watched < limits.client_seconds:
        return Judgement(Verdict.INCONCLUSIVE, f"none in the {time_shown(watched)} that are known of")
    return Judgement(Verdict.PASS, f"none in {time_shown(limits.client_seconds)}")


def clock_alert(evidence: Evidence, limits: Limits) -> str:
    """Why a person must look at the clocks; "" if there is no need."""
    apart = evidence.clocks_apart_seconds
    if apart <= CLOCKS_APART_SECONDS:
        return ""
    return f"clocks are {apart:.0f} s apart: shown times and ages are wrong; set them by NTP (baton doctor names them)"
