# ruff: noqa: N802 - the methods are named as in the .proto.
"""The audit API of a store: audits a snapshot of it, and tries records in a scratch store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

from libs.backend.checks import MAX_RECORDS, check_count, check_limit
from libs.backend.serving import Serving
from libs.clock import Clock
from libs.contract.audits import Kind, RecordAudit
from libs.errors import BatonError, InvalidField
from libs.ownership.limits import MAX_PAYLOAD_BYTES
from libs.ownership.model import Record, Row
from libs.ownership.wire import record_from_pb, record_to_pb
from libs.pb.baton.replication.v1 import audit_pb2 as pb
from libs.pb.baton.replication.v1.audit_pb2_grpc import AuditServiceServicer, add_AuditServiceServicer_to_server
from libs.rpc.errors import Context
from libs.rpc.limits import ANSWER_BYTES
from libs.rpc.server import TypedService
from libs.store.port import Records, Transfers
from libs.store.snapshots import Looked, Snapshots
from libs.store.window import made_by

MAX_ID_CHARACTERS = 64
MAX_DETAIL_CHARACTERS = 200
_RECORDS_PER_TURN = 10
"""Records after which client calls get a turn on the event loop."""


class NotHere(BatonError):
    """This store does not support the request."""

    code = "UNIMPLEMENTED"
    reason = "NOT_HERE"


class ScratchStore(Protocol):
    """An empty store for trying records."""

    @property
    def records(self) -> Records: ...

    @property
    def transfers(self) -> Transfers: ...


Scratch = Callable[[], AbstractAsyncContextManager[ScratchStore]]
"""Makes a store of the same kind beside the real one. It is removed when the block ends."""


@dataclass(frozen=True, slots=True)
class AuditParts:
    """A store's support for audits."""

    records: RecordAudit
    snapshots: Snapshots | None = None
    snapshot_kinds: Mapping[str, Kind] = field(default_factory=dict)
    scratch: Scratch | None = None


class AuditApi(AuditServiceServicer):
    """Raises InvalidField for requests that no router sends, StoreNotReady unless the store serves, NotHere, and the
    parts' errors."""

    def __init__(self, parts: AuditParts, serving: Serving, clock: Clock) -> None:
        self._parts = parts
        self._serving = serving
        self._clock = clock

    def service(self) -> TypedService:
        name = pb.DESCRIPTOR.services_by_name["AuditService"].full_name
        return TypedService(name, self, add_AuditServiceServicer_to_server)

    async def ListKinds(self, request: pb.ListKindsRequest, context: Context) -> pb.ListKindsResponse:
        return pb.ListKindsResponse(kinds=self._kinds())

    async def TakeSnapshot(self, request: pb.TakeSnapshotRequest, context: Context) -> pb.TakeSnapshotResponse:
        taken = await self._snapshots(request.id).take(request.id)
        answer = pb.TakeSnapshotResponse(
            ready=taken.ready, copied_bytes=taken.copied_bytes, total_bytes=taken.total_bytes, records=taken.records
        )
        answer.taken_time.FromNanoseconds(int(taken.taken_seconds * 1e9))
        answer.kinds.extend(self._kinds())
        return answer

    async def AuditRecords(self, request: pb.AuditRecordsRequest, context: Context) -> pb.AuditRecordsResponse:
        """Returns the first records, at least one, up to ANSWER_BYTES of samples."""
        snapshots, limit = self._snapshots(request.id), check_limit(request.limit, MAX_RECORDS)
        if not 0 <= request.sample_permille <= 1000:
            raise InvalidField("sample_permille", request.sample_permille, "0 to 1000")
        looked = await snapshots.page(request.id, request.after, limit)
        answer = pb.AuditRecordsResponse(more=len(looked) == limit)
        now, size = self._clock.now(), 0
        for one in looked:
            if answer.records % _RECORDS_PER_TURN == 0:
                await asyncio.sleep(0)
            answer.records += 1
            answer.last = one.key
            self._find(answer, one, now)
            if one.row is not None and is_sample(one.row, request.sample_permille):
                sample = self._sample(one.row)
                answer.samples.append(sample)
                size += sample.ByteSize()
                if size > ANSWER_BYTES and one is not looked[-1]:
                    answer.more = True
                    break
        return answer

    async def DropSnapshot(self, request: pb.DropSnapshotRequest, context: Context) -> pb.DropSnapshotResponse:
        await self._snapshots(request.id).drop(request.id)
        return pb.DropSnapshotResponse()

    async def TryRecords(self, request: pb.TryRecordsRequest, context: Context) -> pb.TryRecordsResponse:
        self._serving.check()
        check_count(request.records, "records", MAX_RECORDS)
        if self._parts.scratch is None:
            raise NotHere("this store cannot try records")
        records = [record_from_pb(record) for record in request.records]
        async with self._parts.scratch() as store:
            rows = await _tried(store, records)
        return pb.TryRecordsResponse(samples=[self._sample(row) for row in rows])

    def _kinds(self) -> list[pb.FindingKind]:
        known = {**self._parts.snapshot_kinds, **self._parts.records.kinds}
        return [
            pb.FindingKind(name=name, meaning=kind.meaning, acceptable=kind.acceptable) for name, kind in known.items()
        ]

    def _snapshots(self, snapshot: str) -> Snapshots:
        self._serving.check()
        if not 0 < len(snapshot) <= MAX_ID_CHARACTERS:
            raise InvalidField("id", snapshot, f"1 to {MAX_ID_CHARACTERS} characters")
        if self._parts.snapshots is None:
            raise NotHere("this store takes no snapshots: the old one does")
        return self._parts.snapshots

    def _find(self, answer: pb.AuditRecordsResponse, looked: Looked, now: float) -> None:
        more = self._parts.records.findings(looked.row, now) if looked.row is not None else []
        for kind, detail in (*looked.findings, *more):
            answer.findings.add(key=looked.key, kind=kind, detail=detail[:MAX_DETAIL_CHARACTERS])

    def _sample(self, row: Row) -> pb.Sample:
        record = record_to_pb(Record(row, (), made_by(row), 0.0))
        return pb.Sample(record=record, views=self._parts.records.views(row))


async def _tried(store: ScratchStore, records: Sequence[Record]) -> list[Row]:
    await store.transfers.apply(records)
    found = await store.records.read_many([record.row.key for record in records])
    return [one.row for one in found if one.row is not None]


def is_sample(row: Row, permille: int) -> bool:
    """Whether the key is in the sample. The choice is stable, and a higher share only adds keys. Records that are too
    large to be sent are excluded: they cannot move anyway."""
    digest = blake2b(row.key.encode(), digest_size=8, person=b"baton sample").digest()
    return len(row.payload) <= MAX_PAYLOAD_BYTES and int.from_bytes(digest, "big") % 1000 < permille
