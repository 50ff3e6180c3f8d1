"""`baton chaos flip`: random changes of flags, canary and phase on a running system, and a report of the damage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Changing, agree, command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from libs.proving.trial.chaos import State, StormPlan
    from libs.proving.trial.chaos_report import Setup, StormReport
    from libs.proving.trial.stores import StoreAccess

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
LEAST_SECONDS, MOST_SECONDS = 0.05, 86_400.0
SHOWN_FLIPS = 20
FIRST_CONTACT_SECONDS = 2.0
"""Time for the first answer of a router. During the storm it may be unavailable for longer."""
HISTORY = Path("build") / "chaos"


def register(app: typer.Typer) -> None:
    chaos = typer.Typer(help="Disturb a running system on purpose, and check the result.", no_args_is_help=True)
    command(chaos, "flip", Storming)(flip)
    app.add_typer(chaos, name="chaos")


@dataclass(frozen=True)
class Storming(Changing):
    """The targets of the storm, besides the router at --address."""

    routers: Annotated[
        str, typer.Option(metavar="ADDRESSES", help="Control addresses of the other routers, by commas.")
    ] = ""
    load: Annotated[
        str, typer.Option(metavar="ADDRESSES", help="Put load on these public addresses of routers, by commas.")
    ] = ""
    stores: Annotated[
        str,
        typer.Option(
            metavar="STORES", help="Internal listeners of all processes: A=host:port,B=host:port,B=host:port."
        ),
    ] = ""
    store_token_file: Annotated[Path | None, typer.Option(help="File with the stores' token.")] = None
    event_log: Annotated[str, typer.Option(metavar="ADDRESS", help="The event log, for the ledger.")] = ""


def flip(
    options: Storming,
    every: Annotated[str, typer.Option(metavar="TIME", help="Time between two flips: 500ms, 0.5s, 30s, 1m.")] = "30s",
    lasting: Annotated[str, typer.Option("--for", metavar="TIME", help="Duration: 90s, 10m, 1h.")] = "10m",
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same flips.")] = 1,
) -> None:
    """Flip flags, canary and phase at random, never into DEPRECATED, and report.

    \b
    It restores the setting at the end, also after Ctrl-C. With --load it makes
    its own calls and checks that they were linearizable; with --stores and
    --event-log too, it compares them with both stores and the log.
    JSON keys: ok seed seconds flips refused calls lost duplicated
      stale_strict_reads not_linearizable handoffs problems
      ping_pong: list of key handoffs
      leaked: locks tasks connections descriptors resident_bytes
      processes: list of name restarted ok, and by kind before after leaked
    null is "not checked". Exits with 1 if a count that must be 0 is not.
    """
    seconds = parse_duration("--every", every)
    total = parse_duration("--for", lasting)
    if total < seconds:
        raise CommandFailed(f"--for: {lasting} is shorter than --every {every}", Exit.USAGE)
    setup = _setup(options)

    import asyncio

    from libs.proving.trial.chaos import StormPlan

    code = asyncio.run(_flip(options, setup, StormPlan(seconds, total, seed)))
    if code:
        raise CommandFailed("the storm did damage: see the report", code)


async def _flip(options: Storming, setup: Setup, plan: StormPlan) -> Exit:
    import asyncio

    from libs.errors import BatonError
    from libs.proving.trial.chaos import Storm, sequence
    from libs.proving.trial.chaos_report import run_storm
    from services.router.cli import show

    directory = HISTORY / f"seed-{plan.seed}"
    try:
        async with Storm.open(setup.controls, setup.token) as storm:
            storm.patience_seconds = FIRST_CONTACT_SECONDS
            state, flags = await storm.begin()
        flips = [str(one) for one in sequence(state, flags, plan.seed, plan.flips)]
        agreed = await asyncio.to_thread(agree, options, _effects(setup, state, flips))
        if not agreed:
            if options.json:
                show.print_json({**agreed.view, "seed": plan.seed, "flips": flips})
            return Exit.OK
        await asyncio.to_thread(_clear, directory)
        report = await run_storm(setup, plan, directory, _say if not options.json else lambda _: None)
    except BatonError as error:
        raise CommandFailed(error.message) from None
    if options.json:
        show.print_json({**report.as_dict(), **agreed.view})
    else:
        show.show(_screen(report))
    return Exit.OK if report.ok else Exit.FAILED


def _effects(setup: Setup, state: State, flips: list[str]) -> list[str]:
    from libs.proving.trial.chaos_report import describe

    more = [f"... and {len(flips) - SHOWN_FLIPS} more"] if len(flips) > SHOWN_FLIPS else []
    traffic = f"its own load on {', '.join(setup.public)}" if setup.public else "the existing load"
    return [
        f"{len(flips)} flips under {traffic}; the first ones, if the setting does not change otherwise:",
        *(f"  {one}" for one in flips[:SHOWN_FLIPS]),
        *more,
        f"then the setting is restored: {describe(state)}",
    ]


def _setup(options: Storming) -> Setup:
    """Raises CommandFailed (usage)."""
    from libs.errors import BatonError
    from libs.eventlog.address import LogAddress
    from libs.proving.trial.chaos_report import Setup
    from libs.rpc.auth import read_token
    from services.router.cli.client import read_bearer

    try:
        token = read_bearer(options.token_file)
        store_token = read_token(options.store_token_file).decode() if options.store_token_file else ""
    except BatonError as error:
        raise CommandFailed(error.message, Exit.USAGE) from None
    try:
        log = LogAddress(options.event_log) if options.event_log else None
    except ValueError as error:
        raise CommandFailed(f"--event-log: {options.event_log!r} is not valid: {error}", Exit.USAGE) from None
    return Setup(
        actor=options.who,
        controls=[options.address, *parse_addresses("--routers", options.routers)],
        token=token,
        public=parse_addresses("--load", options.load),
        stores=parse_stores(options.stores, store_token),
        event_log=log,
    )


def parse_duration(option: str, text: str) -> float:
    """Return seconds. Raises CommandFailed (usage)."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise CommandFailed(
            f"{option}: {text!r} is not valid: a number with ms, s, m or h, from 50ms to 24h", Exit.USAGE
        )
    return seconds


def parse_addresses(option: str, text: str) -> list[str]:
    """Split a comma-separated list. Raises CommandFailed (usage)."""
    from libs.process import check_address

    found = [part.strip() for part in text.split(",") if part.strip()]
    for address in found:
        try:
            check_address(address)
        except ValueError as error:
            raise CommandFailed(f"{option}: {address!r} is not valid: {error}", Exit.USAGE) from None
    return found


def parse_stores(text: str, token: str) -> list[StoreAccess]:
    """Raises CommandFailed (usage)."""
    from libs.proving.trial.stores import StoreAccess

    found = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        store, _, address = part.partition("=")
        if store not in ("A", "B") or not address:
            raise CommandFailed(f"--stores: {part!r} is not valid: A=host:port or B=host:port, by commas", Exit.USAGE)
        found.append(StoreAccess(store, parse_addresses("--stores", address)[0], token))
    return found


def _clear(directory: Path) -> None:
    """Remove the histories of an earlier storm."""
    if directory.is_dir():
        for file in directory.glob("*.jsonl"):
            file.unlink()


def _say(setting: str) -> None:
    typer.echo(f"  {setting}", err=True)


def _screen(report: StormReport) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from libs.proving.trial.chaos_report import MUST_BE_ZERO
    from libs.proving.trial.vitals import KINDS

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    grid.add_column("must be 0")
    grid.add_column("found")
    for name in MUST_BE_ZERO:
        count = report.counts[name]
        grid.add_row(name.replace("_", " "), "not judged" if count is None else str(count))
    for kind in KINDS:
        grid.add_row(f"leaked {kind.replace('_', ' ')}", str(report.leaked(kind)))
    made = ", ".join(f"{count} {kind}" for kind, count in sorted(report.flips.items()))
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(report.refused.items())) or "none"
    often = ", ".join(f"{key} ({times})" for key, times in report.ping_pong) or "none"
    verdict = "every count that was checked is 0" if report.ok else "a count that must be 0 is not"
    return Group(
        f"{sum(report.flips.values())} flips in {report.seconds:.0f} s ({made}), refused: {refused}",
        f"{report.handoffs} handoffs, records handed over most often: {often}",
        grid,
        *(f"  {problem}" for problem in report.problems),
        Text(verdict, style="bold green" if report.ok else "bold red"),
    )
