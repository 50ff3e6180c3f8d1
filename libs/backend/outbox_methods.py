# ruff: noqa: N802 - the methods are named as in the .proto.
"""The part of the replication API for the outbox: the relay pulls changes, publishes them, and acknowledges them."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from libs.backend.checks import MAX_ACKS, MAX_RECORDS, check_count, check_limit, check_wait
from libs.backend.feed import ApplyLoop
from libs.backend.logged import LogWaits
from libs.backend.serving import Serving
from libs.clock import Clock
from libs.errors import BatonError
from libs.eventlog.identity import LogReplaced
from libs.ownership.model import Version
from libs.ownership.wire import version_from_pb, version_to_pb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceServicer
from libs.rpc.errors import Context, cut
from libs.store.aside import Refusal
from libs.store.outbox import ChangeEntry
from libs.store.port import StorePorts
from libs.tasks import all_or_none

log = logging.getLogger(__name__)

MAX_REASON_BYTES = 500


class FeedStopped(BatonError):
    """The event log was replaced: nothing is published until an operator restarts the feeds."""

    code = "FAILED_PRECONDITION"
    reason = LogReplaced.reason


class OutboxMethods(ReplicationServiceServicer):
    """Mixed into the servicer of the whole API."""

    _ports: StorePorts
    _feed: ApplyLoop
    _serving: Serving
    _clock: Clock
    _logged: LogWaits

    async def PullChanges(self, request: pb.PullChangesRequest, context: Context) -> pb.PullChangesResponse:
        self._serving.check_copies()
        self._feed.arrivals.auth.check_relay(request.relay_code)
        limit, wait_seconds = check_limit(request.limit, MAX_RECORDS), check_wait(request.wait_seconds)
        answer = pb.PullChangesResponse()
        if request.aside:
            for change, reason in await self._ports.aside.entries(limit):
                version = version_to_pb(change.version)
                answer.changes.add(key=change.key, version=version, event=change.event, aside_reason=reason)
            return answer
        self._logged.report_trouble(request.log_trouble, self._clock.monotonic())
        if self._feed.replaced:
            # Acknowledgements are of the former log, so they do not count.
            raise FeedStopped(self._feed.replaced)
        answer.takes_acknowledgements = True
        check_count(request.acknowledged, "acknowledged", MAX_ACKS)
        names = _names(request.acknowledged)
        # The events are durable: their writes need not wait for the outbox.
        self._logged.acknowledged(names)
        work: list[Coroutine[Any, Any, Any]] = [self._pull(limit, wait_seconds, names), self._ports.outbox.ack(names)]
        entries, _ = await all_or_none(work)
        for entry in entries or ():
            version = version_to_pb(entry.version)
            answer.changes.add(key=entry.key, version=version, event=entry.event, traceparent=entry.traceparent)
        return answer

    async def _pull(
        self, limit: int, wait_seconds: float, names: Sequence[tuple[str, Version]]
    ) -> list[ChangeEntry] | None:
        """Pull changes without those that are being acknowledged; None if the store leaves."""
        return await self._serving.unless_leaving(self._ports.outbox.pull(limit, wait_seconds, frozenset(names)))

    async def AckChanges(self, request: pb.AckChangesRequest, context: Context) -> pb.AckChangesResponse:
        self._serving.check_copies()
        check_count(request.changes, "changes", MAX_ACKS)
        names = _names(request.changes)
        ack = self._ports.aside.remove if request.aside else self._ports.outbox.ack
        acknowledged = await ack(names)
        self._logged.acknowledged(names)
        return pb.AckChangesResponse(acknowledged=acknowledged)

    async def SetChangesAside(self, request: pb.SetChangesAsideRequest, context: Context) -> pb.SetChangesAsideResponse:
        self._serving.check_copies()
        check_count(request.refusals, "refusals", MAX_ACKS)
        refusals = [
            Refusal(one.key, version_from_pb(one.version), cut(one.reason, MAX_REASON_BYTES))
            for one in request.refusals
        ]
        moved = await self._ports.aside.set_aside(refusals)
        for key, version in moved:
            log.error("the log refuses %s %d-%d, it is set aside", key, *version)
        self._logged.refused(moved)
        return pb.SetChangesAsideResponse(set_aside=len(moved))

    async def ListUnlogged(self, request: pb.ListUnloggedRequest, context: Context) -> pb.ListUnloggedResponse:
        self._serving.check_copies()
        check_count(request.changes, "changes", MAX_ACKS)
        names = _names(request.changes)
        waiting = await self._ports.outbox.unlogged(names)
        return pb.ListUnloggedResponse(
            changes=[one for one, name in zip(request.changes, names, strict=True) if name in waiting]
        )


def _names(names: Iterable[pb.AckChangesRequest.Name]) -> list[tuple[str, Version]]:
    return [(name.key, version_from_pb(name.version)) for name in names]
