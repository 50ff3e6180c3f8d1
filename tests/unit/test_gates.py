"""Each gate can pass, fail and, where its evidence can be missing, be inconclusive."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from libs.telemetry.latency import bucket_of_seconds
from services.router.core.differences import Compared
from services.router.core.evidence import Decided
from services.router.core.gates import GATES, Evidence, Limits, Verdict, check, not_overridable, worst
from services.router.core.gates.data import reads_warning, stores_warning
from services.router.core.gates.service import ERRORS
from services.router.core.measure import Counts, Parity, ShadowCounts
from services.router.core.noise import NoiseFloor
from services.router.core.write_ledger import LedgerCounts

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE

NOTHING_KNOWN = Evidence()

DAY = 86400.0


def parity(operation: str, a_seconds: float, b_seconds: float, calls: int = 300) -> Parity:
    """Every call took that long."""
    is_read = operation in ("get", "list")
    a, b = (Counter({bucket_of_seconds(seconds): calls}) for seconds in (a_seconds, b_seconds))
    return Parity(operation, is_read, a, b)


def latencies(*parities: Parity) -> Evidence:
    return Evidence(latencies=parities)


def served(operation: str, at_a: int, at_b: int) -> Parity:
    """Alike, so many calls at each store."""
    a, b = (Counter({bucket_of_seconds(0.002): calls}) for calls in (at_a, at_b))
    return Parity(operation, operation == "get", a, b)


def spread(operation: str, slower: float = 1.0) -> Parity:
    """400 calls of each store, so widely spread that the bounds of P99 are far apart."""
    a, b = (Counter(bucket_of_seconds(0.001 * times * 1.03**n) for n in range(400)) for times in (1.0, slower))
    return Parity(operation, operation == "get", a, b)


def doubtful(operation: str) -> Parity:
    """P99 at B may be less than the limit above A's, or more."""
    a = Counter({bucket_of_seconds(0.003): 300})
    b = Counter({bucket_of_seconds(0.003): 297, bucket_of_seconds(0.2): 3})
    return Parity(operation, False, a, b)


def waits(*seconds: float, writes: int = 300) -> Counter[int]:
    """So many writes of each kind."""
    return Counter({bucket_of_seconds(one): writes for one in seconds})


GOLDEN = Evidence(
    b_calls=Counts(3000, 3), lag_seconds=1.0, lock_waits=waits(0.0, 0.047), latencies=(parity("update", 0.003, 0.05),)
)

AGREEING = Evidence(shadow=ShadowCounts(30_500, 28_000, 2_000, 1, 1, 498), compared=Compared(3600.0, 100_000, 9, 0))

NOISY = replace(AGREEING, shadow=ShadowCounts(30_000, 29_995, 0, 5))
MUCH_NOISE = replace(AGREEING, noise=NoiseFloor(7, 20_000, 40_000))
"""More than the limit of the alert, which is 0.1 %."""

CASES = [
    ("audit", Evidence(audit_seconds_ago=7 * DAY, audit_records=7), PASS),
    ("audit", Evidence(audit_seconds_ago=7 * DAY + 1, audit_records=7), FAIL),
    ("audit", Evidence(audit_seconds_ago=1.0, audit_records=7, audit_findings="2 records are not valid"), FAIL),
    ("audit", Evidence(audit_seconds_ago=1.0, audit_records=0), INCONCLUSIVE),
    ("lag", Evidence(lag_seconds=2.9273e-05), PASS),
    ("backfill", Evidence(backfill_finished_seconds_ago=0.0), PASS),
    ("backfill", NOTHING_KNOWN, FAIL),
    ("lag", Evidence(lag_seconds=300.0), PASS),
    ("lag", Evidence(lag_seconds=300.1), FAIL),
    ("lag", NOTHING_KNOWN, INCONCLUSIVE),
    ("nothing-under-way", Evidence(under_way=(), lag_seconds=5.0), PASS),
    ("nothing-under-way", Evidence(under_way=(), lag_seconds=5.1), FAIL),
    ("nothing-under-way", Evidence(under_way=("job recover-1 is RUNNING",), lag_seconds=0.0), FAIL),
    ("nothing-under-way", Evidence(under_way=("job recover-1 is RUNNING",)), FAIL),
    ("nothing-under-way", Evidence(under_way=()), INCONCLUSIVE),
    ("nothing-under-way", Evidence(lag_seconds=0.0), INCONCLUSIVE),
    ("parked", Evidence(parked=0), PASS),
    ("parked", Evidence(parked=1), FAIL),
    ("parked", NOTHING_KNOWN, INCONCLUSIVE),
    ("canary-complete", Evidence(canary_permille=1000), PASS),
    ("canary-complete", Evidence(canary_permille=999), FAIL),
    ("buckets-done", Evidence(buckets_at_b=1024), PASS),
    ("buckets-done", Evidence(buckets_at_b=1023), FAIL),
    ("buckets-done", NOTHING_KNOWN, INCONCLUSIVE),
    ("a-owns-nothing", Evidence(a_owned_records=0, a_owned_buckets=0, a_outbox_entries=0), PASS),
    ("a-owns-nothing", Evidence(a_owned_records=1, a_owned_buckets=0, a_outbox_entries=0), FAIL),
    ("a-owns-nothing", Evidence(a_owned_records=0, a_owned_buckets=1, a_outbox_entries=0), FAIL),
    ("a-owns-nothing", Evidence(a_owned_records=0, a_owned_buckets=0, a_outbox_entries=1), FAIL),
    ("a-owns-nothing", Evidence(a_owned_records=0, a_outbox_entries=0), INCONCLUSIVE),
    ("a-owns-nothing", Evidence(a_owned_buckets=0, a_outbox_entries=0), INCONCLUSIVE),
    ("a-owns-nothing", Evidence(a_owned_records=0, a_owned_buckets=0), INCONCLUSIVE),
    ("shadow-consistent", AGREEING, PASS),
    ("shadow-consistent", replace(AGREEING, shadow=ShadowCounts(30_000, 29_997, 0, 3)), FAIL),
    ("shadow-consistent", replace(AGREEING, shadow=ShadowCounts(30_000, 29_997, 0, 0, 3)), FAIL),
    ("shadow-consistent", replace(AGREEING, shadow=ShadowCounts(100, 96, 0, 4)), FAIL),
    ("shadow-consistent", replace(AGREEING, shadow=ShadowCounts(29_999, 29_999)), INCONCLUSIVE),
    ("shadow-consistent", replace(AGREEING, shadow=ShadowCounts(30_000, 10_000, allowed=20_000)), PASS),
    ("shadow-consistent", replace(AGREEING, shadow=ShadowCounts(40_000, 20_000, error=20_000)), INCONCLUSIVE),
    ("shadow-consistent", replace(NOISY, noise=NoiseFloor(7, 3, 30_000)), PASS),
    ("shadow-consistent", replace(NOISY, noise=NoiseFloor(7, 2, 30_000)), FAIL),
    ("shadow-consistent", replace(NOISY, noise=NoiseFloor(7, 3, 29_999)), FAIL),
    ("shadow-consistent", replace(NOISY, noise=None), FAIL),
    ("shadow-consistent", replace(MUCH_NOISE, shadow=ShadowCounts(30_000, 29_968, 0, 32)), PASS),
    ("shadow-consistent", replace(MUCH_NOISE, shadow=ShadowCounts(30_000, 29_967, 0, 33)), FAIL),
    ("shadow-consistent", replace(AGREEING, compared=None), INCONCLUSIVE),
    ("shadow-consistent", replace(AGREEING, compared=Compared(3601.0, 100_000, 0, 0)), INCONCLUSIVE),
    ("shadow-consistent", replace(AGREEING, compared=Compared(1.0, 100_000, 10, 0)), FAIL),
    ("shadow-consistent", replace(AGREEING, compared=Compared(1.0, 10, 1, 0)), FAIL),
    ("shadow-consistent", replace(AGREEING, compared=Compared(1.0, 0, 0, 0)), PASS),
    ("shadow-consistent", NOTHING_KNOWN, INCONCLUSIVE),
    ("error-rate", Evidence(b_calls=Counts(600, 2)), PASS),
    ("error-rate", Evidence(b_calls=Counts(600, 3)), FAIL),
    ("error-rate", Evidence(b_calls=Counts(10, 4)), FAIL),
    ("error-rate", Evidence(b_calls=Counts(599, 0)), INCONCLUSIVE),
    ("error-rate", NOTHING_KNOWN, INCONCLUSIVE),
    ("latency-parity", latencies(parity("get", 0.002, 0.002), parity("update", 0.004, 0.002)), PASS),
    ("latency-parity", latencies(parity("get", 0.002, 0.002), parity("update", 0.002, 0.004)), FAIL),
    ("latency-parity", latencies(parity("get", 0.002, 0.001), parity("update", 0.002, 0.001, 299)), INCONCLUSIVE),
    ("latency-parity", latencies(parity("get", 0.002, 0.001), parity("list", 0.002, 0.001)), INCONCLUSIVE),
    ("latency-parity", latencies(spread("get"), spread("update")), INCONCLUSIVE),
    ("latency-parity", latencies(parity("get", 0.002, 0.002), spread("update")), INCONCLUSIVE),
    ("latency-parity", latencies(parity("get", 0.002, 0.002), spread("update", slower=1.1)), INCONCLUSIVE),
    ("latency-parity", latencies(parity("get", 0.002, 0.004), spread("update")), FAIL),
    ("latency-parity", latencies(parity("get", 0.002, 0.002), served("update", 300, 299)), INCONCLUSIVE),
    ("latency-parity", latencies(), INCONCLUSIVE),
    ("rehearsal", Evidence(rehearsal_seconds_ago=7 * DAY), PASS),
    ("rehearsal", Evidence(rehearsal_seconds_ago=7 * DAY + 1), FAIL),
    ("rehearsal", Evidence(rehearsal_seconds_ago=1.0, rehearsal_failure="a record was left at B"), FAIL),
    ("rehearsal", NOTHING_KNOWN, INCONCLUSIVE),
    ("rehearsal", Evidence(rehearsal_seconds_ago=-3 * DAY), INCONCLUSIVE),
    ("rehearsal", Evidence(rehearsal_seconds_ago=-3 * DAY, rehearsal_failure="a record was left at B"), FAIL),
    ("rehearsal", Evidence(rehearsal_seconds_ago=-5.0), PASS),
    ("audit", Evidence(audit_seconds_ago=-5.1, audit_records=7), INCONCLUSIVE),
    ("audit", Evidence(audit_seconds_ago=-5.0, audit_records=7), PASS),
    ("shadow-consistent", replace(AGREEING, compared=Compared(-6.0, 100_000, 0, 0)), INCONCLUSIVE),
    ("ledger", Evidence(ledger=LedgerCounts(400, 300, 40, 50, 10)), PASS),
    ("ledger", Evidence(ledger=LedgerCounts(400, 299, 40, 50, 11)), INCONCLUSIVE),
    ("ledger", Evidence(ledger=LedgerCounts(2, 1, 0, 0, 1, lost=1)), FAIL),
    ("ledger", NOTHING_KNOWN, INCONCLUSIVE),
    ("golden-metrics", GOLDEN, PASS),
    ("golden-metrics", replace(GOLDEN, b_calls=Counts(3000, 4)), FAIL),
    ("golden-metrics", replace(GOLDEN, lag_seconds=301.0), FAIL),
    ("golden-metrics", replace(GOLDEN, lock_waits=waits(0.0, 0.06)), FAIL),
    ("golden-metrics", replace(GOLDEN, lock_waits=waits(0.0, writes=298)), INCONCLUSIVE),
    ("golden-metrics", replace(GOLDEN, lock_waits=waits(0.0, 0.05)), INCONCLUSIVE),
    ("golden-metrics", replace(GOLDEN, lock_waits=Counter({0: 30_000}) + waits(0.06, writes=100)), PASS),
    ("golden-metrics", replace(GOLDEN, latencies=(parity("update", 0.003, 0.2),)), FAIL),
    ("golden-metrics", replace(GOLDEN, latencies=(parity("create", 0.003, 0.003), parity("update", 0.003, 0.2))), FAIL),
    ("golden-metrics", replace(GOLDEN, latencies=(doubtful("update"),)), INCONCLUSIVE),
    ("golden-metrics", replace(GOLDEN, b_calls=None, lag_seconds=301.0), FAIL),
    ("golden-metrics", replace(GOLDEN, b_calls=Counts(2999, 0)), INCONCLUSIVE),
    ("golden-metrics", replace(GOLDEN, lag_seconds=None), INCONCLUSIVE),
    ("golden-metrics", replace(GOLDEN, lock_waits=None), INCONCLUSIVE),
    ("golden-metrics", replace(GOLDEN, latencies=(parity("get", 0.003, 0.2),)), INCONCLUSIVE),
    ("golden-metrics", replace(GOLDEN, latencies=()), INCONCLUSIVE),
    ("audit", NOTHING_KNOWN, INCONCLUSIVE),
    ("no-active-clients", Evidence(clients_watched_seconds=28 * DAY), PASS),
    ("no-active-clients", Evidence(clients_watched_seconds=60 * DAY, client_idle_seconds=28 * DAY), PASS),
    ("no-active-clients", Evidence(clients_watched_seconds=60 * DAY, client_idle_seconds=28 * DAY - 1), FAIL),
    ("no-active-clients", Evidence(client_idle_seconds=1.0), FAIL),
    ("no-active-clients", Evidence(clients_watched_seconds=28 * DAY - 1), INCONCLUSIVE),
    ("no-active-clients", NOTHING_KNOWN, INCONCLUSIVE),
    ("ledger", Evidence(ledger=LedgerCounts(400, 300, doubled=1)), FAIL),
    ("deep-comparison", Evidence(deep_seconds_ago=7 * DAY, deep_left=0), PASS),
    ("deep-comparison", Evidence(deep_seconds_ago=7 * DAY + 1, deep_left=0), FAIL),
    ("deep-comparison", Evidence(deep_seconds_ago=1.0, deep_left=1), FAIL),
    ("deep-comparison", Evidence(deep_seconds_ago=-6.0, deep_left=0), INCONCLUSIVE),
    ("deep-comparison", NOTHING_KNOWN, INCONCLUSIVE),
    ("cold-backup", Evidence(backup_seconds_ago=7 * DAY), PASS),
    ("cold-backup", Evidence(backup_seconds_ago=7 * DAY + 1), FAIL),
    ("cold-backup", Evidence(backup_seconds_ago=-6.0), INCONCLUSIVE),
    ("cold-backup", NOTHING_KNOWN, INCONCLUSIVE),
    ("webhook", Evidence(webhook=Decided(True, "the webhook allows the step")), PASS),
    ("webhook", Evidence(webhook=Decided(False, "the webhook refuses the step")), FAIL),
    ("webhook", Evidence(webhook=Decided(None, "the webhook answers 503")), INCONCLUSIVE),
    ("webhook", NOTHING_KNOWN, INCONCLUSIVE),
]


@pytest.mark.parametrize(("name", "evidence", "verdict"), CASES)
def test_a_gate_returns_the_verdict_of_its_evidence(name: str, evidence: Evidence, verdict: Verdict) -> None:
    (result,) = check([name], evidence)
    assert (result.name, result.verdict) == (name, verdict)
    assert result.evidence and result.threshold and result.runbook
    assert re.search(r"\de[-+]?\d", result.evidence + result.threshold) is None, "a number with an exponent"
    assert result.sentence.endswith(".")


def test_every_gate_has_a_case_for_each_verdict_it_can_give() -> None:
    seen: dict[str, set[Verdict]] = {}
    for name, _, verdict in CASES:
        seen.setdefault(name, set()).add(verdict)
    assert set(seen) == set(GATES)
    for name in GATES:
        assert {PASS, FAIL} <= seen[name], name


def test_what_is_not_known_never_passes() -> None:
    assert [result.name for result in check(list(GATES), NOTHING_KNOWN) if result.verdict is PASS] == []


def test_the_worst_verdict_counts_fail_before_inconclusive() -> None:
    passed, failed, open_ = (
        check(["parked"], Evidence(parked=0)),
        check(["backfill"], NOTHING_KNOWN),
        check(["lag"], NOTHING_KNOWN),
    )
    assert worst([*passed, *open_, *failed]) is FAIL
    assert worst([*passed, *open_]) is INCONCLUSIVE
    assert worst(passed) is PASS
    assert worst([]) is PASS


@pytest.mark.parametrize(
    ("changed", "fixed"),
    [
        ({}, []),
        ({"a_owned_records": 1}, ["a-owns-nothing"]),
        ({"a_owned_records": None}, ["a-owns-nothing"]),
        ({"clients_watched_seconds": None}, ["no-active-clients"]),
        ({"client_idle_seconds": 1.0}, ["no-active-clients"]),
        ({"under_way": ("a job",)}, ["nothing-under-way"]),
        ({"under_way": None}, ["nothing-under-way"]),
        ({"deep_left": 1}, ["deep-comparison"]),
        ({"deep_seconds_ago": None}, ["deep-comparison"]),
        ({"backup_seconds_ago": None}, ["cold-backup"]),
    ],
)
def test_no_reason_passes_the_gates_that_keep_a_needed_store(changed: dict[str, Any], fixed: list[str]) -> None:
    done = Evidence(
        a_owned_records=0,
        a_owned_buckets=0,
        a_outbox_entries=0,
        clients_watched_seconds=30 * DAY,
        under_way=(),
        lag_seconds=0.0,
        deep_seconds_ago=1.0,
        deep_left=0,
        backup_seconds_ago=1.0,
    )
    results = check(list(GATES), replace(done, **changed))
    assert [result.name for result in not_overridable(results)] == fixed


def test_thresholds_are_settings() -> None:
    evidence = Evidence(b_calls=Counts(100, 2))
    (strict,) = check(["error-rate"], evidence)
    (lenient,) = check(["error-rate"], evidence, Limits({"gate_error_percent": 5, "gate_error_calls": 100}))
    assert (strict.verdict, lenient.verdict) == (INCONCLUSIVE, PASS)
    assert "5 %" in lenient.threshold and (lenient.samples, lenient.least_samples) == (100, 100)


def test_a_share_that_equals_its_limit_is_not_below_it_however_the_product_is_rounded() -> None:
    limits = Limits({"gate_error_percent": 7, "gate_error_calls": 100})
    assert 100 * limits[ERRORS] > 7, "by the rounding of floating point"
    (at, below) = (check(["error-rate"], Evidence(b_calls=Counts(100, faults)), limits)[0] for faults in (7, 6))
    assert (at.verdict, below.verdict) == (FAIL, PASS)


def test_no_limit_is_so_small_that_no_fault_at_all_exceeds_it() -> None:
    (result,) = check(
        ["error-rate"], Evidence(b_calls=Counts(1)), Limits({"gate_error_percent": 1e-6, "gate_error_calls": 1})
    )
    assert result.verdict is PASS


@pytest.mark.parametrize(
    ("counts", "alert"),
    [
        (ShadowCounts(30_000, 29_970, 0, 30), ""),
        (ShadowCounts(30_000, 29_969, 0, 31), "31 of 30000 compared reads disagree"),
        (ShadowCounts(10, 7, 0, 3), ""),
        (ShadowCounts(10, 6, 0, 4), "4 of 10 compared reads disagree"),
    ],
)
def test_a_person_is_called_when_more_reads_disagree_than_the_alert_allows(counts: ShadowCounts, alert: str) -> None:
    said = reads_warning(Evidence(shadow=counts), Limits())
    assert said.startswith(alert) and bool(said) == bool(alert)


def test_noise_alone_calls_no_person() -> None:
    seen = Evidence(shadow=ShadowCounts(30_000, 29_965, 0, 35), noise=NoiseFloor(7, 6, 30_000))
    assert reads_warning(seen, Limits()) == ""
    assert reads_warning(replace(seen, shadow=ShadowCounts(30_000, 29_963, 0, 37)), Limits())


def test_the_verdict_on_latency_says_which_operation_is_slower_and_by_what_bounds() -> None:
    (result,) = check(["latency-parity"], latencies(parity("get", 0.002, 0.002), parity("update", 0.002, 0.004)))
    assert "get PASS" in result.evidence and "update FAIL: B 3.95 to 4.12 ms (300 calls), A 1.97 to" in result.evidence


@pytest.mark.parametrize(
    ("compared", "alert"),
    [
        (Compared(1.0, 10_000, 10, 0), ""),
        (Compared(1.0, 10_000, 11, 0), "11 of 10000 records differ, 0 are not repaired"),
        (Compared(1.0, 10_000, 1, 1), "1 of 10000 records differ, 1 are not repaired"),
        (None, ""),
    ],
)
def test_a_person_is_called_when_many_records_differ_or_any_stays_so(compared: Compared | None, alert: str) -> None:
    said = stores_warning(Evidence(compared=compared), Limits())
    assert said.startswith(alert) and bool(said) is bool(alert)
