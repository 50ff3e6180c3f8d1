"""The audit of A's records before a migration: a job that checks a snapshot of A and writes a sample to a scratch
store.

The snapshot shows A at one moment; A continues to serve. The audit checks each record for invalid data, and checks
that a conversion to the other schema versions and back keeps the record. A tenth of the records, always the same names,
is copied to an empty scratch store of B's kind beside B's real one, read there, and compared field by field. The audit
changes nothing at A or B. A restart of A drops the snapshot; the audit then starts again with a new one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple
from uuid import uuid4

from libs.clock import Clock
from libs.contract.descriptors import Contract
from libs.errors import InvalidField
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import audit_pb2 as pb
from libs.tasks import Loop
from services.router.core.audit import AuditReport, Finding, begun, check_accepted, looked, tried
from services.router.core.compare import Comparison
from services.router.core.evidence import Evidence
from services.router.flows.jobs.kind import JobFailed, Position, Step
from services.router.flows.jobs.last_report import LastReport
from services.router.flows.jobs.runner import Jobs
from services.router.flows.stores import Refused, Stores

NAME = "audit"
LANE = NAME
"""One lane for all audits, because there is one old service."""

DEFAULT_SAMPLE_PERCENT = 10.0
PAGE_RECORDS = 250
STEP_SECONDS = 1.0
"""Time after which a step reads no further page."""
MAX_SAMPLES = 1000
"""Maximum number of samples per step and per request to the scratch store."""
MAX_SAMPLE_BYTES = 1024 * 1024
CALL_SECONDS = 10.0
CHECK_SECONDS = 2.0
TRY_SECONDS = 25.0
SNAPSHOT_WAIT_SECONDS = 0.5
LOOK_SECONDS = 0.5

_GONE = "SNAPSHOT_GONE"
_FOR_A_PERSON = frozenset({"DISK_FULL", "NO_SCRATCH", "NOT_HERE", "UNIMPLEMENTED"})
"""Reasons of a store's refusal that only a person can remove."""


@dataclass(frozen=True, slots=True)
class State:
    """The audit's checkpoint."""

    snapshot: str
    """Id of the snapshot."""
    after: str = ""
    """Last key that was checked."""
    stage: str = "snapshot"
    """"snapshot", "records" or "end"."""

    def encode(self) -> bytes:
        return json.dumps([self.snapshot, self.after, self.stage]).encode()

    @classmethod
    def decode(cls, checkpoint: bytes) -> State | None:
        return cls(*json.loads(checkpoint)) if checkpoint else None


class Arguments(NamedTuple):
    sample_permille: int
    accept: tuple[str, ...]


class Audit:
    """A `JobKind`. Arguments: `sample`, the percentage of records that are copied to the scratch store; `accept`, the
    accepted kinds of findings, separated by commas."""

    name = NAME
    unit = "records"

    def __init__(self, stores: Stores, contract: Contract, clock: Clock) -> None:
        self._stores = stores
        self._clock = clock
        lists = [method for method in contract.methods.values() if method.shape is not None]
        self._items = Comparison.of(lists[0]) if lists else None

    def lane(self, arguments: Mapping[str, str]) -> str:
        _arguments(arguments)
        return LANE

    async def check(self, arguments: Mapping[str, str]) -> None:
        """Check the accepted kinds of findings against the kinds that A supports. If A is unavailable, the job checks
        them later. Raises InvalidField."""
        accept, a = _arguments(arguments).accept, self._stores[Store.A]
        if accept:
            with suppress(Refused):
                known = await a.ask(a.audit.ListKinds, pb.ListKindsRequest(), CHECK_SECONDS)
                check_accepted(known.kinds, accept)

    async def step(self, at: Position) -> Step:
        """Raises the stores' errors, and JobFailed if only a person can remove the cause."""
        state = State.decode(at.checkpoint)
        if state is None:
            # Saved before the snapshot is taken, so that the next router asks for the same one after a crash.
            return Step(State(uuid4().hex).encode(), note="taking a snapshot of A")
        wanted = _arguments(at.arguments)
        try:
            if state.stage == "snapshot":
                return await self._take(state, wanted)
            if state.stage == "records":
                return await self._look(state, wanted, at)
            return await self._end(state, at)
        except Refused as refused:
            if refused.reason == _GONE:
                again = State(uuid4().hex)
                return Step(again.encode(), done=-at.done, note="A no longer has the snapshot: starting again")
            if refused.reason in _FOR_A_PERSON:
                raise JobFailed(refused.message) from None
            raise

    async def _take(self, state: State, wanted: Arguments) -> Step:
        a = self._stores[Store.A]
        taken = await a.ask(a.audit.TakeSnapshot, pb.TakeSnapshotRequest(id=state.snapshot), CALL_SECONDS)
        try:
            report = begun(taken, wanted.accept)
        except InvalidField as error:
            raise JobFailed(f"{error.message}; cancel this job and start another one") from None
        if not taken.ready:
            share = f"{taken.copied_bytes} of {taken.total_bytes} bytes"
            return Step(state.encode(), waits=f"A is making the snapshot: {share}", wait_seconds=SNAPSHOT_WAIT_SECONDS)
        after = replace(state, stage="records")
        return Step(after.encode(), total=taken.records, note="checking A's records", report=report.to_json())

    async def _look(self, state: State, wanted: Arguments, at: Position) -> Step:
        report = AuditReport.from_json(at.report)
        until = self._clock.monotonic() + STEP_SECONDS
        findings: list[Finding] = []
        samples: list[pb.Sample] = []
        done, more = 0, True
        while more and done < at.limit and self._clock.monotonic() < until and _fit(samples):
            page = await self._page(state, min(PAGE_RECORDS, at.limit - done), wanted.sample_permille)
            findings += [Finding(found.key, found.kind, found.detail) for found in page.findings]
            samples += page.samples
            done, more = done + page.records, page.more
            state = replace(state, after=page.last or state.after)
        findings += await self._try(samples)
        report = looked(report, done, len(samples), findings)
        if not more:
            state = replace(state, stage="end")
        return Step(state.encode(), done, total=report.total, note=report.summary, report=report.to_json())

    async def _end(self, state: State, at: Position) -> Step:
        a = self._stores[Store.A]
        await a.ask(a.audit.DropSnapshot, pb.DropSnapshotRequest(id=state.snapshot), CALL_SECONDS)
        report = AuditReport.from_json(at.report)
        return Step(state.encode(), finished=True, note=f"{report.verdict.value}: {report.summary}")

    async def _page(self, state: State, limit: int, permille: int) -> pb.AuditRecordsResponse:
        a = self._stores[Store.A]
        request = pb.AuditRecordsRequest(id=state.snapshot, after=state.after, limit=limit, sample_permille=permille)
        page: pb.AuditRecordsResponse = await a.ask(a.audit.AuditRecords, request, CALL_SECONDS)
        return page

    async def _try(self, samples: Sequence[pb.Sample]) -> Iterable[Finding]:
        b = self._stores[Store.B]
        found: list[Finding] = []
        for part in _parts(samples):
            request = pb.TryRecordsRequest(records=[sample.record for sample in part])
            answer: pb.TryRecordsResponse = await b.ask(b.audit.TryRecords, request, TRY_SECONDS)
            found += tried(part, answer.samples, self._items)
        return found


def _size(sample: pb.Sample) -> int:
    return sample.record.ByteSize()


def _fit(samples: Sequence[pb.Sample]) -> bool:
    """Whether one more sample may be added."""
    return len(samples) < MAX_SAMPLES and sum(map(_size, samples)) < MAX_SAMPLE_BYTES


def _parts(samples: Sequence[pb.Sample]) -> Iterable[list[pb.Sample]]:
    """The samples in requests of bounded size, because a page may have more than one request may carry."""
    part: list[pb.Sample] = []
    for sample in samples:
        if not _fit(part):
            yield part
            part = []
        part.append(sample)
    if part:
        yield part


def _arguments(arguments: Mapping[str, str]) -> Arguments:
    """Raises InvalidField."""
    unknown = sorted(set(arguments) - {"sample", "accept"})
    if unknown:
        raise InvalidField("arguments", unknown[0], "sample (percentage of records) or accept (kinds of findings)")
    text = arguments.get("sample", f"{DEFAULT_SAMPLE_PERCENT:g}")
    try:
        percent = float(text)
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise InvalidField("sample", text, "0 to 100 percent, in steps of 0.1")
    accept = tuple(filter(None, (name.strip() for name in arguments.get("accept", "").split(","))))
    return Arguments(round(percent * 10), accept)


class LastAudit:
    """The last finished audit, for the gate. The caller runs `loop`."""

    def __init__(self, jobs: Jobs, clock: Clock) -> None:
        self._last = LastReport(jobs, LANE, AuditReport.from_json, clock)
        self.loop = Loop("last audit", self._body)

    async def look(self) -> None:
        """Read the last report. Raises ControlUnavailable, and then keeps the former report."""
        await self._last.look()

    def evidence(self, evidence: Evidence) -> Evidence:
        """The evidence with the findings of the last audit."""
        report = self._last.report
        if report is None:
            return evidence
        return replace(
            evidence,
            audit_seconds_ago=self._last.seconds_ago,
            audit_records=report.records,
            audit_summary=report.summary,
            audit_findings=report.trouble,
        )

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(LOOK_SECONDS)
