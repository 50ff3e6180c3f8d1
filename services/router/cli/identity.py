"""`baton identity`: the authentication of clients, and the principal under which their requests are served."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from services.router.cli.failure import CommandFailed
from services.router.cli.options import Changing, Common, command


class Principals(StrEnum):
    SUBJECTS = "subjects"
    ANONYMOUS = "anonymous"


def register(app: typer.Typer) -> None:
    identity = typer.Typer(help="Change the identity of callers while they write.", no_args_is_help=True)
    command(identity, "status", Common)(status)
    command(identity, "switch", Changing)(switch)
    app.add_typer(identity, name="identity")


def status(options: Common) -> None:
    """Show how each process authenticates its clients, and under which principal it serves them.

    \b
    JSON keys: generation serves_subjects in_force obstacles
      processes: list of {IdentityProcess}
    in_force: every known process follows the setting.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show
    from services.router.cli.client import control
    from services.router.cli.views import view_of

    with control(options) as router:
        view = view_of(router.call("GetIdentity", pb.GetIdentityRequest()))
    if options.json:
        show.print_json(view)
        return
    table = show.table_of("process", "credentials", "requests are served under")
    for process in view["processes"]:
        needed = process["public_auth"] or "none"
        table.add_row(
            process["name"],
            f"{needed}, optional" if process["public_auth_optional"] else needed,
            "unknown: an earlier release" if process["serves_subjects"] is None else _name(process["serves_subjects"]),
        )
    show.show(table)
    wanted = f"served requests: {_name(view['serves_subjects'])}"
    show.show(wanted + (", in force at every process" if view["in_force"] else ", not in force at every process yet"))
    for obstacle in view["obstacles"]:
        show.show(f"no switch to subjects: {obstacle}")


def switch(
    options: Changing,
    to: Annotated[Principals, typer.Option("--to", help="subjects, or anonymous for the way back.")],
) -> None:
    """Change the principal under which requests are served. Retries keep their answers.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
    """
    from dataclasses import replace

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control
    from services.router.cli.setting_change import Change, plan_of
    from services.router.core.phase import noted
    from services.router.core.setting_changes import changes
    from services.router.core.setting_message import setting_from_pb

    serve_subjects = to is Principals.SUBJECTS
    with control(options) as router:
        planned = plan_of(router)
        before = setting_from_pb(planned.setting)
        obstacles = router.call("GetIdentity", pb.GetIdentityRequest()).obstacles
        if serve_subjects and obstacles:
            raise CommandFailed(f"{'; '.join(obstacles)}: nothing was changed")
        after = replace(noted(before), serves_subjects=serve_subjects)
        effects = changes(before, after) or ["no change: requests are served so already"]
        request = pb.SwitchIdentityRequest(
            actor=options.who, reason=options.reason, generation=before.generation, serve_subjects=serve_subjects
        )
        effects = [*effects, "in force at every process within a few seconds; attempts under either are recognised"]
        Change(
            lambda setting: replace(noted(setting), serves_subjects=serve_subjects), "SwitchIdentity", request, effects
        ).run(options, router, planned)


def _name(serves_subjects: bool) -> str:
    return Principals.SUBJECTS if serves_subjects else Principals.ANONYMOUS
