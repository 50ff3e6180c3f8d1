"""`baton approve`, `baton approvals`, `baton withdraw` and `baton two-person`: steps that need a second person."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli import complete
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Changing, Common, Starting, agree, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from libs.pb.baton.control.v1.approvals_pb2 import PendingCall
    from services.router.cli.client import Control

SWITCH = {"on": True, "off": False}


def register(app: typer.Typer) -> None:
    command(app, "approvals", Common)(approvals)
    command(app, "approve", Starting)(approve)
    command(app, "withdraw", Changing)(withdraw)
    command(app, "two-person", Changing)(two_person)


def approvals(options: Common) -> None:
    """List the calls that wait for a second admin. They expire after ten minutes.

    \b
    JSON keys: two_person
      calls: list of {PendingCall}
    """
    from libs.pb.baton.control.v1 import approvals_pb2 as pb
    from services.router.cli import show, views
    from services.router.cli.client import control

    with control(options) as router:
        answer = router.call("ListPendingCalls", pb.ListPendingCallsRequest())
    view = views.view_of(answer)
    if options.json:
        show.print_json(view)
        return
    for call in view["calls"]:
        outdated = ", OUTDATED: the setting has changed since" if call["outdated"] else ""
        reason = f": {call['reason']}" if call["reason"] else ""
        show.show(f"{call['id']}  {call['effect']}\n  called by {call['subject']}{reason}{outdated}")
    if not view["calls"]:
        show.show("no call waits" if view["two_person"] else "no call waits; the two-person rule is off")


CallId = Annotated[
    str, typer.Argument(metavar="ID", help="An id from `baton approvals`.", autocompletion=complete.calls)
]


def approve(
    options: Starting,
    call_id: CallId,
    wait: Annotated[bool, typer.Option("--wait", help="If it starts a job: wait until that has finished.")] = False,
) -> None:
    """Run a call that another admin has made. --dry-run shows what would run.

    \b
    JSON keys: those of {PendingCall}, dry_run effects
      answer: the call's answer, null after a dry run
    """
    from libs.pb.baton.control.v1 import approvals_pb2 as pb
    from services.router.cli import show, views
    from services.router.cli.client import control

    with control(options) as router:
        call = _waiting(router, call_id)
        request = " ".join(call.request_json.split())
        agreed = agree(options, [call.effect, _caller(call), f"{call.method} {request}"])
        answer = None
        if agreed:
            order = pb.ApproveCallRequest(actor=options.who, reason=options.reason, id=call_id)
            answer = json.loads(router.call("ApproveCall", order).answer_json)
            if wait and (job := (answer.get("job") or {}).get("id")):
                from services.router.cli.jobs import follow

                follow(router, options, job)
    if options.json:
        show.print_json({**views.view_of(call), **agreed.view, "answer": answer})
    elif agreed:
        show.show("done")


def withdraw(options: Changing, call_id: CallId) -> None:
    """End the wait of a call; it does not run. For its caller and for admins.

    \b
    JSON keys: those of {PendingCall}, dry_run effects
    """
    from libs.pb.baton.control.v1 import approvals_pb2 as pb
    from services.router.cli import show, views
    from services.router.cli.client import control

    with control(options) as router:
        call = _waiting(router, call_id)
        agreed = agree(options, [f"this call does not run: {call.effect}", _caller(call)])
        if agreed:
            order = pb.WithdrawCallRequest(actor=options.who, reason=options.reason, id=call_id)
            router.call("WithdrawCall", order)
    if options.json:
        show.print_json({**views.view_of(call), **agreed.view})
    elif agreed:
        show.show("withdrawn")


def _waiting(router: Control, call_id: str) -> PendingCall:
    """Raises CommandFailed."""
    from libs.pb.baton.control.v1 import approvals_pb2 as pb

    listed: Sequence[PendingCall] = router.call("ListPendingCalls", pb.ListPendingCallsRequest()).calls
    for call in listed:
        if call.id == call_id:
            return call
    raise CommandFailed(f"no call {call_id!r} waits for approval: baton approvals lists them")


def _caller(call: PendingCall) -> str:
    return f"called by {call.subject}{f': {call.reason}' if call.reason else ''}"


def two_person(
    options: Changing,
    switch: Annotated[str, typer.Argument(metavar="on|off", help="Off needs a second admin itself.")],
) -> None:
    """Let steps without a way back need a second admin: DEPRECATED, seizures,
    drops of unauthenticated events. Rollbacks never do.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
    """
    word = switch.strip().lower()
    if word not in SWITCH:
        raise CommandFailed(f"two-person: {switch!r} is not a value: on or off", Exit.USAGE)
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control
    from services.router.cli.setting_change import Change, plan_of
    from services.router.core.approvals import set_two_person

    with control(options) as router:
        planned = plan_of(router)
        request = pb.SetTwoPersonRequest(
            actor=options.who, reason=options.reason, generation=planned.setting.generation, on=SWITCH[word]
        )
        effects = {
            "on": ["DEPRECATED, seizures and drops of unauthenticated events wait for a second admin"],
            "off": ["one admin alone can enter DEPRECATED, seize, and drop unauthenticated events"],
        }[word]
        change = Change(lambda now: set_two_person(now, on=SWITCH[word]), "SetTwoPerson", request, effects)
        change.run(options, router, planned)
