"""Judges the evidence of a trial. Pure: the same evidence gives the same verdict.

The ledger finds lost writes, double effects and stale reads, and compares the stores. The checker decides whether each
record's history could have happened one call at a time. This module adds the old database's records: all of them must
exist, and records that no client wrote must be unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.ownership.model import BUCKETS
from libs.proving.history import linearizability
from libs.proving.history.consistency import Findings, Tally, audit
from libs.proving.history.history import WRITES, Call, HistoryError, Outcome
from libs.proving.history.linearizability import Report
from libs.proving.history.operations import State, Status
from libs.proving.trial.evidence import Evidence, StoreContent
from libs.proving.trial.requests import INITIAL_VALUE
from libs.proving.trial.stores import Held


@dataclass(frozen=True, slots=True)
class Result:
    """The judgement of the evidence. ``ok`` only if everything was judged and no check failed."""

    findings: Findings
    linearizable: bool
    not_linearizable: Tally
    """Records without an explanation, and those for which the search ran out of budget."""
    old_records: int
    old_records_lost: Tally
    old_records_changed: Tally
    """Records that no client wrote, and that changed."""
    digests_equal: bool
    misowned: Tally
    """Buckets without an owner or with two, or on whose owner the stores disagree."""
    calls: int

    @property
    def tallies(self) -> dict[str, Tally]:
        """All counts that must be zero, by their names in the report."""
        return {
            "lost": self.findings.lost,
            "duplicated": self.findings.duplicated,
            "stale_strict_reads": self.findings.stale_strict_reads,
            "diverged": self.findings.diverged,
            "misowned": self.findings.misowned,
            "unjudged": self.findings.unjudged,
            "not_linearizable": self.not_linearizable,
            "old_records_lost": self.old_records_lost,
            "old_records_changed": self.old_records_changed,
            "buckets_misowned": self.misowned,
        }

    @property
    def proves_nothing(self) -> bool:
        """No write was acknowledged or no strict read answered, so zeros mean nothing."""
        return not (self.findings.acknowledged_writes and self.findings.strict_reads)

    @property
    def ok(self) -> bool:
        sound = self.digests_equal and self.linearizable and not self.proves_nothing
        return sound and not any(tally.count for tally in self.tallies.values())

    @property
    def problems(self) -> list[str]:
        """Problems, each with its first offenders; empty if all is well."""
        found = [
            f"{name} {tally.count}: {offender}" for name, tally in self.tallies.items() for offender in tally.offenders
        ]
        if not self.digests_equal:
            found.append("digests: the stores' digests differ")
        if self.proves_nothing:
            found.append("no write was acknowledged, or no strict read answered: this proves nothing")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The result for a report."""
        return {
            **{name: tally.count for name, tally in self.tallies.items()},
            "acknowledged_writes": self.findings.acknowledged_writes,
            "strict_reads": self.findings.strict_reads,
            "old_records": self.old_records,
            "linearizable": self.linearizable,
            "digests_equal": self.digests_equal,
            "offenders": self.problems,
        }


def judge(evidence: Evidence, *, max_states: int = linearizability.DEFAULT_MAX_STATES) -> Result:
    """Check all of the evidence. ``max_states`` limits the search of each record; an exhausted search is not a pass."""
    rows = [held.row(content.store) for content in evidence.stores for held in content.records]
    before = {held.name: held for held in evidence.before}
    report = _check(evidence.calls, before, max_states)
    lost, changed = _old_records(before, evidence)
    return Result(
        findings=audit(evidence.calls, evidence.events, rows),
        linearizable=isinstance(report, Report) and report.ok,
        not_linearizable=Tally.of(
            [str(failure) for failure in report.failures] if isinstance(report, Report) else [report]
        ),
        old_records=len(before),
        old_records_lost=Tally.of(lost),
        old_records_changed=Tally.of(changed),
        digests_equal=len({tuple(sorted(content.digests.items())) for content in evidence.stores}) == 1,
        misowned=Tally.of(_misowned_buckets(evidence.stores)),
        calls=len(evidence.calls),
    )


def _check(calls: Sequence[Call], before: Mapping[str, Held], max_states: int) -> Report | str:
    initial = {name: _state(held) for name, held in before.items()}
    try:
        return linearizability.check(calls, initial=initial, max_states=max_states)
    except HistoryError as error:
        return f"the history cannot be what clients recorded: {error}"


def _state(held: Held) -> State:
    status = Status.LIVE if held.live else Status.DELETED
    return State(status, held.value or INITIAL_VALUE, held.written)


def _old_records(before: Mapping[str, Held], evidence: Evidence) -> tuple[list[str], list[str]]:
    """Records that a store lacks, and records that no client wrote and that changed."""
    written = {call.key for call in evidence.calls if call.method in WRITES and call.outcome is not Outcome.FAILED}
    lost, changed = [], []
    for content in evidence.stores:
        held = {record.name: record for record in content.records}
        for name, old in before.items():
            now = held.get(name)
            if now is None:
                lost.append(f"{name}: store {content.store} has no such record")
            elif name not in written and _content(now) != _content(old):
                changed.append(f"{name}: {_content(old)} before, {_content(now)} at store {content.store}")
    return lost, changed


def _content(held: Held) -> tuple[object, ...]:
    """The part of a record that a move must not change."""
    return held.written, held.live, held.content


def _misowned_buckets(stores: Sequence[StoreContent]) -> list[str]:
    views = {content.store: content.bucket_owners for content in stores}
    offenders = []
    for bucket in range(BUCKETS):
        owners = {view.get(bucket) for view in views.values()}
        if len(owners) != 1 or not owners <= views.keys():
            shown = ", ".join(f"{store} says {view.get(bucket)}" for store, view in views.items())
            offenders.append(f"bucket {bucket}: {shown}")
    return offenders
