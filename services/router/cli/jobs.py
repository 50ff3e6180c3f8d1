"""Commands for long jobs: backfill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli.options import Changing, CommandFailed, Exit, agree, command

if TYPE_CHECKING:
    from services.router.cli.client import Control
    from services.router.cli.views import View

_POLL_SECONDS = 0.5
MAX_RATE = 1_000_000


def register(app: typer.Typer) -> None:
    command(app, "backfill", Changing)(backfill)


def backfill(
    options: Changing,
    rate: Annotated[str, typer.Option(metavar="N", help="Records per second at most; 0: as fast as possible.")] = "0",
    wait: Annotated[bool, typer.Option("--wait", help="Until it is finished; shows how far it is.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop it where it is; started again, it goes on.")] = False,
) -> None:
    """Copy every record of A to B, under live traffic. Safe to repeat.

    \b
    JSON keys: running done total rate eta_seconds note finished_time dry_run
    With --wait, the last line is the result.
    """
    per_second = parse_rate(rate)
    if cancel and wait:
        raise CommandFailed("--cancel and --wait do not go together: name one of them", Exit.USAGE)

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show, views
    from services.router.cli.client import control

    with control(options) as router:
        view = views.status_view(router.call("GetStatus", pb.GetStatusRequest()))
        if cancel:
            effects = [f"the backfill stops: {show.progress_line(view['backfill'])}"]
        else:
            pace = f"at most {per_second:g} records/s" if per_second else "as fast as the stores allow"
            effects = [f"{view['stores']['A']['records']} records of A are copied to B, {pace}, under live traffic"]
        done = agree(options, effects)
        progress: View = view["backfill"]
        if done and cancel:
            request = pb.CancelBackfillRequest(actor=options.who)
            progress = views.progress_view(router.call("CancelBackfill", request).progress)
        elif done:
            start = pb.StartBackfillRequest(actor=options.who, rate=per_second)
            progress = views.progress_view(router.call("StartBackfill", start).progress)
            if wait:
                progress = _wait(router, options)
    if options.json:
        show.print_json({**progress, "dry_run": not done})
    else:
        show.show(show.progress_line(progress))


def _wait(router: Control, options: Changing) -> View:
    """Until it runs no more. Raises CommandFailed when it ended without being finished."""
    import time

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show, views

    said = ""
    while True:
        view: View = views.status_view(router.call("GetStatus", pb.GetStatusRequest()))["backfill"]
        if not view["running"]:
            if view["note"] != "finished":
                raise CommandFailed(f"the backfill is not finished: {view['note']}")
            return view
        line = show.progress_line(view)
        if line != said and not options.json:
            typer.echo(line, err=True)
            said = line
        time.sleep(_POLL_SECONDS)


def parse_rate(text: str) -> float:
    """Records per second. Raises CommandFailed (usage)."""
    try:
        rate = float(text)
    except ValueError:
        rate = float("nan")
    if rate != 0 and not 1 <= rate <= MAX_RATE:
        raise CommandFailed(
            f"--rate: {text!r} is not valid: 1 to {MAX_RATE} records per second, or 0 for as fast as possible",
            Exit.USAGE,
        )
    return rate
