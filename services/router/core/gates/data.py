"""Gates on the data: it is audited, copied, up to date and equal at both stores, and no write is lost. Pure."""

from __future__ import annotations

from services.router.core.evidence import Evidence
from services.router.core.gates.gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Alert,
    Finding,
    Gate,
    all_of,
    at_most,
    by_age,
    by_share,
    percent_shown,
    time_shown,
)
from services.router.core.measure import ShadowCounts
from services.router.core.thresholds import DAY_SECONDS, Limits, count, days, percent, seconds

AUDIT_AGE = days("gate_audit_days", 7, "Days for which an audit is valid.")


def audit(evidence: Evidence, limits: Limits) -> Finding:
    ago = evidence.audit_seconds_ago
    if ago is None:
        return Finding(INCONCLUSIVE, "A's data was not audited")
    shown = f"an audit ended {time_shown(ago)} ago"
    if evidence.audit_findings:
        return Finding(FAIL, f"{shown}: {evidence.audit_findings}")
    if evidence.audit_records == 0:
        return Finding(INCONCLUSIVE, f"{shown}: A held no record, so it checked none")
    return by_age(ago, limits[AUDIT_AGE], f"{shown}: {evidence.audit_summary}")


def backfill(evidence: Evidence, limits: Limits) -> Finding:
    ago = evidence.backfill_finished_seconds_ago
    if ago is None:
        return Finding(FAIL, "no backfill has finished: run baton backfill")
    return Finding(PASS, f"a backfill finished {ago:.0f} s ago; the feed has carried every change since")


LAG = seconds("gate_lag_seconds", 300, "Seconds that a store may be behind the other.")


def lag(evidence: Evidence, limits: Limits) -> Finding:
    if evidence.log_gap:
        return Finding(INCONCLUSIVE, evidence.log_gap)
    return at_most(evidence.lag_seconds, limits[LAG], "the larger lag", " s")


def gap_warning(evidence: Evidence, limits: Limits) -> str:
    """Records of a replaced log that may be at one store only: neither store may be given up."""
    return evidence.log_gap


def retention_warning(evidence: Evidence, limits: Limits) -> str:
    """Events that the log may drop before a store has read them."""
    return "; ".join(str(risk) for risk in evidence.risks or () if risk.old)


def parked(evidence: Evidence, limits: Limits) -> Finding:
    return at_most(evidence.parked, 0, "the number of parked events", "")


MISMATCHES = percent("gate_mismatch_percent", 0.01, "Percent of the compared reads that may differ; must be below.")
MISMATCHES_ALERT = percent("gate_mismatch_alert_percent", 0.1, "Percent of differing reads above which Baton alerts.")
COMPARED_READS = count("gate_compared_reads", 30_000, "Compared reads that are needed.")
COMPARISON_AGE = seconds(
    "gate_compared_seconds", 3600, "Seconds for which a comparison of all records is valid.", most=DAY_SECONDS
)


def consistent(evidence: Evidence, limits: Limits) -> Finding:
    """The worse verdict of two comparisons: sampled reads of clients, and all records of the stores."""
    reads = _compared_reads(evidence, limits)
    return all_of({"reads": reads, "stores": _compared_stores(evidence, limits)}, reads)


def _compared_reads(evidence: Evidence, limits: Limits) -> Finding:
    seen = evidence.shadow
    if seen is None:
        return Finding(INCONCLUSIVE, "no read was compared", 0, limits[COMPARED_READS])
    bad, compared = mismatches(seen)
    least, noise = limits[COMPARED_READS], noise_share(evidence, limits)
    found = by_share(bad, compared, limits[MISMATCHES] + noise, least, "compared reads disagree", below=True)
    if noise:
        found = found._replace(evidence=f"{found.evidence}, noise floor {percent_shown(noise)}")
    if reads_warning(evidence, limits):
        return found._replace(evidence=f"{found.evidence}, above {percent_shown(limits[MISMATCHES_ALERT])}: an alert")
    return found


def _compared_stores(evidence: Evidence, limits: Limits) -> Finding:
    """Compares the share of differing records with the limit, however few records there are: this is not a sample."""
    seen = evidence.compared
    if seen is None:
        return Finding(INCONCLUSIVE, "they were not compared record by record")
    shown = f"{seen.different} of {seen.records} records differed {time_shown(seen.seconds_ago)} ago"
    if seen.different and seen.share >= limits[MISMATCHES]:
        return Finding(FAIL, f"{shown}, {seen.left} are not repaired")
    return by_age(seen.seconds_ago, limits[COMPARISON_AGE], shown, old=INCONCLUSIVE)


def reads_warning(evidence: Evidence, limits: Limits) -> str:
    bad, compared = mismatches(evidence.shadow)
    rate = limits[MISMATCHES_ALERT] + noise_share(evidence, limits)
    # Among few reads, one that disagrees is a large share: at least four must.
    if bad <= rate * max(compared, 3 / rate):
        return ""
    return f"{bad} of {compared} compared reads disagree, more than {percent_shown(rate)}: baton shadow show"


def stores_warning(evidence: Evidence, limits: Limits) -> str:
    seen = evidence.compared
    if seen is None or (seen.share <= limits[MISMATCHES_ALERT] and not seen.left):
        return ""
    return f"{seen.different} of {seen.records} records differ, {seen.left} are not repaired: baton reconcile"


def noise_share(evidence: Evidence, limits: Limits) -> float:
    """The share of reads that differ without a cause in the migration, as far as the gate allows it: a contract with
    more noise than the alert's limit hides differences, and must ignore the field."""
    if evidence.noise is None:
        return 0.0
    return min(evidence.noise.share(limits[COMPARED_READS]), limits[MISMATCHES_ALERT])


def mismatches(seen: ShadowCounts | None) -> tuple[int, int]:
    """Returns how many reads disagree, and how many were compared with a result."""
    if seen is None:
        return 0, 0
    bad = seen.mismatch + seen.missing
    return bad, bad + seen.match + seen.allowed + seen.stale


LEDGER_WRITES = count("gate_ledger_writes", 300, "Checked acknowledged writes that are needed.")


def ledger(evidence: Evidence, limits: Limits) -> Finding:
    """FAIL for one write that is lost or done twice, however few writes were checked."""
    counts, least = evidence.ledger, limits[LEDGER_WRITES]
    if counts is None:
        return Finding(INCONCLUSIVE, "the routers' ledgers are unknown", 0, least)
    shown = f"{counts.lost} of {counts.checked} acknowledged writes are lost"
    if counts.doubled:
        shown = f"{shown}, {counts.doubled} requests took effect twice"
    if counts.lost or counts.doubled:
        return Finding(FAIL, shown, counts.checked, least)
    if counts.checked < least:
        return Finding(INCONCLUSIVE, f"{shown}; {least} are needed", counts.checked, least)
    return Finding(PASS, shown, counts.checked, least)


GATES = (
    Gate(
        name="audit",
        sentence="The old data was audited, and every finding is resolved or accepted.",
        requires="no finding that is not accepted, in an audit of the last $gate_audit_days",
        verdict=audit,
        thresholds=(AUDIT_AGE,),
        page="audit",
        runbook="baton audit: correct the records through A, or pass --accept KIND for records that may move unchanged",
    ),
    Gate(
        name="backfill",
        sentence="Every record of A was copied to B.",
        requires="a finished backfill",
        verdict=backfill,
        page="backfill",
        runbook="baton backfill",
    ),
    Gate(
        name="lag",
        sentence="Each store has almost every change of the other.",
        requires="at most $gate_lag_seconds",
        verdict=lag,
        thresholds=(LAG,),
        page="lag",
        runbook="baton status: the store whose lag grows; then the error of its feed, the log, and baton doctor",
        warnings=(retention_warning, gap_warning),
        alerts=(
            Alert(
                "BatonLag",
                "page",
                "max(baton_lag_seconds) > $gate_lag_seconds",
                "A store is {{ $value | humanizeDuration }} behind the other.",
                "baton doctor: the feed with an error, the log, parked events. No write is lost; replicas are old.",
                lasting="1m",
            ),
            Alert(
                "BatonLagUnknown",
                "ticket",
                "absent(baton_lag_seconds)",
                "No router knows how far the stores are behind each other.",
                "baton doctor: a store, the log or every router is unreachable.",
                lasting="5m",
            ),
            Alert(
                "BatonLogHorizon",
                "page",
                "max by (store) (baton_log_risk_events) > 0",
                "The log may soon drop {{ $value }} events that {{ $labels.store }} has not read.",
                "baton doctor: restart this store's feed, or keep events longer (retention.ms, retention.bytes).",
            ),
        ),
    ),
    Gate(
        name="parked",
        sentence="Every event could be applied.",
        requires="0 parked events",
        verdict=parked,
        page="parked-events",
        runbook="baton events parked lists them with reasons; baton events retry or drop; baton doctor: log refusals",
        alerts=(
            Alert(
                "BatonParked",
                "page",
                "max(baton_parked_events) > 0",
                "{{ $value }} events are parked at a store, or were refused by the log and set aside.",
                "baton events parked lists the parked ones, baton doctor those that the log refuses.",
                lasting="1m",
            ),
            Alert(
                "BatonUnauthenticated",
                "page",
                "max(baton_unauthenticated_events) > 0",
                "{{ $value }} events in the log have no right authentication code. None was applied.",
                "baton doctor: keys that differ between processes; else somebody else writes to the topic: see"
                " docs/security.md.",
            ),
        ),
    ),
    Gate(
        name="shadow-consistent",
        sentence="Compared reads agree, and so do the stores' records.",
        requires="disagreeing < $gate_mismatch_percent above the noise floor, alert > $gate_mismatch_alert_percent,"
        " all records compared in the last $gate_compared_seconds",
        verdict=consistent,
        thresholds=(MISMATCHES, MISMATCHES_ALERT, COMPARED_READS, COMPARISON_AGE),
        page="reads-differ",
        runbook="baton shadow set PERCENT compares more reads, baton shadow show lists differences; for the stores:"
        " baton reconcile",
        warnings=(reads_warning, stores_warning),
        alerts=(
            Alert(
                "BatonInconsistent",
                "page",
                "max(baton_inconsistency_share) >= $gate_mismatch_percent"
                " and max(baton_compared_reads) >= $gate_compared_reads",
                "{{ $value | humanizePercentage }} of the compared reads disagree.",
                "baton shadow show lists which fields differ; if you cannot explain it: baton rollback OFF.",
            ),
            Alert(
                "BatonDiverged",
                "page",
                "max(baton_reconcile_share) > $gate_mismatch_alert_percent",
                "{{ $value | humanizePercentage }} of the records differed when the stores were compared.",
                "baton reconcile lists them and the repairs; then baton doctor: a feed that has lost events.",
            ),
            Alert(
                "BatonDifferencesLeft",
                "ticket",
                "max(baton_reconcile_left) > 0",
                "{{ $value }} records differ and were not repaired.",
                "baton reconcile lists them: an operator decides on CORRUPT, baton recover repairs EXTRA and OWNER.",
            ),
        ),
    ),
    Gate(
        name="ledger",
        sentence="Every acknowledged write is in its store.",
        requires="0 acknowledged writes lost or done twice, of at least $gate_ledger_writes",
        verdict=ledger,
        thresholds=(LEDGER_WRITES,),
        page="lost-write",
        runbook="baton ledger lists each lost write; too few: wait for more writes",
        alerts=(
            Alert(
                "BatonWriteLost",
                "page",
                "max(baton_ledger_lost) > 0",
                "{{ $value }} acknowledged writes are not in the store that owns them.",
                "baton ledger lists them, at each router. A store may have been restored to an older state: examine it"
                " before it serves on.",
            ),
        ),
    ),
)
