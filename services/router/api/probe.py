"""The operator's API for synthetic calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.roles import actor_of
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.probe import Probe, ProbePlan

BEGUN = "probe begun"
"""The action in the journal."""


class ProbeMethods:
    """Methods of the control API."""

    def __init__(self, migration: Migration, probe: Probe) -> None:
        self._migration = migration
        self._probe = probe

    async def Probe(self, request: pb.ProbeRequest, context: Context) -> AsyncGenerator[pb.ProbeResponse, None]:  # noqa: N802
        plan = ProbePlan(request.seconds, request.rate, request.writes)
        self._probe.check(plan)
        extent = f"{plan.seconds:.0f} s, {plan.rate:.0f} calls/s, {'reads and writes' if plan.writes else 'reads'}"
        reason = f"{request.reason} ({extent})" if request.reason else extent
        await self._migration.note(Decision(actor_of(request.actor), reason), BEGUN)
        async with aclosing(self._probe.run(plan)) as told:
            async for counts in told:
                yield pb.ProbeResponse(
                    reads=counts.reads,
                    writes=counts.writes,
                    faults=counts.faults,
                    answered_by_a=counts.answered[Store.A.value],
                    answered_by_b=counts.answered[Store.B.value],
                    trouble=counts.trouble,
                    seconds=counts.seconds,
                )
