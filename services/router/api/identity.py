"""The operator's API for a change of the callers' identities."""

from __future__ import annotations

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.messages import setting_to_pb
from services.router.api.roles import actor_of
from services.router.flows.steering.identity import IdentityChange
from services.router.flows.steering.migration import Decision


class IdentityMethods:
    """Methods of the control API."""

    def __init__(self, change: IdentityChange) -> None:
        self._change = change

    async def GetIdentity(self, request: pb.GetIdentityRequest, context: Context) -> pb.GetIdentityResponse:  # noqa: N802
        view = await self._change.view()
        answer = pb.GetIdentityResponse(
            generation=view.setting.generation,
            serves_subjects=view.setting.serves_subjects,
            in_force=view.in_force,
            obstacles=view.obstacles,
        )
        for process in view.processes:
            added = answer.processes.add(name=process.name, process=process.id, age_seconds=process.age_seconds)
            if process.identity is not None:
                added.public_auth = process.identity.public_auth
                added.public_auth_optional = process.identity.optional
                added.serves_subjects = process.identity.serves_subjects
        return answer

    async def SwitchIdentity(  # noqa: N802
        self, request: pb.SwitchIdentityRequest, context: Context
    ) -> pb.SwitchIdentityResponse:
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        setting = await self._change.switch(decision, serve_subjects=request.serve_subjects)
        return pb.SwitchIdentityResponse(setting=setting_to_pb(setting))
