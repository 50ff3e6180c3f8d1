"""The report of an audit of the old data. Pure.

A kind of finding is acceptable if its records move unchanged. An operator may accept such a kind, by name, for one
audit. Any other kind means that the move would lose or change data, and passes no gate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from libs.errors import InvalidField
from libs.pb.baton.record.v1.record_pb2 import Record
from libs.pb.baton.replication.v1 import audit_pb2 as pb
from services.router.core.compare import Comparison, ShownRecord

MAX_EXAMPLES = 20
"""Examples of one kind that the report keeps."""

SAMPLE_DIFFERS = "sample-differs"
_SAMPLE_MEANING = "A copy of the record in a scratch store of the new kind differs from it"

_RECORD = Comparison(Record, ())


class Verdict(Enum):
    CLEAN = "CLEAN"
    ACCEPTED = "ACCEPTED"
    """All findings are of accepted kinds."""
    FINDINGS = "FINDINGS"
    """All findings are of acceptable kinds, and some of these are not accepted."""
    BLOCKED = "BLOCKED"
    """The move would lose or change data."""


class Finding(NamedTuple):
    key: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class KindFound:
    """One kind of finding in a report."""

    meaning: str
    acceptable: bool
    accepted: bool
    findings: int = 0
    examples: tuple[tuple[str, str], ...] = ()
    """Key and detail of the first findings."""


@dataclass(frozen=True, slots=True)
class AuditReport:
    taken_seconds: float = 0.0
    """UNIX time of the snapshot, by the store's clock."""
    bytes: int = 0
    total: int = 0
    """Records in the snapshot."""
    records: int = 0
    """Records checked so far."""
    affected: int = 0
    """Checked records with at least one finding."""
    sampled: int = 0
    """Records copied into a scratch store and compared, field by field."""
    kinds: Mapping[str, KindFound] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        found = self.found.values()
        if any(not kind.acceptable for kind in found):
            return Verdict.BLOCKED
        if any(not kind.accepted for kind in found):
            return Verdict.FINDINGS
        return Verdict.ACCEPTED if self.affected else Verdict.CLEAN

    @property
    def found(self) -> dict[str, KindFound]:
        """Kinds with findings, the worst first."""
        some = [(name, kind) for name, kind in self.kinds.items() if kind.findings]
        return dict(sorted(some, key=lambda item: (item[1].acceptable, item[1].accepted, -item[1].findings)))

    @property
    def summary(self) -> str:
        """The findings in words, for the job's note and the gate."""
        checked = f"{self.affected} of {self.records} records have findings"
        kinds = ", ".join(
            f"{name} {kind.findings}{' (accepted)' if kind.accepted else ''}" for name, kind in self.found.items()
        )
        sampled = f"{self.sampled} were tried out"
        return f"{checked}, {sampled}: {kinds}" if kinds else f"{checked}, {sampled}"

    @property
    def trouble(self) -> str:
        """The summary if a finding is not accepted, else ""."""
        return "" if self.verdict in (Verdict.CLEAN, Verdict.ACCEPTED) else self.summary

    def to_json(self) -> str:
        return json.dumps(
            {**asdict(self), "verdict": self.verdict.value, "kinds": {n: asdict(k) for n, k in self.kinds.items()}},
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> AuditReport:
        """Raises ValueError if a router of another version has written the text."""
        try:
            fields = json.loads(text)
            del fields["verdict"]
            kinds = {
                name: KindFound(**{**kind, "examples": tuple((key, detail) for key, detail in kind["examples"])})
                for name, kind in fields.pop("kinds").items()
            }
            return cls(**fields, kinds=kinds)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a report of an audit: {error!r}") from error


def check_accepted(kinds: Iterable[pb.FindingKind], accept: Sequence[str]) -> None:
    """Raises InvalidField for a kind that is unknown or not acceptable."""
    able = [kind.name for kind in kinds if kind.acceptable]
    for name in accept:
        if name not in able:
            raise InvalidField("accept", name, f"acceptable kinds: {', '.join(able)}")


def begun(taken: pb.TakeSnapshotResponse, accept: Sequence[str]) -> AuditReport:
    """The report before the first record. Raises InvalidField as `check_accepted` does."""
    known = {kind.name: KindFound(kind.meaning, kind.acceptable, kind.name in accept) for kind in taken.kinds}
    known[SAMPLE_DIFFERS] = KindFound(_SAMPLE_MEANING, acceptable=False, accepted=False)
    check_accepted(taken.kinds, accept)
    return AuditReport(taken.taken_time.ToNanoseconds() / 1e9, taken.total_bytes, taken.records, kinds=known)


def looked(report: AuditReport, records: int, sampled: int, findings: Iterable[Finding]) -> AuditReport:
    """Adds some records, with all their findings."""
    kinds = dict(report.kinds)
    affected = set()
    for key, name, detail in findings:
        affected.add(key)
        # A store of a newer program may report a kind that it has not announced.
        kind = kinds.get(name, KindFound("", acceptable=False, accepted=False))
        examples = kind.examples if len(kind.examples) >= MAX_EXAMPLES else (*kind.examples, (key, detail))
        kinds[name] = replace(kind, findings=kind.findings + 1, examples=examples)
    return replace(
        report,
        records=report.records + records,
        affected=report.affected + len(affected),
        sampled=report.sampled + sampled,
        kinds=kinds,
    )


def tried(sent: Sequence[pb.Sample], got: Sequence[pb.Sample], items: Comparison | None) -> list[Finding]:
    """Differences between the scratch store and the original. `items` compares the messages that clients read."""
    there = {sample.record.key: sample for sample in got}
    found = []
    for sample in sent:
        key = sample.record.key
        fields = _differing(sample, there[key], items) if key in there else ["(it is not there)"]
        if fields:
            found.append(Finding(key, SAMPLE_DIFFERS, ", ".join(fields)))
    return found


def _differing(sent: pb.Sample, got: pb.Sample, items: Comparison | None) -> list[str]:
    """Names of fields, never their values."""
    fields = list(_RECORD.fields(_seen(sent.record.SerializeToString()), _seen(got.record.SerializeToString())))
    for version in sorted({*sent.views, *got.views}):
        if (version in sent.views) != (version in got.views):
            fields.append(f"version {version}")
        elif sent.views[version] != got.views[version]:
            paths = items.fields(_seen(sent.views[version]), _seen(got.views[version])) if items else ()
            fields += [f"version {version}: {path}" for path in paths or ("(bytes)",)]
    return fields


def _seen(data: bytes) -> ShownRecord:
    return ShownRecord(None, data)
