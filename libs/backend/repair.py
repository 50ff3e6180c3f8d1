# ruff: noqa: N802 - the methods are named as in the .proto.
"""Repair of a record that does not fit the contract: an operator shows, replaces or deletes it.

No client call reaches such a record. A repair is a write like any other, at the record's owner: it makes the next
version, an event and a served request. It is refused for a readable record, which clients can change.
"""

from __future__ import annotations

from functools import partial
from hashlib import blake2b

from libs.backend.calls import Dependencies
from libs.contract.operations import Operations
from libs.errors import BatonError, InvalidField
from libs.ownership.limits import MAX_COPY_BYTES, MAX_KEY_BYTES, REQUEST_HASH_BYTES
from libs.ownership.model import NEVER, Answered, Call, Record, Row, Version
from libs.ownership.rules import Change, Resource, decide_write
from libs.ownership.wire import UnreadableRecord, bucket_to_pb, record_to_pb, version_from_pb, version_to_pb
from libs.pb.baton.replication.v1 import repair_pb2 as pb
from libs.pb.baton.replication.v1.repair_pb2_grpc import RepairServiceServicer, add_RepairServiceServicer_to_server
from libs.rpc.errors import Context
from libs.rpc.server import TypedService
from libs.store.port import StorePorts
from libs.store.window import made_by

PRINCIPAL = "operator"
"""Principal of the served requests of repairs."""


class NoRecord(BatonError):
    """The record does not exist."""

    code = "NOT_FOUND"
    reason = "NO_RECORD"


class RecordReadable(BatonError):
    """The record can be read: change it by the calls of its contract."""

    code = "FAILED_PRECONDITION"
    reason = "RECORD_READABLE"


class RepairApi(RepairServiceServicer):
    """Raises StoreNotReady unless the store serves, and the errors of a write."""

    def __init__(self, operations: Operations, ports: StorePorts, deps: Dependencies) -> None:
        self._operations = operations
        self._ports = ports
        self._deps = deps

    def service(self) -> TypedService:
        name = pb.DESCRIPTOR.services_by_name["RepairService"].full_name
        return TypedService(name, self, add_RepairServiceServicer_to_server)

    async def ExamineRecord(self, request: pb.ExamineRecordRequest, context: Context) -> pb.ExamineRecordResponse:
        self._deps.serving.check()
        if not 0 < len(request.key.encode()) <= MAX_KEY_BYTES:
            raise InvalidField("key", request.key, f"1 to {MAX_KEY_BYTES} bytes")
        found = await self._ports.records.read(request.key)
        answer = pb.ExamineRecordResponse(bucket_owner=bucket_to_pb(found.bucket_owner))
        if (row := found.row) is None:
            return answer
        answer.record.CopyFrom(record_to_pb(Record(row, (), made_by(row), self._deps.clock.now())))
        answer.bytes = len(row.payload)
        if len(row.payload) > MAX_COPY_BYTES:
            answer.record.ClearField("payload")
        answer.corrupt = self._why_corrupt(row)
        return answer

    async def RepairRecord(self, request: pb.RepairRecordRequest, context: Context) -> pb.RepairRecordResponse:
        self._deps.serving.check()
        data = request.SerializeToString(deterministic=True)
        request_hash = blake2b(data, digest_size=REQUEST_HASH_BYTES).digest()
        call = Call(request.key, PRINCIPAL, request.request_id, request_hash)
        above = version_from_pb(request.above) if request.HasField("above") else NEVER
        change = self._only_corrupt(self._change(request), above)
        decide = partial(decide_write, me=self._ports.store, call=call, change=change, above=above)
        outcome = await self._deps.background.run(self._ports.records.write(call, decide))
        return pb.RepairRecordResponse(version=version_to_pb(outcome.version))

    def _change(self, request: pb.RepairRecordRequest) -> Change:
        if not request.HasField("content"):
            # No content: nothing of the record can be read that a tombstone should keep.
            return lambda row, version: Resource(b"", live=False, schema_version=0, answer=b"")
        content = request.content
        resource = Resource(content.payload, content.live, content.schema_version)
        now = self._deps.clock.now()
        return self._operations.replaced(request.key, resource, now, as_kept=content.as_kept)

    def _only_corrupt(self, change: Change, above: Version) -> Change:
        """`above`: version of a corrupt record at the other store, if it is newer than the one here."""

        def repair(row: Row | None, version: Version) -> Resource | Answered:
            if row is None:
                raise NoRecord
            if above <= row.version and not self._why_corrupt(row):
                raise RecordReadable
            return change(row, version)

        return repair

    def _why_corrupt(self, row: Row) -> str:
        try:
            self._operations.check_row(row)
        except UnreadableRecord as error:
            return error.message
        return ""
