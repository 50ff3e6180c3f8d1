"""The operator's API for flags, and the explanation of where calls go."""

from __future__ import annotations

from typing import Protocol

from libs.ownership.wire import STORE_NUMBERS, version_to_pb
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.record.v1 import record_pb2
from libs.rpc.errors import Context
from services.router.api.messages import flag_to_pb, setting_to_pb
from services.router.flows.calls.explain import Explainer, RowView
from services.router.flows.steering.flags import Switches
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache


class FlagParts(Protocol):
    """The flows behind these methods."""

    @property
    def migration(self) -> Migration: ...

    @property
    def cache(self) -> SettingCache: ...

    @property
    def switches(self) -> Switches: ...

    @property
    def explainer(self) -> Explainer: ...


class FlagMethods:
    """A part of the control servicer."""

    _flags: FlagParts

    async def ListFlags(self, request: pb.ListFlagsRequest, context: Context) -> pb.ListFlagsResponse:  # noqa: N802
        return pb.ListFlagsResponse(flags=flags_of(self._flags), generation=self._flags.cache.current.generation)

    async def SetFlag(self, request: pb.SetFlagRequest, context: Context) -> pb.SetFlagResponse:  # noqa: N802
        self._flags.switches.names.check(request.name)
        decision = Decision(request.actor, request.reason, request.generation)
        value = request.value if request.HasField("value") else None
        setting = await self._flags.migration.set_flag(decision, request.name, value)
        return pb.SetFlagResponse(setting=setting_to_pb(setting))

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:  # noqa: N802
        parts = self._flags
        found = await parts.explainer.explain(request.key, request.operation)
        names = parts.switches.names
        steering = {names.everything, names.of_operation(request.operation)}
        return pb.ExplainResponse(
            target=STORE_NUMBERS[found.target.store],
            rule=found.target.rule,
            because=found.because,
            setting=setting_to_pb(found.setting),
            setting_stale=parts.cache.stale,
            bucket=found.bucket,
            canary_buckets=found.canary_buckets,
            flags=[flag for flag in flags_of(parts) if flag.name in steering],
            rows=[_row_to_pb(row) for row in found.rows],
            then=found.then,
        )


def flags_of(parts: FlagParts) -> list[pb.Flag]:
    trouble = "the control store is out of reach" if parts.cache.stale else ""
    return [flag_to_pb(view) for view in parts.switches.views(parts.cache.age_seconds, trouble)]


def _row_to_pb(row: RowView) -> pb.ExplainResponse.Row:
    return pb.ExplainResponse.Row(
        store=STORE_NUMBERS[row.store],
        trouble=row.trouble,
        exists=row.exists,
        live=row.live,
        version=version_to_pb(row.version) if row.exists else None,
        owner=STORE_NUMBERS[row.owner] if row.owner else record_pb2.STORE_UNSPECIFIED,
    )
