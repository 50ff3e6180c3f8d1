"""Each gate can pass, fail and, where its evidence can be missing, be inconclusive."""

import pytest

from services.router.core.gates import GATES, Evidence, Verdict, judge, not_overridable, worst

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE

NOTHING_KNOWN = Evidence()

UNMEASURED = {
    "audit",
    "shadow-consistent",
    "error-rate",
    "latency-parity",
    "rehearsal",
    "golden-metrics",
    "no-active-clients",
}

CASES = [
    ("backfill", Evidence(backfill_finished_seconds_ago=0.0), PASS),
    ("backfill", NOTHING_KNOWN, FAIL),
    ("lag", Evidence(lag_seconds=300.0), PASS),
    ("lag", Evidence(lag_seconds=300.1), FAIL),
    ("lag", NOTHING_KNOWN, INCONCLUSIVE),
    ("parked", Evidence(parked=0), PASS),
    ("parked", Evidence(parked=1), FAIL),
    ("parked", NOTHING_KNOWN, INCONCLUSIVE),
    ("canary-complete", Evidence(canary_permille=1000), PASS),
    ("canary-complete", Evidence(canary_permille=999), FAIL),
    ("buckets-done", Evidence(buckets_at_b=1024), PASS),
    ("buckets-done", Evidence(buckets_at_b=1023), FAIL),
    ("buckets-done", NOTHING_KNOWN, INCONCLUSIVE),
    ("a-owns-nothing", Evidence(a_owned_records=0, a_owned_absences=0, a_outbox_entries=0), PASS),
    ("a-owns-nothing", Evidence(a_owned_records=1, a_owned_absences=0, a_outbox_entries=0), FAIL),
    ("a-owns-nothing", Evidence(a_owned_records=0, a_owned_absences=1, a_outbox_entries=0), FAIL),
    ("a-owns-nothing", Evidence(a_owned_records=0, a_owned_absences=0, a_outbox_entries=1), FAIL),
    ("a-owns-nothing", Evidence(a_owned_records=0, a_outbox_entries=0), INCONCLUSIVE),
    ("a-owns-nothing", Evidence(a_owned_absences=0, a_outbox_entries=0), INCONCLUSIVE),
    ("a-owns-nothing", Evidence(a_owned_records=0, a_owned_absences=0), INCONCLUSIVE),
    *((name, NOTHING_KNOWN, INCONCLUSIVE) for name in sorted(UNMEASURED)),
]


@pytest.mark.parametrize(("name", "evidence", "verdict"), CASES)
def test_a_gate_judges_what_is_known(name: str, evidence: Evidence, verdict: Verdict) -> None:
    (result,) = judge([name], evidence)
    assert (result.name, result.verdict) == (name, verdict)
    assert result.evidence
    assert result.sentence.endswith(".")


def test_every_gate_has_a_case_for_each_verdict_it_can_give() -> None:
    seen: dict[str, set[Verdict]] = {}
    for name, _, verdict in CASES:
        seen.setdefault(name, set()).add(verdict)
    assert set(seen) == set(GATES)
    for name in set(GATES) - UNMEASURED:
        assert {PASS, FAIL} <= seen[name], name


def test_what_is_not_known_never_passes() -> None:
    assert [result.name for result in judge(list(GATES), NOTHING_KNOWN) if result.verdict is PASS] == []


def test_the_worst_verdict_counts_fail_before_inconclusive() -> None:
    passed, failed, open_ = (
        judge(["parked"], Evidence(parked=0)),
        judge(["backfill"], NOTHING_KNOWN),
        judge(["lag"], NOTHING_KNOWN),
    )
    assert worst([*passed, *open_, *failed]) is FAIL
    assert worst([*passed, *open_]) is INCONCLUSIVE
    assert worst(passed) is PASS
    assert worst([]) is PASS


@pytest.mark.parametrize(("owned", "fixed"), [(0, []), (1, ["a-owns-nothing"]), (None, ["a-owns-nothing"])])
def test_that_a_owns_nothing_is_the_one_gate_no_reason_passes(owned: int | None, fixed: list[str]) -> None:
    results = judge(list(GATES), Evidence(a_owned_records=owned, a_owned_absences=0, a_outbox_entries=0))
    assert [result.name for result in not_overridable(results)] == fixed
