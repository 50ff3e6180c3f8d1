"""Gates on the end of a migration: A may be removed only if B has every record and a backup of A is kept. Pure."""

from __future__ import annotations

from services.router.core.evidence import Evidence
from services.router.core.gates.gate import FAIL, INCONCLUSIVE, Finding, Gate, by_age, time_shown
from services.router.core.thresholds import Limits, days

BACKUP = "cold-backup"
"""The gate that only `baton retire` opens."""
COMPARISON = "deep-comparison"

DEEP_AGE = days("gate_deep_days", 7, "Days for which a comparison of all rows is valid.")


def deep_comparison(evidence: Evidence, limits: Limits) -> Finding:
    ago, left = evidence.deep_seconds_ago, evidence.deep_left
    if ago is None or left is None:
        return Finding(INCONCLUSIVE, "the stores were not compared from their rows")
    shown = f"a comparison of all rows ended {time_shown(ago)} ago: {left} differ"
    return Finding(FAIL, shown) if left else by_age(ago, limits[DEEP_AGE], shown)


BACKUP_AGE = days("gate_backup_days", 7, "Days for which a cold backup of A is valid, until DEPRECATED.")


def cold_backup(evidence: Evidence, limits: Limits) -> Finding:
    ago = evidence.backup_seconds_ago
    if ago is None:
        return Finding(INCONCLUSIVE, "A has no verified backup")
    return by_age(ago, limits[BACKUP_AGE], f"A was exported to a verified backup {time_shown(ago)} ago")


GATES = (
    Gate(
        name=COMPARISON,
        sentence="Both stores were compared from their rows, and no record differs.",
        requires="0 differences, in a comparison of the last $gate_deep_days",
        verdict=deep_comparison,
        thresholds=(DEEP_AGE,),
        page="stores-differ",
        runbook="baton reconcile --deep; baton certificate lists everything that is still open",
        overridable=False,
    ),
    Gate(
        name=BACKUP,
        sentence="A's records are in a backup that was read back and compared.",
        requires="a verified backup of the last $gate_backup_days",
        verdict=cold_backup,
        thresholds=(BACKUP_AGE,),
        page="last-step",
        runbook="baton retire --backup FILE; it waits until baton certificate is complete",
        overridable=False,
    ),
)
