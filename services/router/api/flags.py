"""The operator's API for flags, and the explanation of where calls go."""

from __future__ import annotations

from libs.ownership.wire import STORE_NUMBERS, version_to_pb
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.record.v1 import record_pb2
from libs.rpc.errors import Context
from services.router.api.messages import flag_to_pb, setting_to_pb
from services.router.api.roles import actor_of
from services.router.flows.calls.explain import Explainer, RowView
from services.router.flows.steering.flags import Switches
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache


class FlagMethods:
    """Methods of the control API."""

    def __init__(self, migration: Migration, cache: SettingCache, switches: Switches, explainer: Explainer) -> None:
        self._migration = migration
        self._cache = cache
        self._switches = switches
        self._explainer = explainer

    async def ListFlags(self, request: pb.ListFlagsRequest, context: Context) -> pb.ListFlagsResponse:  # noqa: N802
        return pb.ListFlagsResponse(
            flags=flags_of(self._switches, self._cache), generation=self._cache.current.generation
        )

    async def SetFlag(self, request: pb.SetFlagRequest, context: Context) -> pb.SetFlagResponse:  # noqa: N802
        self._switches.names.check(request.name)
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        value = request.value if request.HasField("value") else None
        setting = await self._migration.set_flag(decision, request.name, value)
        return pb.SetFlagResponse(setting=setting_to_pb(setting))

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:  # noqa: N802
        found = await self._explainer.explain(request.key, request.operation)
        names = self._switches.names
        steering = {names.everything, names.of_operation(request.operation)}
        return pb.ExplainResponse(
            target=STORE_NUMBERS[found.target.store],
            rule=found.target.rule,
            because=found.because,
            setting=setting_to_pb(found.setting),
            setting_stale=self._cache.stale,
            bucket=found.bucket,
            canary_buckets=found.canary_buckets,
            flags=[flag for flag in flags_of(self._switches, self._cache) if flag.name in steering],
            rows=[_row_to_pb(row) for row in found.rows],
            then=found.then,
        )


def flags_of(switches: Switches, cache: SettingCache) -> list[pb.Flag]:
    trouble = "the control store is out of reach" if cache.stale else ""
    return [flag_to_pb(view) for view in switches.views(cache.age_seconds, trouble)]


def _row_to_pb(row: RowView) -> pb.ExplainResponse.Row:
    return pb.ExplainResponse.Row(
        store=STORE_NUMBERS[row.store],
        trouble=row.trouble,
        exists=row.exists,
        live=row.live,
        version=version_to_pb(row.version) if row.exists else None,
        owner=STORE_NUMBERS[row.owner] if row.owner else record_pb2.STORE_UNSPECIFIED,
    )
