"""`baton rehearse`, and `baton rollback` for one operation or, like `baton phase rollback`, for everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli import complete
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Moving, Starting, agree, command
from services.router.core.effects import of_rehearsal
from services.router.core.phase import IllegalMove, begin_rehearsal

if TYPE_CHECKING:
    from services.router.cli.client import Control
    from services.router.cli.views import View


def register(app: typer.Typer) -> None:
    command(app, "rehearse", Starting)(rehearse)
    command(app, "rollback", Moving)(rollback)


def rehearse(
    options: Starting,
    buckets: Annotated[int, typer.Option(min=1, max=64, help="Number of buckets to move there and back.")] = 4,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result, and show progress.")] = True,
) -> None:
    """Move live buckets to the other store and back, under traffic, and measure it.

    \b
    JSON keys: passed note finished_time buckets records there_seconds
      back_seconds calls errors handoffs dry_run effects
      job, with --no-wait: its id
    Exits with 1 if it failed: buckets did not arrive in time, or calls on
    them failed. The gate "rehearsal" reads its result and age. It is a job:
    if it is paused or cancelled, its buckets return.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show, views
    from services.router.cli.client import control
    from services.router.cli.jobs import follow
    from services.router.core.setting_message import setting_from_pb

    with control(options) as router:
        status = router.call("GetStatus", pb.GetStatusRequest())
        try:
            begin_rehearsal(setting_from_pb(status.setting), (0,))
        except IllegalMove as error:
            raise CommandFailed(error.message) from None
        agreed = agree(options, of_rehearsal(buckets))
        view = views.view_of(status.last_rehearsal) if status.HasField("last_rehearsal") else {}
        if agreed:
            request = pb.StartRehearsalRequest(
                actor=options.who, reason=options.reason, buckets=buckets, generation=status.setting.generation
            )
            started = router.call("StartRehearsal", request).job.id
            if not wait:
                _say_started(options, started, agreed.view)
                return
            job = follow(router, options, started)
            result = pb.Rehearsal(id=job["id"], actor=job["actor"], **job["report"])
            view = {**views.view_of(result), "finished_time": job["end_time"]}
    if options.json:
        show.print_json({**view, **agreed.view})
    elif agreed:
        show.show(show.rehearsal_line(view))
    if agreed and not view["passed"]:
        raise CommandFailed("the rehearsal failed")


def _say_started(options: Starting, job: str, plan: View) -> None:
    from services.router.cli import show

    if options.json:
        show.print_json({"job": job, **plan})
    else:
        show.show(f"{job} runs: baton jobs show {job}")


def rollback(
    options: Moving,
    to: Annotated[
        str | None,
        typer.Argument(
            metavar="[PHASE]",
            help="An earlier phase, to roll back everything.",
            autocompletion=complete.earlier_phases,
        ),
    ] = None,
    op: Annotated[
        str | None,
        typer.Option(
            "--op",
            metavar="OPERATION",
            help="One operation: create, get, list, update, delete.",
            autocompletion=complete.operations,
        ),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="With --op: let it follow canary and phase again.")] = False,
) -> None:
    """Roll back at once: one operation (--op create), or everything (a phase).

    \b
    --op sets the operation's flag to false (--undo: unset): its calls go to
    A within a second, other operations are not affected.
    JSON keys: {Setting} (after the change)
      flag value dry_run effects
    With a phase, the same as `baton phase rollback PHASE`.
    """
    if op is None:
        if undo:
            raise CommandFailed("--undo goes with --op; a hold is lifted by baton hold lift", Exit.USAGE)
        if to is None:
            raise CommandFailed(
                "name an earlier phase to roll back everything (baton rollback OFF),"
                " or --op for one operation (baton rollback --op create)",
                Exit.USAGE,
            )
        from services.router.cli.changes import rollback as phase_rollback

        phase_rollback(options, to)
        return
    if to is not None:
        raise CommandFailed("--op is for one operation and a phase for everything: name one of them", Exit.USAGE)
    _rollback_operation(options, op, undo)


def _rollback_operation(options: Moving, operation: str, undo: bool) -> None:
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show, views
    from services.router.cli.client import control
    from services.router.core.setting_message import setting_from_pb

    with control(options) as router:
        name = _flag_of(router, operation)
        setting = router.call("GetStatus", pb.GetStatusRequest()).setting
        effect = f"{operation} calls follow canary and phase again" if undo else f"{operation} calls go to A, at once"
        agreed = agree(
            options, [f"{effect}: {name} is {'unset' if undo else 'false'}; all other calls stay as they are"]
        )
        if agreed:
            # No generation: the flag is right whatever else has changed meanwhile.
            request = pb.SetFlagRequest(actor=options.who, reason=options.reason, name=name)
            if not undo:
                request.value = False
            setting = router.call("SetFlag", request).setting
    view = {
        **views.setting_view(setting_from_pb(setting)),
        "flag": name,
        "value": None if undo else False,
        **agreed.view,
    }
    if options.json:
        show.print_json(view)
    else:
        show.show(f"{name} {'would be' if not agreed else 'is'} {'unset' if undo else 'false'}")


def _flag_of(router: Control, operation: str) -> str:
    """Return the operation's flag. Raises CommandFailed (usage)."""
    from libs.pb.baton.control.v1 import control_pb2 as pb

    # The first flag is the global one. Each other name has its operation after the prefix.
    names = [flag.name for flag in router.call("ListFlags", pb.ListFlagsRequest()).flags[1:]]
    known = {name.rpartition(".")[2].partition("_")[0]: name for name in names}
    if operation not in known:
        raise CommandFailed(f"--op: {operation!r} is not valid: one of {', '.join(known)}", Exit.USAGE)
    return str(known[operation])
