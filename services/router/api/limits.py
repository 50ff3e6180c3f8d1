"""The operator's API for the limits of gates and of automatic rollback."""

from __future__ import annotations

from typing import Protocol

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.messages import setting_to_pb
from services.router.core.evidence import Limits
from services.router.core.judge import RollbackLimits
from services.router.core.limits import LIMITS
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache


class LimitParts(Protocol):
    """The flows behind these methods."""

    @property
    def migration(self) -> Migration: ...

    @property
    def cache(self) -> SettingCache: ...

    @property
    def usual_limits(self) -> tuple[Limits, RollbackLimits]:
        """Of this router's own settings."""
        ...


class LimitMethods:
    """A part of the control servicer."""

    _limits: LimitParts

    async def ListLimits(self, request: pb.ListLimitsRequest, context: Context) -> pb.ListLimitsResponse:  # noqa: N802
        setting = await self._limits.cache.refresh()
        overlay = dict(setting.limits)
        answer = pb.ListLimitsResponse(generation=setting.generation)
        for limit in LIMITS.values():
            usual = limit.typed(self._limits.usual_limits[limit.of_rollback])
            answer.limits.add(
                name=limit.name,
                value=overlay.get(limit.name, usual),
                usual=usual,
                is_set=limit.name in overlay,
                least=limit.least,
                most=limit.most,
                is_whole=limit.is_whole,
                sentence=limit.sentence,
            )
        return answer

    async def SetLimits(self, request: pb.SetLimitsRequest, context: Context) -> pb.SetLimitsResponse:  # noqa: N802
        decision = Decision(request.actor, request.reason, request.generation)
        setting = await self._limits.migration.set_limits(decision, dict(request.set), request.unset)
        return pb.SetLimitsResponse(setting=setting_to_pb(setting))
