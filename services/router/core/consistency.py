"""Whether the two stores agree: by what clients read, sampled, and by what the stores have, record by record. Pure."""

from __future__ import annotations

from services.router.core.evidence import Evidence, Judgement, Limits, Verdict, all_of, by_age, shadow, time_shown


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
