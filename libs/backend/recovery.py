# ruff: noqa: N802 - the methods are named as in the .proto.
"""The recovery API of a store, over its ports. A fenced store and a store that does not serve yet answer it too."""

from __future__ import annotations

from collections.abc import Mapping

from libs.backend.checks import MAX_KEYS, MAX_RECORDS, check_buckets, check_count, check_limit
from libs.backend.feed import ApplyLoop
from libs.backend.serving import AdmissionLoop, Serving
from libs.errors import BatonError, InvalidField
from libs.ownership.limits import MAX_EVENT_BYTES
from libs.ownership.model import BUCKETS
from libs.ownership.orders import Order, check_order
from libs.ownership.terms import RowTooLarge
from libs.ownership.wire import (
    STORE_NUMBERS,
    bucket_from_pb,
    bucket_to_pb,
    order_from_pb,
    order_to_pb,
    version_from_pb,
    version_to_pb,
)
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.pb.baton.replication.v1.recovery_pb2_grpc import (
    RecoveryServiceServicer,
    add_RecoveryServiceServicer_to_server,
)
from libs.rpc.errors import Context
from libs.rpc.limits import ANSWER_BYTES
from libs.rpc.server import TypedService
from libs.store.port import StorePorts
from libs.store.recovery import Identity

MAX_TEXT_CHARACTERS = 1000


class LogNotRead(BatonError):
    """The store has not read the log to its end: a seizure would miss the remaining events."""

    code = "FAILED_PRECONDITION"
    reason = "LOG_NOT_READ"
    retry_seconds = 0.5


class FencedForAnotherReason(BatonError):
    """The store is fenced for another reason than the one that was repaired; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "RECOVERY_OVER"


class NotGone(BatonError):
    """The store is not fenced: this request is for fenced stores only."""

    code = "FAILED_PRECONDITION"
    reason = "NOT_FENCED"


class RecoveryApi(RecoveryServiceServicer):
    """Raises InvalidField, NotGone, LogNotRead, StoreNotReady, and the ports' errors. Requests with an order also raise
    LateOrder and ForeignControl, with nothing changed."""

    def __init__(self, ports: StorePorts, serving: Serving, admission_loop: AdmissionLoop, feed: ApplyLoop) -> None:
        self._ports = ports
        self._feed = feed
        self._serving = serving
        self._admission_loop = admission_loop

    def service(self) -> TypedService:
        name = pb.DESCRIPTOR.services_by_name["RecoveryService"].full_name
        return TypedService(name, self, add_RecoveryServiceServicer_to_server)

    async def GetStanding(self, request: pb.GetStandingRequest, context: Context) -> pb.GetStandingResponse:
        standing = await self._ports.recovery.standing()
        answer = pb.GetStandingResponse(
            store=STORE_NUMBERS[self._ports.store],
            now=_identity_to_pb(standing.now),
            serving=self._serving.serving,
            fence_reason=standing.fence_reason,
            conflicts=standing.conflicts,
        )
        if standing.other is not None:
            answer.other.CopyFrom(_identity_to_pb(standing.other))
        if standing.order is not None:
            answer.order.CopyFrom(order_to_pb(standing.order))
        if request.bucket_owners:
            answer.bucket_owners.extend(bucket_to_pb(one) for one in await self._ports.transfers.bucket_owners())
        return answer

    async def FenceStore(self, request: pb.FenceStoreRequest, context: Context) -> pb.FenceStoreResponse:
        _check_text("reason", request.reason)
        was_serving = self._serving.serving
        await self._check_numbered(request)
        await self._ports.recovery.fence(request.reason, order=_order(request))
        await self._admission_loop.fence((await self._ports.recovery.standing()).fence_reason)
        return pb.FenceStoreResponse(was_serving=was_serving)

    async def SeizeBuckets(self, request: pb.SeizeBucketsRequest, context: Context) -> pb.SeizeBucketsResponse:
        self._serving.check()
        check_buckets([one.bucket for one in request.buckets])
        await self._check_read(request.ends)
        await self._take(request)
        answer = pb.SeizeBucketsResponse()
        for one in request.buckets:
            try:
                answer.bucket_owners.append(bucket_to_pb(await self._ports.seizures.seize(one.bucket, one.term)))
            except RowTooLarge as error:
                if not request.name_refused:
                    raise
                answer.refused.add(bucket=one.bucket, reason=error.message)
        return answer

    async def _check_read(self, ends: Mapping[int, int]) -> None:
        if not ends:
            raise InvalidField("ends", "", "the end of the log, by partition")
        if self._feed.replaced:
            raise LogNotRead(self._feed.replaced)
        state = await self._ports.feed.state()
        for partition, end in ends.items():
            if state.next_offsets.get(partition, 0) < end:
                raise LogNotRead(
                    f"partition {partition}: the log ends at {end}, this store has read to"
                    f" {state.next_offsets.get(partition, 0)}"
                )
        if state.parked_now:
            raise LogNotRead(f"{state.parked_now} parked events are not applied: retry or drop them first")

    async def TakeTerms(self, request: pb.TakeTermsRequest, context: Context) -> pb.TakeTermsResponse:
        await self._check_fenced()
        check_count(request.bucket_owners, "bucket_owners", BUCKETS)
        await self._take(request)
        await self._ports.seizures.take_terms([bucket_from_pb(bucket_owner) for bucket_owner in request.bucket_owners])
        return pb.TakeTermsResponse()

    async def SettleRows(self, request: pb.SettleRowsRequest, context: Context) -> pb.SettleRowsResponse:
        await self._check_fenced()
        limit = check_limit(request.limit, MAX_RECORDS)
        await self._take(request)
        settled = await self._ports.seizures.settle(limit)
        return pb.SettleRowsResponse(settled=settled)

    async def OpenStore(self, request: pb.OpenStoreRequest, context: Context) -> pb.OpenStoreResponse:
        """A late order must not open a store that was fenced again since."""
        await self._check_numbered(request)
        order = _order(request)
        standing = await self._ports.recovery.standing()
        gone = standing.fence_reason
        if gone and gone != request.fence_reason:
            raise FencedForAnotherReason(
                f"the store is fenced for another reason than the one that was repaired: {gone}"
            )
        if gone:
            await self._ports.recovery.reopen(order=order, seen=standing)
        elif order is not None:
            # Already open: the answer was lost, and the recovery has ended.
            await self._ports.recovery.take_order(order)
        return pb.OpenStoreResponse()

    async def TakeOrder(self, request: pb.TakeOrderRequest, context: Context) -> pb.TakeOrderResponse:
        if not request.HasField("order"):
            raise InvalidField("order", "", "an order of a recovery")
        await self._take(request)
        return pb.TakeOrderResponse()

    async def RecheckStore(self, request: pb.RecheckStoreRequest, context: Context) -> pb.RecheckStoreResponse:
        await self._check_fenced()
        await self._take(request)
        return pb.RecheckStoreResponse(fence_reason=await self._admission_loop.recheck())

    async def NoteOther(self, request: pb.NoteOtherRequest, context: Context) -> pb.NoteOtherResponse:
        _check_text("other.database", request.other.database)
        other = Identity(request.other.database, request.other.changes)
        if request.anew:
            await self._take(request)
        await self._ports.recovery.note_other(other, anew=request.anew)
        return pb.NoteOtherResponse()

    async def SkipTo(self, request: pb.SkipToRequest, context: Context) -> pb.SkipToResponse:
        await self._check_fenced()
        if any(partition < 0 or offset < 0 for partition, offset in request.next_offsets.items()):
            raise InvalidField("next_offsets", dict(request.next_offsets), "partitions and offsets, from 0 on")
        await self._take(request)
        await self._ports.recovery.skip_to(request.next_offsets)
        return pb.SkipToResponse()

    async def ListConflicts(self, request: pb.ListConflictsRequest, context: Context) -> pb.ListConflictsResponse:
        """Returns the first conflicts, at least one, up to ANSWER_BYTES of events."""
        answer = pb.ListConflictsResponse()
        size = 0
        for one in await self._ports.seizures.conflicts(check_limit(request.limit, MAX_KEYS)):
            left_out = len(one.event) if len(one.event) > MAX_EVENT_BYTES else 0
            size += 0 if left_out else len(one.event)
            if answer.conflicts and size > ANSWER_BYTES:
                break
            answer.conflicts.add(
                key=one.key,
                version=version_to_pb(one.version),
                why=one.why.value,
                event=b"" if left_out else one.event,
                resolution=one.resolution,
                left_out_bytes=left_out,
            )
        return answer

    async def ResolveConflict(self, request: pb.ResolveConflictRequest, context: Context) -> pb.ResolveConflictResponse:
        _check_text("resolution", request.resolution)
        version = version_from_pb(request.version)
        resolved = await self._ports.seizures.resolve(request.key, version, request.resolution)
        return pb.ResolveConflictResponse(resolved=resolved)

    async def _take(self, request: Ordered) -> None:
        """Raises LateOrder, ForeignControl."""
        await self._check_numbered(request)
        if (order := _order(request)) is not None:
            await self._ports.recovery.take_order(order)

    async def _check_numbered(self, request: Ordered) -> None:
        """Check an order of an earlier release, which has no number. Raises LateOrder once the store has recorded one
        with a number."""
        if not request.HasField("order"):
            check_order((await self._ports.recovery.standing()).order, None)

    async def _check_fenced(self) -> None:
        if not (await self._ports.recovery.standing()).fence_reason:
            raise NotGone


Ordered = (
    pb.FenceStoreRequest
    | pb.SeizeBucketsRequest
    | pb.TakeTermsRequest
    | pb.SettleRowsRequest
    | pb.OpenStoreRequest
    | pb.NoteOtherRequest
    | pb.SkipToRequest
    | pb.TakeOrderRequest
    | pb.RecheckStoreRequest
)


def _order(request: Ordered) -> Order | None:
    if not request.HasField("order"):
        return None
    _check_text("order.control", request.order.control)
    return order_from_pb(request.order)


def _check_text(field: str, value: str) -> None:
    if not value.strip() or len(value) > MAX_TEXT_CHARACTERS or "\0" in value:
        raise InvalidField(field, value, f"1 to {MAX_TEXT_CHARACTERS} characters")


def _identity_to_pb(identity: Identity) -> pb.Identity:
    return pb.Identity(database=identity.database, changes=identity.changes)
