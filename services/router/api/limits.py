"""The operator's API for the limits of gates and of automatic rollback."""

from __future__ import annotations

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.messages import setting_to_pb
from services.router.api.roles import actor_of
from services.router.core.limits import THRESHOLDS
from services.router.core.thresholds import Limits
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache


class LimitMethods:
    """Methods of the control API."""

    def __init__(self, migration: Migration, cache: SettingCache, usual: Limits) -> None:
        """`usual`: this router's own settings."""
        self._migration = migration
        self._cache = cache
        self._usual = usual

    async def ListLimits(self, request: pb.ListLimitsRequest, context: Context) -> pb.ListLimitsResponse:  # noqa: N802
        setting = await self._cache.refresh()
        overlay = dict(setting.limits)
        answer = pb.ListLimitsResponse(generation=setting.generation)
        for threshold in THRESHOLDS.values():
            usual = self._usual.typed(threshold)
            answer.limits.add(
                name=threshold.name,
                value=overlay.get(threshold.name, usual),
                usual=usual,
                is_set=threshold.name in overlay,
                least=threshold.least,
                most=threshold.most,
                is_whole=threshold.is_whole,
                sentence=threshold.meaning,
            )
        return answer

    async def SetLimits(self, request: pb.SetLimitsRequest, context: Context) -> pb.SetLimitsResponse:  # noqa: N802
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        setting = await self._migration.set_limits(decision, dict(request.set), request.unset)
        return pb.SetLimitsResponse(setting=setting_to_pb(setting))
