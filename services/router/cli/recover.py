"""The commands for the loss of a store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from services.router.cli.inputs import parse_store
from services.router.cli.jobs import RATE_HELP, Wanted, parse_rate, run_job
from services.router.cli.options import Changing, CommandFailed, Exit, command

Lost = Annotated[str, typer.Argument(metavar="STORE", help="The lost one: service_layer (B) or simple_mcp (A).")]
Confirm = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The lost store's name, typed: no process of it serves, or will be started while this lasts.",
    ),
]
Adopt = Annotated[
    bool,
    typer.Option(
        "--adopt-control",
        help="The stores follow another control store, which is lost or was restored: follow this one from now on.",
    ),
]
AcceptGap = Annotated[
    bool,
    typer.Option(
        "--accept-gap",
        help="The reconcile job of `baton events restart` has not finished: accept the loss of what is not copied.",
    ),
]
NAMES = {"A": "simple_mcp", "B": "service_layer"}


def register(app: typer.Typer) -> None:
    command(app, "recover", Changing)(recover)
    command(app, "seize", Changing)(seize)


def recover(
    options: Changing,
    store: Lost,
    confirm: Confirm = "",
    rate: Annotated[str, typer.Option(metavar="N", help=RATE_HELP)] = "0",
    wait: Annotated[bool, typer.Option("--wait", help="Until it serves again; shows how far it is.")] = False,
    adopt_control: Adopt = False,
    accept_gap: AcceptGap = False,
    recheck: Annotated[
        bool,
        typer.Option(
            "--recheck",
            help="The fence was a mistake, a wrong address for example: look again and reopen, seize nothing.",
        ),
    ] = False,
) -> None:
    """Bring a store back that was lost: restored from a backup, emptied, promoted, or seized from. Start its processes
    first; they see at their start what has happened, and serve nothing.

    The other store reads the log to its end and seizes what the lost one owned. Then the lost one is filled, compared
    and opened, and its records go where the phase wants them. It is a job: `baton jobs` pauses, resumes, tunes it.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects
    """
    lost = parse_store(store)
    other = NAMES["B" if lost == "A" else "A"]
    name = NAMES[lost]
    effects = [
        f"{name} serves nothing until this is done; writes to what it owns are refused meanwhile",
        f"what {name} still has goes to the log, then {other} seizes the records and buckets that {name} owns",
        f"writes of {name} that are neither in the log nor in what {name} still has are LOST",
        "what comes to light later, of before the seizure, is kept in the journal of conflicts (baton conflicts)",
        f"{name} is filled from {other}, compared, and opened",
    ]
    if recheck:
        effects = [
            f"{name} compares its state when it was fenced with {other} and the log, and serves again if they agree",
            f"{name} must not have been restored since it was fenced",
        ]
    arguments = {"store": lost, **_accepted(effects, adopt_control=adopt_control, accept_gap=accept_gap)}
    arguments |= {"recheck": "true"} if recheck else {"confirm": _confirmed(options, name, effects, confirm)}
    run_job(options, Wanted("recover", arguments, parse_rate(rate)), effects, wait=wait)


def seize(
    options: Changing,
    store: Lost,
    confirm: Confirm = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until it is done; shows how far it is.")] = False,
    adopt_control: Adopt = False,
    accept_gap: AcceptGap = False,
) -> None:
    """Make the share of a store that is away the other one's, so that its records can be written again. For when it
    will not be back soon; a store whose processes can be started comes back by `baton recover`.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects
    """
    lost = parse_store(store)
    other = NAMES["B" if lost == "A" else "A"]
    name = NAMES[lost]
    effects = [
        f"{other} seizes every record and bucket that {name} owns: {_stake(options, lost)}",
        f"writes of {name} that are not in the log are LOST; when {name} is back they are shown by `baton conflicts`",
        f"{name} must stay stopped until this is done; after that it serves again only by `baton recover {name}`",
    ]
    arguments = {"store": lost, **_accepted(effects, adopt_control=adopt_control, accept_gap=accept_gap)}
    arguments["confirm"] = _confirmed(options, name, effects, confirm)
    run_job(options, Wanted("seize", arguments), effects, wait=wait)


def _accepted(effects: list[str], *, adopt_control: bool, accept_gap: bool) -> dict[str, str]:
    """The job's arguments for these options. Adds their effects."""
    if adopt_control:
        effects.append("both stores refuse orders of the control store that they followed until now")
    if accept_gap:
        effects.append("writes that were published before `baton events restart` and are not copied yet are LOST")
    given = {"adopt_control": adopt_control, "accept_gap": accept_gap}
    return {name: "true" for name, is_given in given.items() if is_given}


def _confirmed(options: Changing, name: str, effects: list[str], confirm: str) -> str:
    """The lost store's name, as a person has typed it. Raises CommandFailed (usage)."""
    if options.dry_run:
        return confirm
    if not confirm and sys.stdin.isatty():
        for effect in effects:
            typer.echo(f"- {effect}", err=True)
        confirm = typer.prompt(f"Type the lost store's name ({name}) when no process of it serves", err=True)
    if confirm != name:
        raise CommandFailed(
            f"confirm: {confirm!r} is not valid: --confirm {name} says that no process of {name} serves, or will be"
            " started while this lasts; nothing was changed",
            Exit.USAGE,
        )
    return confirm


def _stake(options: Changing, lost: str) -> str:
    """What is known of it, for people."""
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control
    from services.router.cli.views import store_name

    with control(options) as router:
        status = router.call("GetStatus", pb.GetStatusRequest())
    for one in status.stores:
        if store_name(one.store) == lost:
            return (
                f"when it was last seen it owned {one.owned_records} records, and {one.outbox_entries} changes waited"
            )
    return "how much is not known"
