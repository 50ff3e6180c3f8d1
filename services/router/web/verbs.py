"""The page's verbs. Each makes a plan from the fields of its form; nothing here changes anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from libs.errors import InvalidField
from libs.pb.baton.control.v1 import approvals_pb2, conflicts_pb2, events_pb2
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.record.v1 import record_pb2
from services.router.api.messages import PHASE_NUMBERS
from services.router.core import effects, phase
from services.router.core.canary import begin, parse_plan
from services.router.core.effects import STORE_NAMES
from services.router.core.gates import GATES
from services.router.core.phase import PHASES, Phase, Setting
from services.router.core.setting_message import phase_name, setting_from_pb
from services.router.web.calls import Caller
from services.router.web.plans import (
    MAX_INT32,
    Form,
    NotPossible,
    Plan,
    choice_of,
    number_of,
    permille_of,
    phase_of,
    rate_of,
    store_of,
)
from services.router.web.view import gates
from services.router.web.view.words import store as store_name

Verb = Callable[[Caller, Form], Awaitable[Plan]]
"""Raises BatonError, CallFailed."""

NO_GO_BACK = "There is no way back from this phase."
NOBODY_AT_A = "Afterwards B answers every call."


async def advance(caller: Caller, form: Form) -> Plan:
    planned = await caller.call("PlanPhase", pb.PlanPhaseRequest())
    to, before = phase_of(form), setting_from_pb(planned.setting)
    if not planned.next:
        raise NotPossible(planned.blocked)
    after = phase.advance(before, to)
    override = form.get("override") == "yes"
    left = [one for one in planned.gates if one.verdict != pb.VERDICT_PASS]
    fixed = [one for one in left if not GATES[one.name].overridable]
    confirm = "" if to not in _TYPED else phase.LAST_STEP_CONFIRM if not PHASES[to].way_back else to.value
    overridden = [(one.name, one.evidence) for one in left] if override else []
    request = pb.AdvancePhaseRequest(
        actor=caller.actor,
        override=override,
        generation=planned.setting.generation,
        to=PHASE_NUMBERS[to],
        confirm=confirm if not PHASES[to].way_back else "",
    )
    return Plan(
        f"Advance to {to.value}",
        [
            *effects.of_advance(before.phase.value, to.value, planned.effect, overridden),
            *effects.aside(before, after),
        ],
        "AdvancePhase",
        request,
        f"Advance to {to.value}",
        confirm,
        _TYPED.get(to, ""),
        needs_reason=override,
        gates=gates.gates(left if not override or fixed else ()),
        can_override=bool(left) and not fixed and not override,
        overridden=[name for name, _ in overridden],
    )


_TYPED = {Phase.CUTOVER: NOBODY_AT_A, Phase.DEPRECATED: NO_GO_BACK}


async def rollback(caller: Caller, form: Form) -> Plan:
    planned = await caller.call("PlanPhase", pb.PlanPhaseRequest())
    status = await caller.call("GetStatus", pb.GetStatusRequest())
    to, before = phase_of(form), setting_from_pb(planned.setting)
    after = phase.rollback(before, to)
    comes_home = after.hold
    note = status.rollback_cost.note if comes_home else effects.NO_COST
    return Plan(
        f"Roll back to {to.value}",
        [*effects.of_rollback(before.phase, to, note, comes_home=comes_home), *effects.aside(before, after)],
        "RollbackPhase",
        pb.RollbackPhaseRequest(actor=caller.actor, to=PHASE_NUMBERS[to], generation=before.generation),
        f"Roll back to {to.value}",
    )


async def canary(caller: Caller, form: Form) -> Plan:
    before, permille = await _setting(caller), permille_of(form)
    phase.set_canary(before, permille)
    return Plan(
        "Set the canary",
        effects.of_canary(before.canary_permille, permille),
        "SetCanary",
        pb.SetCanaryRequest(actor=caller.actor, permille=permille, generation=before.generation),
        f"Set {permille / 10:g} %",
    )


async def lift(caller: Caller, form: Form) -> Plan:
    before = await _setting(caller)
    phase.lift_hold(before)
    request = pb.LiftHoldRequest(actor=caller.actor, generation=before.generation)
    return Plan("Lift the hold", effects.of_lift(), "LiftHold", request, "Lift the hold")


async def flag(caller: Caller, form: Form) -> Plan:
    listed = await caller.call("ListFlags", pb.ListFlagsRequest())
    name = choice_of(form, "name", {one.name: one.name for one in listed.flags})
    value = choice_of(form, "value", {"true": True, "false": False, "unset": None})
    before = await _setting(caller)
    phase.set_flag(before, name, value)
    request = pb.SetFlagRequest(actor=caller.actor, generation=before.generation, name=name, value=value)
    return Plan("Set a switch", effects.of_flag(name, value), "SetFlag", request, "Set it")


async def job(caller: Caller, form: Form) -> Plan:
    action = choice_of(form, "action", {name.lower(): name for name in (*effects.JOB_EFFECTS, "TUNE")})
    found = (await caller.call("GetJob", pb.GetJobRequest(id=form.get("id", "")))).job
    rate = rate_of(form) if action == "TUNE" else 0.0
    words = effects.JOB_EFFECTS.get(action) or effects.of_tuning(rate)
    request = pb.ChangeJobRequest(
        actor=caller.actor, id=found.id, action=pb.ChangeJobRequest.Action.Value(f"ACTION_{action}"), rate=rate
    )
    title = f"{action.capitalize()} {found.id}"
    return Plan(title, [f"{found.id} {words}"], "ChangeJob", request, action.capitalize())


async def start(caller: Caller, form: Form) -> Plan:
    made: Mapping[str, Callable[[Caller, Form], Plan]] = {
        "audit": _audit,
        "backfill": _backfill,
        "reconcile": _reconcile,
    }
    return choice_of(form, "kind", made)(caller, form)  # type: ignore[no-any-return]


def _audit(caller: Caller, form: Form) -> Plan:
    percent = permille_of(form, "sample") / 10
    accept = ",".join(filter(None, (name.strip() for name in form.get("accept", "").split(","))))
    arguments = {"sample": f"{percent:g}", **({"accept": accept} if accept else {})}
    request = pb.StartJobRequest(actor=caller.actor, kind="audit", arguments=arguments)
    return Plan("Audit A's records", effects.of_audit(percent, accept), "StartJob", request, "Start the audit")


def _backfill(caller: Caller, form: Form) -> Plan:
    rate = rate_of(form)
    request = pb.StartJobRequest(actor=caller.actor, kind="backfill", arguments={"to": "B"}, rate=rate)
    return Plan("Copy every record to B", effects.of_backfill("B", rate), "StartJob", request, "Start the copy")


def _reconcile(caller: Caller, form: Form) -> Plan:
    repair = choice_of(form, "repair", {"yes": True, "no": False})
    arguments = {"repair": form["repair"], "deep": "no"}
    request = pb.StartJobRequest(actor=caller.actor, kind="reconcile", arguments=arguments)
    title = "Compare all records and repair" if repair else "Compare all records"
    return Plan(title, effects.of_reconcile(repair=repair), "StartJob", request, "Start it")


async def shadow(caller: Caller, form: Form) -> Plan:
    before, permille = await _setting(caller), permille_of(form)
    same = choice_of(form, "with", {"other": False, "same": True})
    phase.set_shadow(before, permille, same=same)
    request = pb.SetShadowRequest(actor=caller.actor, permille=permille, same=same, generation=before.generation)
    words = effects.of_shadow(before.shadow_permille, permille, same=same)
    return Plan("Compare reads", words, "SetShadow", request, f"Compare {permille / 10:g} %")


async def walk(caller: Caller, form: Form) -> Plan:
    # A form has other line ends than the file of the command.
    text, before = form.get("plan", "").replace("\r\n", "\n"), await _setting(caller)
    plan = parse_plan(text)
    words = effects.of_walk(plan, begin(plan, before), before.canary_permille)
    request = pb.StartCanaryAutoRequest(actor=caller.actor, plan=text, generation=before.generation)
    return Plan("Walk the canary by a plan", words, "StartCanaryAuto", request, "Start the walk")


async def stop(caller: Caller, form: Form) -> Plan:
    status = await caller.call("GetStatus", pb.GetStatusRequest())
    if not status.canary_auto.running:
        raise NotPossible("no walk is under way")
    words = effects.of_stop(status.setting.canary_permille)
    return Plan("Stop the walk", words, "StopCanaryAuto", pb.StopCanaryAutoRequest(actor=caller.actor), "Stop it")


async def rehearse(caller: Caller, form: Form) -> Plan:
    buckets, before = number_of(form, "buckets", MAX_INT32), await _setting(caller)
    phase.begin_rehearsal(before, (0,))
    request = pb.StartRehearsalRequest(actor=caller.actor, buckets=buckets, generation=before.generation)
    return Plan("Rehearse a rollback", effects.of_rehearsal(buckets), "StartRehearsal", request, "Rehearse it")


async def seize(caller: Caller, form: Form) -> Plan:
    lost = choice_of(form, "store", {name: letter for letter, name in STORE_NAMES.items()})
    status = await caller.call("GetStatus", pb.GetStatusRequest())
    seen = next((one for one in status.stores if store_name(one.store) == lost), pb.StoreStatus())
    if seen.reachable:
        raise NotPossible(f"{STORE_NAMES[lost]} answers: only a lost store is seized from")
    owned = seen.owned_records if seen.HasField("owned_records") else None
    name = STORE_NAMES[lost]
    return Plan(
        f"Seize from {name}",
        effects.of_seizure(lost, owned, seen.outbox_entries),
        "StartJob",
        pb.StartJobRequest(actor=caller.actor, kind="seize", arguments={"store": lost, "confirm": name}),
        f"Seize from {name}",
        name,
        f"You confirm that no process of {name} serves, or will be started, until this is done.",
    )


async def parked(caller: Caller, form: Form) -> Plan:
    at, partition, offset = store_of(form), number_of(form, "partition", MAX_INT32), number_of(form, "offset")
    shown = f"{store_name(at)}: event {partition}/{offset}"
    if choice_of(form, "action", {"retry": True, "drop": False}):
        request = events_pb2.RetryParkedRequest(store=at, partition=partition, offset=offset)
        return Plan("Retry a parked event", [f"{shown} is retried"], "RetryParked", request, "Retry it")
    return Plan(
        "Drop a parked event",
        [f"{shown}: it is never applied and dropped for good"],
        "DropParked",
        events_pb2.DropParkedRequest(actor=caller.actor, store=at, partition=partition, offset=offset),
        "Drop it",
        needs_reason=True,
    )


async def resolve(caller: Caller, form: Form) -> Plan:
    version = record_pb2.Version(term=number_of(form, "term"), revision=number_of(form, "revision"))
    at, key = store_of(form), form.get("key", "")
    return Plan(
        "Resolve a conflict",
        [f"{key} at {version.term}-{version.revision} is marked as resolved in the journal of {store_name(at)}"],
        "ResolveConflict",
        conflicts_pb2.ResolveConflictRequest(actor=caller.actor, store=at, key=key, version=version),
        "Mark as resolved",
        needs_reason=True,
    )


async def approve(caller: Caller, form: Form) -> Plan:
    call = await _pending(caller, form)
    request = approvals_pb2.ApproveCallRequest(actor=caller.actor, id=call.id)
    words = [call.effect, f"called by {call.subject}{f': {call.reason}' if call.reason else ''}"]
    return Plan("Approve a call", [*words, f"{call.method} {call.request_json}"], "ApproveCall", request, "Approve it")


async def withdraw(caller: Caller, form: Form) -> Plan:
    call = await _pending(caller, form)
    request = approvals_pb2.WithdrawCallRequest(actor=caller.actor, id=call.id)
    words = [f"this call does not run: {call.effect}", f"called by {call.subject}"]
    return Plan("Withdraw a call", words, "WithdrawCall", request, "Withdraw it")


async def _pending(caller: Caller, form: Form) -> approvals_pb2.PendingCall:
    """Raises InvalidField, CallFailed."""
    listed = await caller.call("ListPendingCalls", approvals_pb2.ListPendingCallsRequest())
    for call in listed.calls:
        if call.id == form.get("id"):
            found: approvals_pb2.PendingCall = call
            return found
    raise InvalidField("id", form.get("id", ""), "a call that waits for approval")


async def _setting(caller: Caller) -> Setting:
    """Raises CallFailed."""
    return setting_from_pb((await caller.call("PlanPhase", pb.PlanPhaseRequest())).setting)


VERBS: Mapping[str, Verb] = {
    one.__name__: one
    for one in (
        advance,
        rollback,
        canary,
        lift,
        flag,
        job,
        start,
        shadow,
        walk,
        stop,
        rehearse,
        seize,
        parked,
        resolve,
        approve,
        withdraw,
    )
}


def agreed(plan: Plan, form: Form) -> Any:
    """The request of a plan that the operator has agreed to: with their reason, with the generation and over no other
    gates than they were shown. Raises InvalidField, NotPossible."""
    if plan.gates:
        raise NotPossible("these gates do not pass: " + ", ".join(gate.name for gate in plan.gates))
    unseen = set(plan.overridden).difference(form.get("overridden", "").split(","))
    if unseen:
        names = ", ".join(sorted(unseen))
        raise NotPossible(f"since the plan was shown, these gates do not pass either: {names}; nothing was changed")
    typed = form.get("confirm", "").strip()
    if plan.confirm and typed != plan.confirm:
        raise InvalidField("confirm", typed, f"type {plan.confirm}; nothing was changed")
    reason = form.get("reason", "").strip()
    if plan.needs_reason and not reason:
        raise InvalidField("reason", reason, "the journal keeps it; nothing was changed")
    request = plan.request
    names = request.DESCRIPTOR.fields_by_name
    if "reason" in names:
        request.reason = reason
    if "generation" in names:
        request.generation = number_of(form, "generation")
        if not request.generation:
            raise InvalidField("generation", 0, "the generation that was shown")
    return request


def result(answer: Any) -> str:
    """The outcome in words."""
    if hasattr(answer, "setting"):
        setting = answer.setting
        return f"Now {phase_name(setting.phase).value}, generation {setting.generation}."
    if hasattr(answer, "job") and not isinstance(answer.job, str):
        return f"{answer.job.id}: {pb.Job.State.Name(answer.job.state).removeprefix('STATE_').lower()}."
    if isinstance(answer, events_pb2.RetryParkedResponse):
        return answer.reason or ("Applied." if answer.applied else "The store had this version or a later one.")
    return "Done."
