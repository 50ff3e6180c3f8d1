"""The data: audited, copied, in step, equal at both stores, and no write lost. Pure."""

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
    all_of,
    at_most,
    by_age,
    percent,
    share_below,
    time_shown,
)
from services.router.core.measure import ShadowCounts


def audit(evidence: Evidence, limits: Limits) -> Judgement:
    ago = evidence.audit_seconds_ago
    if ago is None:
        return Judgement(INCONCLUSIVE, "A's data was not audited")
    shown = f"an audit ended {time_shown(ago)} ago"
    if evidence.audit_trouble:
        return Judgement(FAIL, f"{shown}: {evidence.audit_trouble}")
    if evidence.audit_records == 0:
        return Judgement(INCONCLUSIVE, f"{shown}: A held no record, so nothing was looked at")
    return by_age(ago, limits.audit_seconds, f"{shown}: {evidence.audit_found}")


def backfill(evidence: Evidence, limits: Limits) -> Judgement:
    ago = evidence.backfill_finished_seconds_ago
    if ago is None:
        return Judgement(FAIL, "no backfill has finished: run baton backfill")
    return Judgement(PASS, f"a backfill finished {ago:.0f} s ago; the feed has carried every change since")


def lag(evidence: Evidence, limits: Limits) -> Judgement:
    if evidence.log_gap:
        return Judgement(INCONCLUSIVE, evidence.log_gap)
    return at_most(evidence.lag_seconds, limits.lag_seconds, "the worse lag", " s")


def gap_alert(evidence: Evidence, limits: Limits) -> str:
    """Why a person must not give a store up now; "" if there is no need to look."""
    return evidence.log_gap


def horizon_alert(evidence: Evidence, limits: Limits) -> str:
    """Why a person must look after a feed before the log drops what it has not read; "" when there is no need."""
    return "; ".join(str(risk) for risk in evidence.risks or () if risk.old)


def parked(evidence: Evidence, limits: Limits) -> Judgement:
    return at_most(evidence.parked, 0, "the number of parked events", "")


def consistent(evidence: Evidence, limits: Limits) -> Judgement:
    """Both: what clients read, sampled, and what the stores have, record by record. The worse verdict."""
    reads = shadow(evidence, limits)
    return all_of({"reads": reads, "stores": _stores(evidence, limits)}, reads)


def _stores(evidence: Evidence, limits: Limits) -> Judgement:
    """All records were compared, so this is no sample: of few ones, too, the share must be below the limit."""
    seen = evidence.compared
    if seen is None:
        return Judgement(Verdict.INCONCLUSIVE, "they were not compared record by record")
    shown = f"{seen.different} of {seen.records} records differed {time_shown(seen.seconds_ago)} ago"
    if seen.different and seen.share >= limits.mismatch_rate:
        return Judgement(Verdict.FAIL, f"{shown}, {seen.left} are not repaired")
    return by_age(seen.seconds_ago, limits.compared_seconds, shown, old=Verdict.INCONCLUSIVE)


def stores_alert(evidence: Evidence, limits: Limits) -> str:
    """Why a person must look at the stores' records now; "" when there is no need."""
    seen = evidence.compared
    if seen is None or (seen.share <= limits.mismatch_alert_rate and not seen.left):
        return ""
    return f"{seen.different} of {seen.records} records differ, {seen.left} are not repaired: baton reconcile"


def shadow(evidence: Evidence, limits: Limits) -> Judgement:
    seen = evidence.shadow
    if seen is None:
        return Judgement(INCONCLUSIVE, "no read was compared", 0, limits.compared_reads)
    bad, told = disagreeing(seen)
    found = share_below(bad, told, limits.mismatch_rate, limits.compared_reads, "compared reads disagree", below=True)
    if shadow_alert(evidence, limits):
        return found._replace(evidence=f"{found.evidence}, above {percent(limits.mismatch_alert_rate)}: look at once")
    return found


def shadow_alert(evidence: Evidence, limits: Limits) -> str:
    """Why a person must look at the compared reads now; "" when there is no need."""
    bad, told = disagreeing(evidence.shadow)
    # Of few reads, one that disagrees is a large share.
    if bad <= limits.mismatch_alert_rate * max(told, 3 / limits.mismatch_alert_rate):
        return ""
    return f"{bad} of {told} compared reads disagree, more than {percent(limits.mismatch_alert_rate)}: baton shadow"


def disagreeing(seen: ShadowCounts | None) -> tuple[int, int]:
    """How many disagree, of how many of which that could be told."""
    if seen is None:
        return 0, 0
    bad = seen.mismatch + seen.missing
    return bad, bad + seen.match + seen.stale


def ledger(evidence: Evidence, limits: Limits) -> Judgement:
    """One lost write is one too many, however few were looked at."""
    counts, least = evidence.ledger, limits.ledger_writes
    if counts is None:
        return Judgement(INCONCLUSIVE, "the routers' ledgers are not known", 0, least)
    shown = f"{counts.lost} of {counts.checked} acknowledged writes are lost"
    if counts.lost:
        return Judgement(FAIL, shown, counts.checked, least)
    if counts.checked < least:
        return Judgement(INCONCLUSIVE, f"{shown}; {least} are needed to tell", counts.checked, least)
    return Judgement(PASS, shown, counts.checked, least)


GATES: Sequence[Gate] = (
    Gate(
        "audit",
        "The old data was audited, and its dirt is gone or accepted.",
        lambda limits: f"no kind of dirt that is not accepted, at most {time_shown(limits.audit_seconds)} ago",
        audit,
        "baton audit: clean the records up through A, or say --accept KIND for what may move as it is",
    ),
    Gate(
        "backfill",
        "Every record of A was copied to B.",
        lambda limits: "a finished backfill",
        backfill,
        "baton backfill",
    ),
    Gate(
        "lag",
        "Both stores are close behind each other.",
        lambda limits: f"at most {plain(limits.lag_seconds)} s",
        lag,
        "baton status: the store whose lag grows; then its feed's trouble, the log, and baton doctor",
    ),
    Gate(
        "parked",
        "Every event could be applied.",
        lambda limits: "0 parked events",
        parked,
        "baton events parked shows each with its reason; baton events retry or drop; baton doctor: refused by the log",
    ),
    Gate(
        "shadow-consistent",
        "Shadow reads agree, and so do the stores' records.",
        lambda limits: (
            f"disagreeing < {percent(limits.mismatch_rate)}, alert > {percent(limits.mismatch_alert_rate)},"
            f" records compared at most {time_shown(limits.compared_seconds)} ago"
        ),
        consistent,
        "baton shadow set PERCENT compares more reads, baton shadow shows what differs; baton reconcile for the stores",
    ),
    Gate(
        "ledger",
        "What clients were told is in the stores.",
        lambda limits: f"0 acknowledged writes lost, of at least {limits.ledger_writes}",
        ledger,
        "baton ledger names each lost write; too few: wait for more writes",
    ),
)
