"""The operator's API for unreadable records."""

from __future__ import annotations

from libs.errors import InvalidField
from libs.ownership.wire import STORE_NUMBERS, store_from_pb, version_to_pb
from libs.pb.baton.control.v1 import records_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.roles import actor_of
from services.router.flows.feed.repair import RecordAt, RecordRepair, Replacement
from services.router.flows.feed.reveal import Reveals
from services.router.flows.steering.migration import Decision

HEAD_BYTES = 64


class RecordMethods:
    """Methods of the control API."""

    def __init__(self, repair: RecordRepair, reveals: Reveals) -> None:
        self._repair = repair
        self._reveals = reveals

    async def ShowRecord(self, request: pb.ShowRecordRequest, context: Context) -> pb.ShowRecordResponse:  # noqa: N802
        if request.reveal:
            await self._reveals.note(actor_of(request.actor), request.reason, request.key)
        found = await self._repair.show(request.key, reveal=request.reveal)
        return pb.ShowRecordResponse(records=[_record_to_pb(one, reveal=request.reveal) for one in found])

    async def RepairRecord(  # noqa: N802
        self, request: pb.RepairRecordRequest, context: Context
    ) -> pb.RepairRecordResponse:
        by = request.WhichOneof("by")
        if by is None or (by == "delete" and not request.delete):
            raise InvalidField("by", "nothing", "delete, json or copy")
        copy = store_from_pb(request.copy, "copy") if by == "copy" else None
        wanted = Replacement(request.json if by == "json" else None, copy)
        decision = Decision(actor_of(request.actor), request.reason)
        done = await self._repair.repair(decision, request.key, wanted, dry_run=request.dry_run)
        version = None if done.version is None else version_to_pb(done.version)
        return pb.RepairRecordResponse(owner=STORE_NUMBERS[done.owner], version=version, effect=done.effect)


def _record_to_pb(one: RecordAt, *, reveal: bool) -> pb.RecordAt:
    answer = one.answer
    if one.trouble:
        return pb.RecordAt(store=STORE_NUMBERS[one.store], trouble=one.trouble)
    exists, record = answer.HasField("record"), answer.record
    return pb.RecordAt(
        store=STORE_NUMBERS[one.store],
        exists=exists,
        version=record.version if exists else None,
        owner=record.owner if exists else answer.bucket_owner.owner,
        live=record.live,
        schema_version=record.schema_version,
        bytes=answer.bytes,
        corrupt=answer.corrupt,
        content=one.content,
        head=record.payload[:HEAD_BYTES] if answer.corrupt and reveal else b"",
    )
