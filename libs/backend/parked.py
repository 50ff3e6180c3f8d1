# ruff: noqa: N802 - the methods are named as in the .proto.
"""The part of the replication API for parked events and for a new start of the feed."""

from __future__ import annotations

from libs.backend.checks import MAX_KEYS, check_limit
from libs.backend.feed import ApplyLoop
from libs.backend.serving import Serving
from libs.eventlog.headers import unpack
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceServicer
from libs.rpc.errors import Context
from libs.rpc.limits import ANSWER_BYTES
from libs.store.port import StorePorts


class ParkedMethods(ReplicationServiceServicer):
    """Mixed into the servicer of the whole API."""

    _ports: StorePorts
    _feed: ApplyLoop
    _serving: Serving

    async def ListParked(self, request: pb.ListParkedRequest, context: Context) -> pb.ListParkedResponse:
        """Returns the first events, at least one, up to ANSWER_BYTES."""
        self._serving.check_copies()
        answer = pb.ListParkedResponse()
        size = 0
        position = (request.position.partition, request.position.offset) if request.HasField("position") else None
        for event in await self._ports.feed.parked(check_limit(request.limit, MAX_KEYS), position):
            size += len(event.event)
            if answer.parked and size > ANSWER_BYTES:
                break
            answer.parked.add(
                partition=event.partition,
                offset=event.offset,
                key=event.key,
                reason=event.reason,
                event=event.event,
                headers=[pb.ListParkedResponse.Header(name=name, value=value) for name, value in unpack(event.headers)],
                topic=event.topic,
                unauthenticated=event.unauthenticated,
            )
        return answer

    async def RetryParked(self, request: pb.RetryParkedRequest, context: Context) -> pb.RetryParkedResponse:
        self._serving.check_copies()
        feed = self._ports.feed
        found = await feed.parked(1, (request.partition, request.offset))
        if not found:
            return pb.RetryParkedResponse(found=False)
        reason, applied = await self._feed.arrivals.retry(found[0])
        return pb.RetryParkedResponse(found=True, reason=reason, applied=applied)

    async def RestartFeed(self, request: pb.RestartFeedRequest, context: Context) -> pb.RestartFeedResponse:
        self._serving.check_copies()
        return pb.RestartFeedResponse(next_offsets=await self._feed.restart())

    async def DropParked(self, request: pb.DropParkedRequest, context: Context) -> pb.DropParkedResponse:
        self._serving.check_copies()
        feed = self._ports.feed
        if request.unauthenticated:
            dropped = await feed.drop_unauthenticated()
        else:
            dropped = int(await feed.drop(request.partition, request.offset))
        return pb.DropParkedResponse(found=dropped > 0, dropped=dropped)
