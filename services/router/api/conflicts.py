"""The operator's API for conflicts: changes that a seizure did not see."""

from __future__ import annotations

from libs.ownership.wire import STORE_NUMBERS, store_from_pb, version_from_pb
from libs.pb.baton.control.v1 import conflicts_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.roles import actor_of
from services.router.flows.feed.conflicts import ConflictAt, Conflicts
from services.router.flows.feed.reveal import Reveals
from services.router.flows.steering.migration import Decision


class ConflictMethods:
    """Methods of the control API."""

    def __init__(self, conflicts: Conflicts, reveals: Reveals) -> None:
        self._conflicts = conflicts
        self._reveals = reveals

    async def ListConflicts(  # noqa: N802
        self, request: pb.ListConflictsRequest, context: Context
    ) -> pb.ListConflictsResponse:
        if request.reveal:
            await self._reveals.note(actor_of(request.actor), request.reason, "conflicts")
        found, troubles = await self._conflicts.list(request.limit, reveal=request.reveal)
        return pb.ListConflictsResponse(conflicts=[_conflict_to_pb(one) for one in found], troubles=troubles)

    async def ResolveConflict(  # noqa: N802
        self, request: pb.ResolveConflictRequest, context: Context
    ) -> pb.ResolveConflictResponse:
        decision = Decision(actor_of(request.actor), request.reason)
        store = store_from_pb(request.store, "store")
        await self._conflicts.resolve(decision, store, request.key, version_from_pb(request.version))
        return pb.ResolveConflictResponse()


def _conflict_to_pb(one: ConflictAt) -> pb.Conflict:
    return pb.Conflict(
        store=STORE_NUMBERS[one.store],
        key=one.conflict.key,
        version=one.conflict.version,
        why=one.conflict.why,
        content=one.content,
        live=one.record.live,
        resolution=one.conflict.resolution,
    )
