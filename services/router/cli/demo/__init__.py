"""`baton demo`: a whole migration, forward, back and forward again, with real processes under live load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Shown, command

if TYPE_CHECKING:
    from services.router.cli.demo.run import DemoPlan

REPORT = Path("build") / "demo" / "report.json"
CERTIFICATE = Path("build") / "demo" / "certificate.html"
WORK = Path("build") / "demo" / "work"
INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    command(app, "demo", Shown)(demo)


def demo(
    options: Shown,
    stack: Annotated[
        str, typer.Option(help="embedded: files only; real: starts Kafka, PostgreSQL and Redis.")
    ] = "embedded",
    seconds: Annotated[float, typer.Option(min=5, max=3600, help="Approximate duration of the load.")] = 60.0,
    clients: Annotated[int, typer.Option(min=1, max=64, help="Number of clients that make the load.")] = 6,
    rate: Annotated[float, typer.Option(min=10, max=10_000, help="Calls per second of all clients.")] = 200.0,
    secure: Annotated[
        bool, typer.Option("--secure", help="With TLS on every leg, tokens, accounts and signed events.")
    ] = False,
    hold: Annotated[bool, typer.Option("--hold", help="At the end keep everything running until Ctrl-C.")] = False,
    keep: Annotated[
        Path | None, typer.Option(help="New directory for databases, logs and evidence; it is not removed.")
    ] = None,
) -> None:
    """Show a migration forward and back under load, in about a minute. Needs no running server.

    \b
    Starts A with a copy of an old database, B and a router, and stops them.
    With --secure, strangers try to get in all the time, and must not.
    Writes build/demo/report.json and, at its end, build/demo/certificate.html.
    Exits with 1 if a write was lost or done
    twice, a read was stale, records differ, or a step failed; then it keeps
    the evidence.
    """
    if stack not in ("embedded", "real"):
        raise CommandFailed(f"--stack: {stack!r} is not valid: embedded or real", Exit.USAGE)
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise CommandFailed(f"--keep: {keep} exists and is not empty: name a new directory", Exit.USAGE)
    from services.router.cli.demo.run import DemoPlan

    try:
        code = _run(DemoPlan(stack, seconds, clients, rate, keep or WORK, hold, keep is not None, options.json, secure))
    except KeyboardInterrupt:
        typer.echo("baton: interrupted; all processes are stopped", err=True)
        code = INTERRUPTED
    raise typer.Exit(code)


def _run(plan: DemoPlan) -> int:
    import asyncio

    from services.router.cli import show
    from services.router.cli.demo.run import run_demo

    report = asyncio.run(run_demo(plan))
    report.write(REPORT)
    report.write_certificate(CERTIFICATE)
    if plan.json:
        show.print_json(report.as_dict())
    else:
        report.show(show.console(), REPORT)
    return report.exit_code
