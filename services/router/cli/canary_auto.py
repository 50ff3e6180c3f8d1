"""`baton canary show` and `baton canary auto`: show the canary, and grow it by a plan (a walk)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from libs.errors import InvalidField
from libs.text import plain
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Agreed, Changing, Common, Starting, agree, command
from services.router.core.canary import EXAMPLE, begin, parse_plan
from services.router.core.effects import of_stop, of_walk
from services.router.core.phase import IllegalMove

if TYPE_CHECKING:
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import Control
    from services.router.cli.views import View

_POLL_SECONDS = 0.5


def add_to(canary: typer.Typer) -> None:
    """Add these commands to the group `baton canary`."""
    command(canary, "show", Common)(show_canary)
    command(canary, "auto", Starting)(auto)


def show_canary(options: Common) -> None:
    """Show the canary: its target and actual share of buckets, and its walk.

    \b
    JSON keys: phase set_percent actual_percent records_percent calls_percent
      settled
      walk: running step steps note finished_time
    actual_percent: share of the buckets at B. records_percent: share of the
    records that B owns. calls_percent: share of this router's calls that B
    answered. null is "not known".
    """
    from services.router.cli import show
    from services.router.cli.client import control

    with control(options) as router:
        view = _view(router)
    if options.json:
        show.print_json(view)
        return
    shares = ", ".join(
        f"{_percent(view[key])} of the {unit}"
        for key, unit in (("actual_percent", "buckets"), ("records_percent", "records"), ("calls_percent", "calls"))
    )
    show.show(f"set     {plain(view['set_percent'])} % in {view['phase']}{'' if view['settled'] else ', moving'}")
    show.show(f"actual  {shares} at B")
    show.show(f"walk    {show.walk_line(view['walk'])}")


def auto(
    options: Starting,
    plan: Annotated[Path | None, typer.Argument(metavar="[PLAN.toml]", help="The steps to walk.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the walk; the canary keeps its share.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a plan with comments, and exit.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the walk has ended, and show progress.")] = False,
) -> None:
    """Grow the canary by a plan. A step ends when its time, samples and gates allow it.

    \b
    It is a job: it survives a restart of a router, and `baton jobs` pauses
    and resumes it. If a gate fails, the canary returns to 0 % or the walk
    holds, as set in the plan.
    JSON keys: running step steps note finished_time dry_run effects
    With --wait, exits with 0 if the walk is done, 1 if it was stopped,
    3 if a gate took it back.
    """
    if example:
        typer.echo(EXAMPLE, nl=False)
        return
    if stop and (plan or wait):
        raise CommandFailed("--stop takes no plan and no --wait", Exit.USAGE)
    if stop:
        _stop(options)
        return
    if plan is None:
        raise CommandFailed("name a plan: baton canary auto plan.toml; --example prints one", Exit.USAGE)
    _start(options, plan, wait)


def _start(options: Starting, path: Path, wait: bool) -> None:
    text = _read(path)
    try:
        plan = parse_plan(text)
    except InvalidField as error:
        raise CommandFailed(f"{path}: {error.message}", Exit.USAGE) from None

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control
    from services.router.cli.views import walk_view
    from services.router.core.setting_message import setting_from_pb

    with control(options) as router:
        status = _status(router)
        try:
            step = begin(plan, setting_from_pb(status.setting))
        except IllegalMove as error:
            raise CommandFailed(error.message) from None
        view = walk_view(status.canary_auto)
        agreed = agree(options, of_walk(plan, step, status.setting.canary_permille))
        if agreed:
            request = pb.StartCanaryAutoRequest(
                actor=options.who, reason=options.reason, plan=text, generation=status.setting.generation
            )
            view = walk_view(router.call("StartCanaryAuto", request).progress)
            if wait:
                view = _wait(router, options)
    _say(options, view, agreed)
    if wait and agreed and not view["note"].startswith("done"):
        raise CommandFailed(
            f"the walk is not done: {view['note']}",
            Exit.BLOCKED if view["note"].startswith("went back") else Exit.FAILED,
        )


def _stop(options: Changing) -> None:
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control
    from services.router.cli.views import walk_view

    with control(options) as router:
        status = _status(router)
        view = walk_view(status.canary_auto)
        if not view["running"]:
            raise CommandFailed("no walk is under way")
        agreed = agree(options, of_stop(status.setting.canary_permille))
        if agreed:
            request = pb.StopCanaryAutoRequest(actor=options.who, reason=options.reason)
            view = walk_view(router.call("StopCanaryAuto", request).progress)
    _say(options, view, agreed)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}; --example prints a plan", Exit.USAGE) from None
    except UnicodeDecodeError:
        raise CommandFailed(f"{path} is not UTF-8 text; --example prints a plan", Exit.USAGE) from None


def _wait(router: Control, options: Starting) -> View:
    """Show progress until the walk has ended."""
    from services.router.cli import show
    from services.router.cli.views import walk_view

    shown, patience = "", options.patience("the walk")
    while True:
        view = walk_view(_status(router).canary_auto)
        if not view["running"]:
            return view
        line = show.walk_line(view)
        if line != shown and not options.json:
            typer.echo(line, err=True)
            shown = line
        patience.pause(_POLL_SECONDS)


def _say(options: Changing, view: View, agreed: Agreed) -> None:
    from services.router.cli import show

    if options.json:
        show.print_json({**view, **agreed.view})
    else:
        show.show(show.walk_line(view))


def _status(router: Control) -> pb.GetStatusResponse:
    from libs.pb.baton.control.v1 import control_pb2 as pb

    status: pb.GetStatusResponse = router.call("GetStatus", pb.GetStatusRequest())
    return status


def _view(router: Control) -> View:
    from services.router.cli.views import walk_view
    from services.router.core.setting_message import phase_name

    status = _status(router)
    a, b = status.stores
    calls_a, calls_b = a.reads + a.writes, b.reads + b.writes
    return {
        "phase": phase_name(status.setting.phase).value,
        "set_percent": status.setting.canary_permille / 10,
        "actual_percent": _share(status.buckets_at_b, status.buckets) if status.HasField("buckets_at_b") else None,
        "records_percent": _share(b.owned_records, a.owned_records + b.owned_records),
        "calls_percent": _share(calls_b, calls_a + calls_b),
        "settled": status.settled,
        "walk": walk_view(status.canary_auto),
    }


def _share(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 1) if whole else None


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{plain(value)} %"
