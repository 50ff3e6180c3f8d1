"""The operator's API for cohorts."""

from __future__ import annotations

from collections.abc import Callable

from libs.errors import InvalidField
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import cohorts_pb2
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.messages import setting_to_pb
from services.router.api.roles import actor_of
from services.router.core.cohort_changes import MAX_COHORTS
from services.router.core.phase import Setting
from services.router.core.plan import Flags
from services.router.core.setting_message import cohort_from_pb
from services.router.flows.moving.cohort_records import CohortRecords, with_cohorts
from services.router.flows.steering.measure import Measurement, check_routers
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache


class CohortMethods:
    """Methods of the control API."""

    def __init__(
        self,
        migration: Migration,
        cache: SettingCache,
        measurement: Measurement,
        records: CohortRecords,
        flags: Callable[[], Flags],
        *,
        has_accounts: bool,
    ) -> None:
        self._migration = migration
        self._cache = cache
        self._measurement = measurement
        self._records = records
        self._flags = flags
        self._has_accounts = has_accounts

    async def AddCohort(self, request: pb.AddCohortRequest, context: Context) -> pb.AddCohortResponse:  # noqa: N802
        cohort = cohort_from_pb(request.cohort)
        if cohort.account and not self._has_accounts:
            raise InvalidField("account", cohort.account, "names: the contract marks no field as the account")
        # A router or a store of an earlier release would take the cohort's records back, or not find them.
        check_routers(self._measurement, "cohorts")
        await self._records.check()
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        setting = await self._migration.add_cohort(decision, cohort, first=request.first)
        return pb.AddCohortResponse(setting=setting_to_pb(setting))

    async def SetCohort(self, request: pb.SetCohortRequest, context: Context) -> pb.SetCohortResponse:  # noqa: N802
        check_routers(self._measurement, "cohorts")
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        setting = await self._migration.set_cohort(decision, request.name, request.permille)
        return pb.SetCohortResponse(setting=setting_to_pb(setting))

    async def RemoveCohort(  # noqa: N802
        self, request: pb.RemoveCohortRequest, context: Context
    ) -> pb.RemoveCohortResponse:
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        setting = await self._migration.remove_cohort(decision, request.name)
        return pb.RemoveCohortResponse(setting=setting_to_pb(setting))

    async def PreviewCohort(  # noqa: N802
        self, request: cohorts_pb2.PreviewCohortRequest, context: Context
    ) -> cohorts_pb2.PreviewCohortResponse:
        if len(request.cohorts) > MAX_COHORTS:
            raise InvalidField("cohorts", f"{len(request.cohorts)} cohorts", f"at most {MAX_COHORTS}")
        setting = await self._cache.refresh()
        after = with_cohorts(setting, map(cohort_from_pb, request.cohorts)) if request.assume else setting
        found = await self._records.preview(setting, after, self._flags(), request.name)
        return cohorts_pb2.PreviewCohortResponse(
            records=found.records,
            at_b=found.at_b,
            to_b=found.to[Store.B],
            to_a=found.to[Store.A],
            more=found.more,
        )


def earlier_routers(setting: Setting, measurement: Measurement) -> list[str]:
    """An alert for each live router that does not support cohorts, while there are cohorts."""
    names = measurement.without("cohorts") if setting.cohorts else ()
    return [
        f"router {name} is of an earlier release and moves the records of cohorts back: upgrade or stop it"
        for name in names
    ]
