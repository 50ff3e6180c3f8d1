"""`baton gates`: show and change the limits of gates and of automatic rollback while a migration runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from libs.text import plain
from services.router.cli import complete
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Changing, Common, command, without_command
from services.router.core.phase import Setting


def register(app: typer.Typer) -> None:
    gates = typer.Typer(help="Limits of gates and of automatic rollback: list, set or unset them.")
    without_command(gates, Common)(list_limits)
    command(gates, "set", Changing)(set_limits)
    command(gates, "unset", Changing)(unset_limits)
    app.add_typer(gates, name="gates")


def list_limits(options: Common) -> None:
    """List the limits of gates and of automatic rollback. `baton phase plan`
    shows the verdicts of the gates.

    \b
    JSON keys: generation
      limits: list of {Limit}
    usual: from this router's own settings, in force while is_set is false.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show
    from services.router.cli.client import control
    from services.router.cli.views import view_of

    with control(options) as router:
        answer = router.call("ListLimits", pb.ListLimitsRequest())
    view = view_of(answer)
    if options.json:
        show.print_json(view)
        return
    table = show.table_of("limit", "value", "usual", "meaning, runbook")
    for limit in view["limits"]:
        value = plain(limit["value"]) + (" (set)" if limit["is_set"] else "")
        page = of_limit(limit["name"])
        table.add_row(limit["name"], value, plain(limit["usual"]), f"{limit['sentence']}\n{page}".rstrip())
    show.show(table)


def of_limit(name: str) -> str:
    """The runbook of the first gate that has this limit, or of automatic rollback."""
    from services.router.core.gates import GATES
    from services.router.core.runbooks import BY_NAME, of_gate

    if name.startswith("rollback_"):
        return BY_NAME["automatic-rollback"].path
    gates = (gate.name for gate in GATES.values() for threshold in gate.thresholds if threshold.name == name)
    return of_gate(next(gates, ""))


def set_limits(
    options: Changing,
    assignments: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE...", help="As `baton gates` lists them: gate_error_calls=200.")
    ],
) -> None:
    """Change limits at every router, within a second. Needs --reason.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
    """
    _change(options, dict(_parsed(text) for text in assignments), [])


def unset_limits(
    options: Changing,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="As `baton gates` lists them.", autocompletion=complete.limits),
    ],
) -> None:
    """Return limits to the routers' own settings. Needs --reason.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
    """
    _change(options, {}, names)


def _parsed(text: str) -> tuple[str, float]:
    """Raises CommandFailed (usage)."""
    name, equals, value = text.partition("=")
    words = {"true": 1.0, "false": 0.0}
    try:
        return name.strip(), words[value.strip().lower()] if value.strip().lower() in words else float(value)
    except ValueError:
        shown = f"{text!r} is not valid: NAME=VALUE with a number, as gate_error_calls=200"
        raise CommandFailed(shown if equals else f"{text!r} has no value: NAME=VALUE", Exit.USAGE) from None


def _change(options: Changing, to_set: dict[str, float], unset: Sequence[str]) -> None:
    from dataclasses import replace

    from libs.errors import InvalidField
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control
    from services.router.cli.setting_change import Change, plan_of
    from services.router.core.limits import changed
    from services.router.core.phase import noted
    from services.router.core.setting_changes import changes
    from services.router.core.setting_message import setting_from_pb

    if not options.reason.strip():
        raise CommandFailed("--reason is required: the reason for the new limits; the journal keeps it", Exit.USAGE)

    def move(setting: Setting) -> Setting:
        return replace(noted(setting), limits=changed(setting.limits, to_set, tuple(unset)))

    with control(options) as router:
        planned = plan_of(router)
        before = setting_from_pb(planned.setting)
        try:
            effects = changes(before, move(before)) or ["no change: the limits have these values already"]
        except InvalidField as error:
            raise CommandFailed(error.message, Exit.USAGE) from None
        request = pb.SetLimitsRequest(
            actor=options.who, reason=options.reason, generation=before.generation, set=to_set, unset=unset
        )
        Change(move, "SetLimits", request, [*effects, "in force at every router within a second"]).run(
            options, router, planned
        )
