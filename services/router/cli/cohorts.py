"""`baton canary cohort`: records with a share of their own, which go to B first or stay at A last."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from libs.errors import BatonError
from libs.text import plain
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.inputs import parse_percent
from services.router.cli.options import Common, Moving, command
from services.router.core.cohorts import Cohort
from services.router.core.phase import PHASES, Setting

if TYPE_CHECKING:
    from libs.pb.baton.control.v1 import cohorts_pb2
    from services.router.cli.client import Control

View = dict[str, Any]

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the cohort.")]
Percent = Annotated[str, typer.Argument(metavar="PERCENT", help="0 to 100, in steps of 0.1; 0 stays at A.")]


def add_to(canary: typer.Typer) -> None:
    """Add these commands to the group `baton canary`."""
    cohort = typer.Typer(help="Records with a share of their own.", no_args_is_help=True)
    command(cohort, "list", Common)(list_cohorts)
    command(cohort, "add", Moving)(add)
    command(cohort, "set", Moving, context_settings={"ignore_unknown_options": True})(set_share)
    command(cohort, "remove", Moving)(remove)
    canary.add_typer(cohort, name="cohort")


def list_cohorts(options: Common) -> None:
    """Show the cohorts in the order in which they match, with their records.

    \b
    JSON keys: phase generation
      cohorts: list of name names account percent
        records at_b to_b to_a more
    to_b, to_a: records that are about to move. more: some are not counted.
    """
    from libs.pb.baton.control.v1 import cohorts_pb2
    from services.router.cli import show, views
    from services.router.cli.client import control
    from services.router.cli.setting_change import plan_of
    from services.router.core.setting_message import setting_from_pb

    with control(options) as router:
        setting = setting_from_pb(plan_of(router).setting)
        found = [
            {
                **views.cohort_view(cohort),
                **views.view_of(router.call("PreviewCohort", cohorts_pb2.PreviewCohortRequest(name=cohort.name))),
            }
            for cohort in _in_order(setting.cohorts)
        ]
    if options.json:
        show.print_json({"phase": setting.phase.value, "generation": setting.generation, "cohorts": found})
        return
    if not found:
        show.show("no cohorts")
        return
    table = show.table_of("cohort", "records", "share", "count", "at B", "to B", "to A")
    for view in found:
        rule = f"names {view['names']}" if view["names"] else f"account {view['account']}"
        counts = [str(view[name]) for name in ("at_b", "to_b", "to_a")]
        count = f"{view['records']}{'+' if view['more'] else ''}"
        table.add_row(view["name"], rule, f"{plain(view['percent'])} %", count, *counts)
    show.show(table)
    if not setting.rule.cohorts:
        show.show(f"cohorts steer in {_phases()}; the phase is {setting.phase.value}")


def add(
    options: Moving,
    name: Name,
    names: Annotated[str, typer.Option(metavar="PATTERN", help="A name, or the beginning of names and *.")] = "",
    account: Annotated[str, typer.Option(metavar="ACCOUNT", help="Instead: the account of the records.")] = "",
    percent: Annotated[str, typer.Option(help="Share that goes to B, 0 to 100; 0 stays at A.")] = "0",
    first: Annotated[bool, typer.Option("--first", help="Match before the other cohorts.")] = False,
) -> None:
    """Give records a share of their own in DUAL_WRITE and DUAL_READ.
    Prints how many records would move.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
      preview: {PreviewCohortResponse}
    """
    cohort = Cohort(name, names, account, parse_percent(percent))

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.core import cohort_changes
    from services.router.core.setting_message import cohort_to_pb

    _run(
        options,
        name,
        lambda setting: cohort_changes.add_cohort(setting, cohort, first=first),
        "AddCohort",
        pb.AddCohortRequest(cohort=cohort_to_pb(cohort), first=first),
        f"cohort {cohort}: these records follow it in {_phases()}, whatever the canary",
    )


def set_share(options: Moving, name: Name, percent: Percent) -> None:
    """Set the share of a cohort's records that goes to B. Prints how many
    records would move.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
      preview: {PreviewCohortResponse}
    """
    permille = parse_percent(percent)

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.core import cohort_changes

    _run(
        options,
        name,
        lambda setting: cohort_changes.set_share(setting, name, permille),
        "SetCohort",
        pb.SetCohortRequest(name=name, permille=permille),
        f"cohort {name} -> {plain(permille / 10)} %",
    )


def remove(options: Moving, name: Name) -> None:
    """Remove a cohort: its records follow canary and phase again. Prints how
    many would move.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
      preview: {PreviewCohortResponse}
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.core import cohort_changes

    _run(
        options,
        name,
        lambda setting: cohort_changes.remove_cohort(setting, name),
        "RemoveCohort",
        pb.RemoveCohortRequest(name=name),
        f"cohort {name} is removed: its records follow canary and phase",
    )


def _run(
    options: Moving, name: str, move: Callable[[Setting], Setting], method: str, request: Any, effect: str
) -> None:
    """Preview the change and make it. Raises CommandFailed."""
    from services.router.cli import views
    from services.router.cli.client import control
    from services.router.cli.setting_change import Change, plan_of
    from services.router.core.setting_message import setting_from_pb

    with control(options) as router:
        planned = plan_of(router)
        try:
            after = move(setting_from_pb(planned.setting))
        except BatonError as error:
            raise CommandFailed(error.message, Exit.USAGE) from None
        counted = _preview(router, name, after)
        request.actor, request.reason, request.generation = options.who, options.reason, planned.setting.generation
        effects = [effect, _moves(counted)]
        Change(move, method, request, effects).run(
            options, router, planned, extra=lambda: {"preview": views.view_of(counted)}
        )


def _preview(router: Control, name: str, after: Setting) -> cohorts_pb2.PreviewCohortResponse:
    from libs.pb.baton.control.v1 import cohorts_pb2
    from services.router.core.setting_message import cohort_to_pb

    request = cohorts_pb2.PreviewCohortRequest(name=name, assume=True, cohorts=map(cohort_to_pb, after.cohorts))
    answer: cohorts_pb2.PreviewCohortResponse = router.call("PreviewCohort", request)
    return answer


def _moves(counted: Any) -> str:
    going = [f"{count} to {store}" for store, count in (("B", counted.to_b), ("A", counted.to_a)) if count]
    of = f"of its {counted.records}{' or more' if counted.more else ''} records"
    return f"{of} {' and '.join(going)} move under traffic" if going else f"{of} none moves"


def _in_order(cohorts: tuple[Cohort, ...]) -> list[Cohort]:
    """Return the cohorts in the order in which they match."""
    return sorted(cohorts, key=lambda cohort: not cohort.names)


def _phases() -> str:
    return " and ".join(phase.value for phase, rule in PHASES.items() if rule.cohorts)
