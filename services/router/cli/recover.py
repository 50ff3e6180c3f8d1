"""The commands after the loss of a store: `baton recover` and `baton seize`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.inputs import parse_store
from services.router.cli.jobs import RATE_HELP, NewJob, parse_rate, run_job
from services.router.cli.options import Starting, command
from services.router.core.effects import STORE_NAMES, of_seizure

Lost = Annotated[str, typer.Argument(metavar="STORE", help="The lost store: service_layer (B) or simple_mcp (A).")]
Confirm = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The lost store's name. Confirms that no process of it serves, or will be started, until this is done.",
    ),
]
Adopt = Annotated[
    bool,
    typer.Option(
        "--adopt-control",
        help="Let the stores follow this control store. Use it if theirs was lost or restored from a backup.",
    ),
]
AcceptGap = Annotated[
    bool,
    typer.Option(
        "--accept-gap",
        help="Accept the loss of writes that the reconcile job of `baton events restart` has not copied yet.",
    ),
]
NAMES = STORE_NAMES


def register(app: typer.Typer) -> None:
    command(app, "recover", Starting)(recover)
    command(app, "seize", Starting)(seize)


def recover(
    options: Starting,
    store: Lost,
    confirm: Confirm = "",
    rate: Annotated[str, typer.Option(metavar="N", help=RATE_HELP)] = "0",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the store serves again, and show progress.")] = False,
    adopt_control: Adopt = False,
    accept_gap: AcceptGap = False,
    recheck: Annotated[
        bool,
        typer.Option(
            "--recheck",
            help="Check and reopen a store that was fenced by mistake (a wrong address, say), without a seizure.",
        ),
    ] = False,
) -> None:
    """Bring a lost store back: one that was restored from a backup, emptied, promoted, or seized from. Start its
    processes first: they detect the loss at startup and do not serve.

    The other store reads the log to its end and seizes the records and buckets of the lost one. Then the lost store is
    filled, compared and opened, and records move to the store that the phase gives them. It is a job: `baton jobs`
    pauses, resumes, tunes it.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects
    """
    lost = parse_store(store)
    other = NAMES["B" if lost == "A" else "A"]
    name = NAMES[lost]
    effects = [
        f"{name} does not serve until this is done; writes to its records are refused meanwhile",
        f"{name} publishes its outbox to the log, then {other} seizes the records and buckets that {name} owns",
        f"writes of {name} that are neither in the log nor in its database are LOST",
        "changes from before the seizure that appear later are kept in the journal of conflicts (baton conflicts)",
        f"{name} is filled from {other}, compared, and opened",
    ]
    if recheck:
        effects = [
            f"{name} compares its state when it was fenced with {other} and the log, and serves again if they agree",
            f"{name} must not have been restored since it was fenced",
        ]
    arguments = {"store": lost, **_accepted(effects, adopt_control=adopt_control, accept_gap=accept_gap)}
    arguments |= {"recheck": "true"} if recheck else {"confirm": _confirmed(options, name, effects, confirm)}
    run_job(options, NewJob("recover", arguments, parse_rate(rate)), effects, wait=wait)


def seize(
    options: Starting,
    store: Lost,
    confirm: Confirm = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is done, and show progress.")] = False,
    adopt_control: Adopt = False,
    accept_gap: AcceptGap = False,
) -> None:
    """Give the records and buckets of an unavailable store to the other one, so that they can be written again. Use it
    if the store will not be back soon. If its processes can be started, use `baton recover` instead.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects
    """
    lost = parse_store(store)
    name = NAMES[lost]
    effects = of_seizure(lost, *_stake(options, lost))
    arguments = {"store": lost, **_accepted(effects, adopt_control=adopt_control, accept_gap=accept_gap)}
    arguments["confirm"] = _confirmed(options, name, effects, confirm)
    run_job(options, NewJob("seize", arguments), effects, wait=wait)


def _accepted(effects: list[str], *, adopt_control: bool, accept_gap: bool) -> dict[str, str]:
    """Return the job's arguments for these options, and add their effects to the list."""
    if adopt_control:
        effects.append("both stores refuse orders of the control store that they have followed so far")
    if accept_gap:
        effects.append("writes that were published before `baton events restart` and are not copied yet are LOST")
    given = {"adopt_control": adopt_control, "accept_gap": accept_gap}
    return {name: "true" for name, is_given in given.items() if is_given}


def _confirmed(options: Starting, name: str, effects: list[str], confirm: str) -> str:
    """Return the lost store's name, typed by the operator. Raises CommandFailed (usage)."""
    if options.dry_run:
        return confirm
    if not confirm and sys.stdin.isatty():
        for effect in effects:
            typer.echo(f"- {effect}", err=True)
        confirm = typer.prompt(f"Type the lost store's name ({name}) when no process of it serves", err=True)
    if confirm != name:
        raise CommandFailed(
            f"confirm: {confirm!r} is not valid: --confirm {name} confirms that no process of {name} serves, or will"
            " be started, until this is done; nothing was changed",
            Exit.USAGE,
        )
    return confirm


def _stake(options: Starting, lost: str) -> tuple[int | None, int | None]:
    """Return the numbers of records and changes at stake, as last reported by the store."""
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control
    from services.router.cli.views import store_name

    with control(options) as router:
        status = router.call("GetStatus", pb.GetStatusRequest())
    for one in status.stores:
        if store_name(one.store) == lost:
            return one.owned_records, one.outbox_entries
    return None, None
