"""What is known, what is wanted, and what the one says of the other. Pure.

Without evidence there is no verdict, and nor are a few calls evidence: that a share is at most p is shown, with 95 %
confidence, by 3 / p calls without a single fault (the rule of three); the least numbers of samples are made so. More
faults than so many calls may have are a FAIL, however few calls there were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from libs.telemetry.latency import Bounds, Histogram, bounds
from libs.text import plain
from services.router.core.horizon import Risk
from services.router.core.ledger import LedgerCounts
from services.router.core.measure import Counts, Parity, ShadowCounts
from services.router.core.reconcile import Compared


class Verdict(Enum):
    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds, and how much evidence is needed. Rates are shares of 1."""

    lag_seconds: float = 300.0
    mismatch_rate: float = 0.0001
    """Must be below."""
    mismatch_alert_rate: float = 0.001
    """Above it a person is called."""
    compared_reads: int = 30_000
    error_rate: float = 0.005
    """Must be below."""
    error_calls: int = 600
    golden_error_rate: float = 0.001
    """At most."""
    golden_calls: int = 3000
    lock_seconds: float = 0.05
    write_delta_seconds: float = 0.1
    """Must be below."""
    latency_margin: float = 0.1
    """By how much of A's P99 B's may be above it and count as equal: no number of calls shows that two are the same."""
    latency_calls: int = 300
    """Of each store, of one operation. With fewer than 299 there is no upper bound of P99."""
    ledger_writes: int = 300
    """Acknowledged writes that were held against the stores."""
    compared_seconds: float = 3600.0
    """How old a comparison of the stores may be."""
    rehearsal_seconds: float = 7 * 86400.0
    audit_seconds: float = 7 * 86400.0
    client_seconds: float = 28 * 86400.0
    """How long nobody must have called A directly."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known now. None: not known."""

    audit_seconds_ago: float | None = None
    """Since the last one ended, below 0 if dated in the future; None: there was none."""
    audit_records: int | None = None
    """How many records it looked at."""
    audit_found: str = ""
    """What it found, in words."""
    audit_trouble: str = ""
    """What of that nobody has accepted or may accept; "" when there is nothing of it."""
    backfill_finished_seconds_ago: float | None = None
    lag_seconds: float | None = None
    """The worse one of the two feeds."""
    log_gap: str = ""
    """Why records of a former log may be at one store only; "" if they are not."""
    parked: int | None = None
    """Events that could not be applied, at both stores."""
    risks: tuple[Risk, ...] | None = None
    """By store: events that it has not read and that the log may soon drop."""
    canary_permille: int = 0
    buckets_at_b: int | None = None
    """Buckets of which A owns neither a row nor the absence."""
    buckets: int = 1024
    a_owned_records: int | None = None
    a_owned_absences: int | None = None
    a_outbox_entries: int | None = None
    """Changes of A that are not in the log yet."""
    b_calls: Counts | None = None
    """Of the last minutes, over all routers."""
    latencies: tuple[Parity, ...] | None = None
    """By operation, over the minutes of the last hour in which both stores served it, over all routers."""
    shadow: ShadowCounts | None = None
    """Since the comparison was set, over all routers."""
    compared: Compared | None = None
    """The stores themselves, record by record; None: they never were."""
    turn_waits: Histogram | None = None
    """How long writes at B have waited for their turn in the last minutes, over all its processes that tell."""
    ledger: LedgerCounts | None = None
    """Over all routers."""
    rehearsal_seconds_ago: float | None = None
    """Since the last one ended, below 0 if dated in the future; None: there was none."""
    rehearsal_trouble: str = ""
    """What went wrong in it; "" when nothing did."""
    clients_watched_seconds: float | None = None
    """For how long it is known who calls A directly."""
    client_idle_seconds: float | None = None
    """Since the last direct call; None: there was none in that time."""
    client_name: str = ""
    """Whose that was."""
    clocks_apart_seconds: float = 0.0
    """The largest difference that was seen between this router's clock, the stores' clocks, and times in the log."""
    under_way: tuple[str, ...] | None = None
    """Jobs, moves, recoveries and conflicts that are open."""


AHEAD_SECONDS = 5.0
"""By how much evidence may be dated ahead of this router's clock, since routers' clocks differ a little."""


class Judgement(NamedTuple):
    verdict: Verdict
    evidence: str
    samples: int = 0
    least_samples: int = 0


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
    return _at_most(evidence.lag_seconds, limits.lag_seconds, "the worse lag", " s")


def gap_alert(evidence: Evidence, limits: Limits) -> str:
    """Why a person must not give a store up now; "" if there is no need to look."""
    return evidence.log_gap


def horizon_alert(evidence: Evidence, limits: Limits) -> str:
    """Why a person must look after a feed before the log drops what it has not read; "" when there is no need."""
    return "; ".join(str(risk) for risk in evidence.risks or () if risk.old)


def parked(evidence: Evidence, limits: Limits) -> Judgement:
    return _at_most(evidence.parked, 0, "the number of parked events", "")


def canary(evidence: Evidence, limits: Limits) -> Judgement:
    percent = evidence.canary_permille / 10
    return Judgement(PASS if percent == 100 else FAIL, f"the canary is at {plain(percent)} %")


def buckets(evidence: Evidence, limits: Limits) -> Judgement:
    if evidence.buckets_at_b is None:
        return Judgement(INCONCLUSIVE, "a store is out of reach")
    done = evidence.buckets_at_b == evidence.buckets
    return Judgement(PASS if done else FAIL, f"{evidence.buckets_at_b} of {evidence.buckets} buckets are at B")


def a_owns_nothing(evidence: Evidence, limits: Limits) -> Judgement:
    records, absences, entries = evidence.a_owned_records, evidence.a_owned_absences, evidence.a_outbox_entries
    if records is None or absences is None or entries is None:
        return Judgement(INCONCLUSIVE, "A is out of reach")
    # A record that A has just given up may be nowhere but in its outbox.
    verdict = PASS if records == absences == entries == 0 else FAIL
    seen = f"A owns {records} records and the absence of {absences} buckets"
    return Judgement(verdict, f"{seen}, and {entries} of its changes are not in the log")


def shadow(evidence: Evidence, limits: Limits) -> Judgement:
    seen = evidence.shadow
    if seen is None:
        return Judgement(INCONCLUSIVE, "no read was compared", 0, limits.compared_reads)
    bad, told = disagreeing(seen)
    found = _share(bad, told, limits.mismatch_rate, limits.compared_reads, "compared reads disagree", below=True)
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


def error_rate(evidence: Evidence, limits: Limits) -> Judgement:
    return _faults(evidence, limits.error_rate, limits.error_calls, below=True)


def latency_parity(evidence: Evidence, limits: Limits) -> Judgement:
    """FAIL when an operation is shown to be slower at B. PASS when every operation that both stores have served often
    enough is shown not to be, and at least one read and one write are among them.

    An operation is shown to be slower when B's lower bound is above A's upper one, and not to be when B's upper bound
    is at most A's lower one and the margin.
    """
    least = limits.latency_calls
    if evidence.latencies is None:
        return Judgement(INCONCLUSIVE, "the routers' measurements are not known", 0, least)
    verdicts: list[Verdict] = []
    shown: list[str] = []
    kinds: set[bool] = set()
    for parity, a, b in _comparable(evidence, limits):
        verdict = _slower(a, b, limits.latency_margin)
        verdicts.append(verdict)
        kinds.add(parity.is_read)
        shown.append(f"{parity.operation} {verdict.value}: B {_range(b)}, A {_range(a)}")
    samples = _most_samples(evidence)
    if FAIL in verdicts:
        return Judgement(FAIL, "; ".join(shown), samples, least)
    if INCONCLUSIVE in verdicts:
        return Judgement(INCONCLUSIVE, "; ".join([*shown, "more calls tell more"]), samples, least)
    if len(kinds) < 2:
        lacking = "reads and writes" if not kinds else "writes" if True in kinds else "reads"
        return Judgement(INCONCLUSIVE, "; ".join([*shown, _lacking(lacking, least)]), samples, least)
    return Judgement(PASS, "; ".join(shown), samples, least)


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


def rehearsal(evidence: Evidence, limits: Limits) -> Judgement:
    ago = evidence.rehearsal_seconds_ago
    if ago is None:
        return Judgement(INCONCLUSIVE, "going back was not rehearsed")
    shown = f"a rehearsal ended {time_shown(ago)} ago"
    if evidence.rehearsal_trouble:
        return Judgement(FAIL, f"{shown}: {evidence.rehearsal_trouble}")
    return by_age(ago, limits.rehearsal_seconds, f"{shown} without trouble")


def golden_metrics(evidence: Evidence, limits: Limits) -> Judgement:
    """All of them: the worst verdict.

    Errors: server faults of B's calls, over all routers, in the last minutes. Locks: P99 of the time that a write waits
    for its turn at B; most wait for nobody. Lag: the worse feed's, as the gate of that name. Delta: by how much P99 of
    one kind of write is higher at B than at A, in the same minutes; there is no call that writes to both stores, so
    this is what a client feels of the other store.
    """
    errors = _faults(evidence, limits.golden_error_rate, limits.golden_calls, below=False)
    parts = {
        "errors": errors,
        "locks": _lock(evidence, limits),
        "lag": lag(evidence, limits),
        "delta": _write_delta(evidence, limits),
    }
    return all_of(parts, errors)


def all_of(parts: Mapping[str, Judgement], counted: Judgement) -> Judgement:
    """The worst verdict; samples are those of one part."""
    verdict = next((v for v in (FAIL, INCONCLUSIVE) if any(part.verdict is v for part in parts.values())), PASS)
    shown = "; ".join(f"{name} {part.verdict.value}: {part.evidence}" for name, part in parts.items())
    return Judgement(verdict, shown, counted.samples, counted.least_samples)


def by_age(ago: float, most: float, shown: str, old: Verdict = FAIL) -> Judgement:
    """Evidence that is good until it is too old. If it is dated in the future, a clock was wrong: then its age is
    unknown, and it must not stay fresh until that date."""
    if ago < -AHEAD_SECONDS:
        return Judgement(INCONCLUSIVE, f"{shown}; its date is {time_shown(-ago)} ahead of this router's clock")
    return Judgement(PASS if ago <= most else old, shown)


def time_shown(seconds: float) -> str:
    """0 s for a negative time."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def percent(share: float) -> str:
    return f"{plain(100 * share)} %"


def _at_most(value: float | None, limit: float, what: str, unit: str) -> Judgement:
    if value is None:
        return Judgement(INCONCLUSIVE, f"{what} is not known")
    return Judgement(PASS if value <= limit else FAIL, f"{what} is {plain(value, decimals=3)}{unit}")


def _share(bad: int, samples: int, limit: float, least: int, what: str, *, below: bool) -> Judgement:
    """`below`: the share must be below the limit; else it may be as much."""
    shown = f"{bad} of {samples} {what} ({percent(bad / samples if samples else 0.0)})"
    # Against the rounding of products such as 0.0001 * 30000.
    excess = round(bad - limit * max(samples, least), 6)
    if excess > 0 or (below and bad and excess == 0):
        return Judgement(FAIL, shown, samples, least)
    if samples < least:
        return Judgement(INCONCLUSIVE, f"{shown}; {least} are needed to tell", samples, least)
    return Judgement(PASS, shown, samples, least)


def _faults(evidence: Evidence, limit: float, least: int, *, below: bool) -> Judgement:
    calls = evidence.b_calls
    if calls is None:
        return Judgement(INCONCLUSIVE, "the routers' counts are not known", 0, least)
    return _share(calls.faults, calls.calls, limit, least, "calls of B failed by its fault", below=below)


def disagreeing(seen: ShadowCounts | None) -> tuple[int, int]:
    """How many disagree, of how many of which that could be told."""
    if seen is None:
        return 0, 0
    bad = seen.mismatch + seen.missing
    return bad, bad + seen.match + seen.stale


def _comparable(evidence: Evidence, limits: Limits) -> list[tuple[Parity, Bounds, Bounds]]:
    """Operations that both stores have served often enough, with the bounds of P99 at A and at B."""
    found = [(parity, bounds(parity.a), bounds(parity.b)) for parity in evidence.latencies or ()]
    return [(p, a, b) for p, a, b in found if min(a.samples, b.samples) >= limits.latency_calls]


def _most_samples(evidence: Evidence) -> int:
    return max((min(p.a.total(), p.b.total()) for p in evidence.latencies or ()), default=0)


def _slower(a: Bounds, b: Bounds, margin: float) -> Verdict:
    if a.lower is None or a.upper is None or b.lower is None or b.upper is None:
        return INCONCLUSIVE
    if b.lower > a.upper:
        return FAIL
    return PASS if b.upper <= a.lower * (1 + margin) else INCONCLUSIVE


def _range(found: Bounds) -> str:
    lower, upper = ("?" if bound is None else f"{plain(1000 * bound)}" for bound in (found.lower, found.upper))
    return f"{lower} to {upper} ms ({found.samples} calls)"


def _lacking(what: str, least: int) -> str:
    return f"both stores must have served {least} {what} of one operation in the same minutes"


def _lock(evidence: Evidence, limits: Limits) -> Judgement:
    if not evidence.turn_waits:
        return Judgement(INCONCLUSIVE, "B has not told how long writes wait for their turn")
    found = bounds(evidence.turn_waits)
    shown = f"P99 of a write's wait for its turn at B is {_range(found)}"
    if found.lower is not None and found.lower > limits.lock_seconds:
        return Judgement(FAIL, shown)
    if found.upper is None or found.upper > limits.lock_seconds:
        return Judgement(INCONCLUSIVE, f"{shown}; more writes tell more")
    return Judgement(PASS, shown)


def write_deltas(evidence: Evidence, limits: Limits) -> dict[str, tuple[float, float]]:
    """By how many seconds P99 of each write is higher at B than at A, at least and at most."""
    return {
        parity.operation: (b.lower - a.upper, b.upper - a.lower)
        for parity, a, b in _comparable(evidence, limits)
        if not parity.is_read and a.lower is not None and a.upper is not None
        if b.lower is not None and b.upper is not None
    }


def _write_delta(evidence: Evidence, limits: Limits) -> Judgement:
    deltas = write_deltas(evidence, limits)
    if not deltas:
        return Judgement(INCONCLUSIVE, _lacking("writes", limits.latency_calls))
    least, most = (max(parts) for parts in zip(*deltas.values(), strict=True))
    shown = f"P99 of writes at B is {plain(1000 * least)} to {plain(1000 * most)} ms above A's"
    if least >= limits.write_delta_seconds:
        return Judgement(FAIL, shown)
    return Judgement(PASS if most < limits.write_delta_seconds else INCONCLUSIVE, shown)
