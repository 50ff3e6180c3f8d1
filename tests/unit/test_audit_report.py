"""Consequences of an audit's findings for moving the data."""

from __future__ import annotations

from typing import Any

import pytest

from libs.clock import ManualClock
from libs.contract.descriptors import Contract
from libs.errors import InvalidField
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import audit_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from services.router.cli.audit import _remedy
from services.router.core.audit import MAX_EXAMPLES, SAMPLE_DIFFERS, AuditReport, Finding, Verdict, begun, looked, tried
from services.router.core.compare import Comparison
from services.router.core.evidence import Evidence
from services.router.core.gates import Verdict as GateVerdict
from services.router.core.gates import check
from services.router.core.thresholds import Limits
from services.router.flows.jobs.audit import Audit

CONTRACT = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
ITEMS = Comparison(Sandbox, ())
TAKEN = pb.TakeSnapshotResponse(
    ready=True,
    total_bytes=4096,
    records=3,
    kinds=[
        pb.FindingKind(name="odd", meaning="Odd", acceptable=True),
        pb.FindingKind(name="worn", meaning="Worn", acceptable=True),
        pb.FindingKind(name="broken", meaning="Broken", acceptable=False),
    ],
)


def verdict(found: list[str], accept: tuple[str, ...] = ()) -> Verdict:
    findings = [Finding(f"k/{number}", kind, "so") for number, kind in enumerate(found)]
    return looked(begun(TAKEN, accept), 10, 1, findings).verdict


@pytest.mark.parametrize(
    ("found", "accept", "expected"),
    [
        ([], (), Verdict.CLEAN),
        ([], ("odd",), Verdict.CLEAN),
        (["odd"], (), Verdict.FINDINGS),
        (["odd"], ("odd",), Verdict.ACCEPTED),
        (["odd", "worn"], ("odd",), Verdict.FINDINGS),
        (["odd", "worn"], ("odd", "worn"), Verdict.ACCEPTED),
        (["broken"], (), Verdict.BLOCKED),
        (["odd", "broken"], ("odd", "worn"), Verdict.BLOCKED),
        ([SAMPLE_DIFFERS], (), Verdict.BLOCKED),
        (["never announced"], (), Verdict.BLOCKED),
    ],
)
def test_the_worst_finding_decides(found: list[str], accept: tuple[str, ...], expected: Verdict) -> None:
    assert verdict(found, accept) is expected


@pytest.mark.parametrize("name", ["broken", SAMPLE_DIFFERS, "unknown"])
def test_what_cannot_be_accepted_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidField, match="odd, worn") as refused:
        begun(TAKEN, ("odd", name))
    assert name in refused.value.message


def test_a_record_with_several_findings_is_dirty_once_and_examples_are_bounded() -> None:
    findings = [Finding("k/1", "odd", "so"), Finding("k/1", "worn", "so")]
    findings += [Finding(f"k/{number}", "odd", "so") for number in range(2, 100)]
    report = looked(looked(begun(TAKEN, ()), 100, 7, findings), 100, 7, [])
    assert (report.records, report.affected, report.sampled) == (200, 99, 14)
    assert (report.kinds["odd"].findings, len(report.kinds["odd"].examples)) == (99, MAX_EXAMPLES)


def test_a_report_comes_back_from_its_text_and_says_its_verdict_there() -> None:
    report = looked(begun(TAKEN, ("odd",)), 3, 1, [Finding("k/1", "odd", "ünï")])
    assert AuditReport.from_json(report.to_json()) == report
    assert '"verdict": "ACCEPTED"' in report.to_json()
    with pytest.raises(ValueError, match="not a report"):
        AuditReport.from_json('{"other": 1}')


def sample(key: str = "k/1", payload: bytes = b"", views: dict[int, bytes] | None = None, **fields: Any) -> pb.Sample:
    record = record_pb2.Record(key=key, payload=payload, schema_version=2, **fields)
    return pb.Sample(record=record, views=views or {})


def test_a_sample_that_is_the_same_there_is_no_finding() -> None:
    view = Sandbox(name="k/1", account="acme").SerializeToString()
    sent = [sample(payload=b"p", views={1: view, 2: view})]
    assert tried(sent, [sample(payload=b"p", views={1: view, 2: view})], ITEMS) == []


def test_each_field_that_is_another_one_in_the_scratch_store_is_named() -> None:
    one, two = (Sandbox(name="k/1", account=name, labels={"a": name}).SerializeToString() for name in ("ann", "bob"))
    (found,) = tried(
        [sample(payload=b"p", views={2: one}, version=record_pb2.Version(revision=1))],
        [sample(payload=b"q", views={2: two}, version=record_pb2.Version(revision=2))],
        ITEMS,
    )
    assert found.kind == SAMPLE_DIFFERS
    assert found.detail == "version.revision, payload, version 2: labels, version 2: account"
    assert "ann" not in found.detail


def test_a_sample_that_is_not_there_is_found() -> None:
    assert [found.key for found in tried([sample("k/1"), sample("k/2")], [sample("k/1")], None)] == ["k/2"]


def test_a_version_that_only_one_store_can_show_is_found() -> None:
    (found,) = tried([sample(views={1: b"", 2: b""})], [sample(views={2: b""})], ITEMS)
    assert found.detail == "version 1"


@pytest.mark.parametrize(
    ("ago", "trouble", "expected"),
    [
        (None, "", GateVerdict.INCONCLUSIVE),
        (10.0, "", GateVerdict.PASS),
        (10.0, "3 of 9 records have findings", GateVerdict.FAIL),
        (8 * 86400.0, "", GateVerdict.FAIL),
    ],
)
def test_the_gate_wants_a_fresh_audit_without_trouble(ago: float | None, trouble: str, expected: GateVerdict) -> None:
    evidence = Evidence(audit_seconds_ago=ago, audit_summary="0 of 9 records have findings", audit_findings=trouble)
    (result,) = check(["audit"], evidence, Limits())
    assert result.verdict is expected
    assert trouble in result.evidence


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"sample": "-1"}, "sample"),
        ({"sample": "ten"}, "sample"),
        ({"sample": "nan"}, "sample"),
        ({"of": "B"}, "arguments"),
    ],
)
def test_an_audit_that_makes_no_sense_is_refused(arguments: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        Audit({}, CONTRACT, ManualClock()).lane(arguments)
    assert refused.value.field == field


def test_findings_that_block_come_with_a_remedy() -> None:
    def kind(*, acceptable: bool, accepted: bool = False) -> dict[str, object]:
        return {"findings": 1, "acceptable": acceptable, "accepted": accepted}

    able = {"kinds": {"bad-json": kind(acceptable=True), "old-name": kind(acceptable=True, accepted=True)}}
    assert _remedy(able).endswith("baton audit --accept bad-json,old-name")
    fixed = {"kinds": {"bad-json": kind(acceptable=True), "lossy": kind(acceptable=False)}}
    assert _remedy(fixed) == "correct through A the findings that cannot be accepted: lossy"
