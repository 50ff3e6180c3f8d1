"""The two-person rule of the operator's API: which calls need a second person, and their approval."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from google.protobuf.json_format import MessageToJson
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from libs.clock import Clock
from libs.errors import BatonError
from libs.identity.principal import ANONYMOUS_SUBJECT, Role, current_principal
from libs.pb.baton.control.v1 import approvals_pb2
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.messages import PHASES_BY_NUMBER, setting_to_pb, timestamp
from services.router.api.roles import RoleMissing, actor_of, resumes_admin_job
from services.router.core import phase as phases
from services.router.core.approvals import NewerCall, basis, live, waiting
from services.router.core.pending import EXPIRES_SECONDS, PendingCall
from services.router.core.phase import PHASES, Setting
from services.router.flows.jobs.recover import RECOVER, SEIZE
from services.router.flows.steering.measure import Measurement, check_routers
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache

_METHODS = pb.DESCRIPTOR.services_by_name["ControlService"].methods_by_name
_REASON_CHARACTERS = 700
"""The part of a reason that is kept beside the names of both people."""

Method = Callable[[Any, Context], Any]


class SecondPersonNeeded(BatonError):
    """A second admin must approve this call."""

    code = "FAILED_PRECONDITION"
    reason = "SECOND_PERSON_NEEDED"


class IdentityNeeded(BatonError):
    """The two-person rule needs operators with names: set control_auth to jwt, mtls or tokens at this router."""

    code = "FAILED_PRECONDITION"
    reason = "IDENTITY_NEEDED"


@dataclass(frozen=True, slots=True)
class Step:
    """A method that may take a step without a way back."""

    needs: Callable[[Any], bool]
    """Whether this request is such a step."""
    effect: Callable[[Any], str]
    check: Callable[[Any, Setting], object] = lambda request, setting: None
    """Refuses a request that cannot run on this setting, so that no second person is asked."""


def _is_seizure(request: pb.StartJobRequest) -> bool:
    return request.kind == SEIZE or (request.kind == RECOVER and request.arguments.get("recheck") != "true")


def _phase_effect(request: pb.AdvancePhaseRequest) -> str:
    phase = PHASES_BY_NUMBER[request.to]
    overridden = "; gates that do not pass are overridden" if request.override else ""
    return f"enter {phase.value}: {PHASES[phase].effect}{overridden}"


def _job_effect(request: pb.StartJobRequest) -> str:
    given = ", ".join(f"{name} {value}" for name, value in sorted(request.arguments.items()) if value)
    return f"start the job {request.kind}: {given}; the other store seizes the records of this store"


STEPS: Mapping[str, Step] = {
    "AdvancePhase": Step(
        lambda request: request.to == pb.PHASE_DEPRECATED,
        _phase_effect,
        lambda request, setting: phases.advance(setting, PHASES_BY_NUMBER[request.to]),
    ),
    "StartJob": Step(_is_seizure, _job_effect),
    "ChangeJob": Step(
        resumes_admin_job, lambda request: f"continue the job {request.id}, which seizes the records of a store"
    ),
    "DropParked": Step(
        lambda request: request.unauthenticated,
        lambda request: "drop all events without a right code that a store has parked",
    ),
    "SetTwoPerson": Step(lambda request: not request.on, lambda request: "switch the two-person rule off"),
}
"""Steps by method. None of them is a way back."""


class ApprovalMethods:
    """Methods of the control API, and the guard of the others."""

    def __init__(self, migration: Migration, cache: SettingCache, clock: Clock, measurement: Measurement) -> None:
        self._migration = migration
        self._measurement = measurement
        self._cache = cache
        self._clock = clock
        self._guarded: dict[str, Method] = {}
        """The methods in `STEPS`, as they run once they are approved."""

    def guarded(self, name: str, method: Method) -> Method:
        """The method behind the two-person rule."""
        step = STEPS.get(name)
        if step is None:
            return method
        self._guarded[name] = method

        @wraps(method)
        async def call(request: Any, context: Context) -> Any:
            # Read from the control store: a router whose last setting is old must not be a way around the rule.
            if step.needs(request) and (setting := await self._cache.refresh()).two_person:
                await self._record(name, request, setting)
            return await method(request, context)

        return call

    async def _record(self, name: str, request: Any, setting: Setting) -> None:
        """Raises SecondPersonNeeded, IdentityNeeded, and the errors of the step."""
        subject, step = _subject(), STEPS[name]
        step.check(request, setting)
        decision = Decision(actor_of(request.actor), request.reason, getattr(request, "generation", 0))
        content = request.SerializeToString(deterministic=True)
        now = self._clock.now()
        call = PendingCall(secrets.token_hex(4), name, content, subject, request.reason, basis(setting), now)
        call = await self._migration.record(decision, call)
        minutes = EXPIRES_SECONDS / 60
        raise SecondPersonNeeded(
            f"not done yet ({step.effect(request)}): a second admin must run `baton approve {call.id}` within"
            f" {minutes:.0f} minutes",
            id=call.id,
        )

    async def SetTwoPerson(  # noqa: N802
        self, request: pb.SetTwoPersonRequest, context: Context
    ) -> pb.SetTwoPersonResponse:
        _subject()
        if request.on:
            # Another router would take the steps alone, and drop the rule from the setting.
            check_routers(self._measurement, "two_person")
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        setting = await self._migration.set_two_person(decision, on=request.on)
        return pb.SetTwoPersonResponse(setting=setting_to_pb(setting))

    async def ListPendingCalls(  # noqa: N802
        self, request: approvals_pb2.ListPendingCallsRequest, context: Context
    ) -> approvals_pb2.ListPendingCallsResponse:
        setting = await self._cache.refresh()
        calls = [_call_to_pb(call, setting) for call in live(setting, self._clock.now())]
        return approvals_pb2.ListPendingCallsResponse(calls=calls, two_person=setting.two_person)

    async def ApproveCall(  # noqa: N802
        self, request: approvals_pb2.ApproveCallRequest, context: Context
    ) -> approvals_pb2.ApproveCallResponse:
        subject = _subject()
        decision = Decision(actor_of(request.actor), request.reason)
        before = await self._cache.refresh()
        _check_known(waiting(before, request.id, self._clock.now()))
        call, setting = await self._migration.approve(decision, request.id, subject)
        asked = _request_of(call)
        asked.actor = request.actor
        asked.reason = f"{asked.reason[:_REASON_CHARACTERS]} ({call.id}, called by {call.subject})".strip()
        if hasattr(asked, "generation"):
            # The approval made this generation, on the setting that the call was made on. The cache may be later.
            asked.generation = setting.generation
        answer = await self._guarded[call.method](asked, context)
        return approvals_pb2.ApproveCallResponse(call=_call_to_pb(call, before), answer_json=MessageToJson(answer))

    async def WithdrawCall(  # noqa: N802
        self, request: approvals_pb2.WithdrawCallRequest, context: Context
    ) -> approvals_pb2.WithdrawCallResponse:
        before = await self._cache.refresh()
        call = waiting(before, request.id, self._clock.now())
        principal = current_principal()
        if call.subject != principal.subject and not principal.has(Role.ADMIN):
            raise RoleMissing(f"{request.id} is the call of another operator: an admin may withdraw it")
        await self._migration.withdraw(Decision(actor_of(request.actor), request.reason), request.id)
        return approvals_pb2.WithdrawCallResponse(call=_call_to_pb(call, before))

    def alerts(self, setting: Setting) -> list[str]:
        """A line for each call that waits."""
        calls = live(setting, self._clock.now())
        return [f"{one.subject} asks for a second admin: {_effect(one)}: baton approve {one.id}" for one in calls]


def _subject() -> str:
    """Subject of the caller. Raises IdentityNeeded."""
    subject = current_principal().subject
    if subject == ANONYMOUS_SUBJECT:
        raise IdentityNeeded()
    return subject


def _request_of(call: PendingCall) -> Any:
    return GetMessageClass(_METHODS[call.method].input_type).FromString(call.request)


def _is_known(call: PendingCall) -> bool:
    """Whether this release can run the whole call: a router of a newer one may have recorded it."""
    return call.method in STEPS and not call.unknown and not UnknownFieldSet(_request_of(call))


def _check_known(call: PendingCall) -> None:
    """Raises NewerCall."""
    if not _is_known(call):
        raise NewerCall()


def _effect(call: PendingCall) -> str:
    if not _is_known(call):
        return f"{call.method}, a call of a newer release: approve it at a router of that release"
    return STEPS[call.method].effect(_request_of(call))


def _call_to_pb(call: PendingCall, setting: Setting) -> approvals_pb2.PendingCall:
    return approvals_pb2.PendingCall(
        id=call.id,
        method=call.method,
        request_json=MessageToJson(_request_of(call)) if call.method in STEPS else "{}",
        effect=_effect(call),
        subject=call.subject,
        reason=call.reason,
        request_time=timestamp(call.seconds),
        expire_time=timestamp(call.seconds + EXPIRES_SECONDS),
        outdated=call.basis != basis(setting),
    )
