"""Commands that change the setting: phase, canary, hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli import canary_auto, cohorts, complete
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.inputs import parse_percent, parse_phase
from services.router.cli.options import Common, Moving, command
from services.router.cli.setting_change import Change, plan_of
from services.router.core import gates, phase
from services.router.core.effects import NO_COST, of_advance, of_canary, of_lift, of_rollback
from services.router.core.phase import PHASES, IllegalMove, Phase

if TYPE_CHECKING:
    from services.router.cli.views import View


NOTHING_TO_MOVE = {"records": 0, "seconds": 0.0, "writes_lost": 0, "possible": True, "note": NO_COST}


def register(app: typer.Typer) -> None:
    phases = typer.Typer(help="Plan, enter and leave phases.", no_args_is_help=True)
    command(phases, "plan", Common)(plan)
    command(phases, "advance", Moving)(advance)
    command(phases, "rollback", Moving)(rollback)
    app.add_typer(phases, name="phase")
    canary = typer.Typer(help="The share of buckets that goes to B.", no_args_is_help=True)
    # Without it, -5 is reported as an unknown option instead of a wrong percentage.
    command(canary, "set", Moving, context_settings={"ignore_unknown_options": True})(set_canary)
    canary_auto.add_to(canary)
    cohorts.add_to(canary)
    app.add_typer(canary, name="canary")
    hold = typer.Typer(help="The hold at A after a rollback.", no_args_is_help=True)
    command(hold, "lift", Moving)(lift)
    app.add_typer(hold, name="hold")


def plan(options: Common) -> None:
    """Show the next phase and the verdicts of its gates. Changes nothing.

    \b
    JSON keys: {Setting} next effect blocked
      gates: list of {Gate}
    Exits with 0 if the step is open, 3 or 4 if gates block it, 1 if there is
    no next step.
    """
    from services.router.cli import show, views
    from services.router.cli.client import control

    with control(options) as router:
        planned = plan_of(router)
    view = views.plan_view(planned)
    if options.json:
        show.print_json(view)
    else:
        _show_plan(view)
    if not planned.next:
        raise CommandFailed(planned.blocked)
    _check_gates(view, override=False)


def advance(
    options: Moving,
    to: Annotated[
        str, typer.Argument(metavar="TO", help="The phase to enter: the next one.", autocompletion=complete.next_phase)
    ],
    override: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Override gates that do not pass; the journal keeps the reason."),
    ] = None,
    confirm: Annotated[
        str,
        typer.Option(metavar="NAME", help="For DEPRECATED: simple_mcp, the store that may be shut down afterwards."),
    ] = "",
) -> None:
    """Enter the next phase if its gates pass. Other phases are refused.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects gates
    """
    if override is not None and not override.strip():
        raise CommandFailed("--override needs a reason: it is kept in the journal", Exit.USAGE)

    target = parse_phase(to)
    if not PHASES[target].way_back and confirm != phase.LAST_STEP_CONFIRM and not options.dry_run:
        raise CommandFailed(
            f"confirm: {confirm!r} is not valid: --confirm {phase.LAST_STEP_CONFIRM} confirms that this store may be"
            f" shut down: there is no rollback from {target.value}; nothing was changed",
            Exit.USAGE,
        )

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import views
    from services.router.cli.client import PHASE_NUMBERS, control
    from services.router.core.setting_message import setting_from_pb

    with control(options) as router:
        planned = plan_of(router)
        if not planned.next:
            raise CommandFailed(planned.blocked)
        try:
            phase.advance(setting_from_pb(planned.setting), target)
        except IllegalMove as error:
            raise CommandFailed(error.message) from None
        view = views.plan_view(planned)
        if not options.json:
            _show_plan(view)
        _check_gates(view, override=override is not None)
        request = pb.AdvancePhaseRequest(
            actor=options.who,
            reason=override if override is not None else options.reason,
            override=override is not None,
            generation=planned.setting.generation,
            to=PHASE_NUMBERS[target],
            confirm=confirm,
        )
        overridden = [(gate["name"], gate["evidence"]) for gate in _open(view)]
        effects = of_advance(view["phase"], view["next"], view["effect"], overridden)
        change = Change(lambda now: phase.advance(now, target), "AdvancePhase", request, effects)
        change.run(options, router, planned, extra=lambda: {"gates": view["gates"]})


def rollback(
    options: Moving,
    to: Annotated[
        str, typer.Argument(metavar="PHASE", help="An earlier phase.", autocompletion=complete.earlier_phases)
    ],
) -> None:
    """Return to an earlier phase at once, without gates. Prints the rollback cost first.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
      rollback_cost: {RollbackCost}
    """
    target = parse_phase(to)

    from libs.ownership.model import Store
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import views
    from services.router.cli.client import PHASE_NUMBERS, control

    with control(options) as router:
        planned = plan_of(router)
        status = views.status_view(router.call("GetStatus", pb.GetStatusRequest()))
        comes_home = PHASES[target].home is Store.A
        cost = status["rollback_cost"] if comes_home else NOTHING_TO_MOVE
        request = pb.RollbackPhaseRequest(
            actor=options.who,
            reason=options.reason,
            to=PHASE_NUMBERS[target],
            generation=planned.setting.generation,
        )
        effects = of_rollback(Phase(status["phase"]), target, str(cost["note"]), comes_home=comes_home)
        change = Change(lambda setting: phase.rollback(setting, target), "RollbackPhase", request, effects)
        change.run(options, router, planned, extra=lambda: {"rollback_cost": cost})


def set_canary(
    options: Moving,
    percent: Annotated[str, typer.Argument(metavar="PERCENT", help="0 to 100, in steps of 0.1.")],
) -> None:
    """Set the share of buckets that goes to B in DUAL_WRITE.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
    """
    permille = parse_percent(percent)

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control

    with control(options) as router:
        planned = plan_of(router)
        before = planned.setting.canary_permille
        request = pb.SetCanaryRequest(
            actor=options.who, reason=options.reason, permille=permille, generation=planned.setting.generation
        )
        effects = of_canary(before, permille)
        Change(lambda setting: phase.set_canary(setting, permille), "SetCanary", request, effects).run(
            options, router, planned
        )


def lift(options: Moving) -> None:
    """Let traffic follow the phase again after a rollback.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control

    with control(options) as router:
        planned = plan_of(router)
        request = pb.LiftHoldRequest(actor=options.who, reason=options.reason, generation=planned.setting.generation)
        Change(phase.lift_hold, "LiftHold", request, of_lift()).run(options, router, planned)


def _show_plan(view: View) -> None:
    from services.router.cli import show

    show.show(f"now  {show.setting_line(view)}")
    if view["next"]:
        show.show(f"next {view['next']}: {view['effect']}")
        show.show(show.gates_table(view["gates"]))


def _open(view: View) -> list[View]:
    return [gate for gate in view["gates"] if gate["verdict"] != "PASS"]


def _check_gates(view: View, *, override: bool) -> None:
    """Raises CommandFailed if the gates block the step."""
    open_gates = _open(view)
    fixed = [gate["name"] for gate in open_gates if not gates.GATES[gate["name"]].overridable]
    if not open_gates or (override and not fixed):
        return
    failing = [gate["name"] for gate in open_gates if gate["verdict"] == "FAIL"]
    advice = f"no override passes {', '.join(fixed)}" if fixed else "an override needs a reason: --override REASON"
    names = ", ".join(gate["name"] for gate in open_gates)
    code = Exit.BLOCKED if failing else Exit.INCONCLUSIVE
    raise CommandFailed(f"{view['next']} is not open, these gates do not pass: {names}; {advice}", code)
