"""`baton audit`: check the old data before any of it moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.jobs import RATE_HELP, NewJob, parse_rate, run_job
from services.router.cli.options import Starting, command
from services.router.core.effects import of_audit

if TYPE_CHECKING:
    from rich.console import Group

    from services.router.cli.views import View

PASSES = ("CLEAN", "ACCEPTED")


def register(app: typer.Typer) -> None:
    command(app, "audit", Starting)(audit)


def audit(
    options: Starting,
    sample: Annotated[
        float, typer.Option(min=0, max=100, metavar="PERCENT", help="Share of records to try at B.")
    ] = 10.0,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Kind of finding whose records may move unchanged. Repeat, or use commas."),
    ] = None,
    rate: Annotated[str, typer.Option(metavar="N", help=RATE_HELP)] = "0",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until it has finished, and show progress.")
    ] = True,
) -> None:
    """Audit a snapshot of A's data: findings by kind, every record through the
    schema conversion and back, and a sample tried out in a scratch store
    beside B. A and B do not change. It is a job, and SHADOW's gate.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects; in report:
      verdict records affected sampled total bytes taken_seconds
      kinds: by name: meaning acceptable accepted findings examples
    verdict: CLEAN, ACCEPTED, FINDINGS or BLOCKED. Exit code 3: FINDINGS, BLOCKED.
    """
    kinds = ",".join(filter(None, (name.strip() for text in accept or () for name in text.split(","))))
    arguments = {"sample": f"{sample:g}", **({"accept": kinds} if kinds else {})}
    view = run_job(options, NewJob("audit", arguments, parse_rate(rate)), of_audit(sample, kinds), wait=wait)
    if view is None or not wait:
        return
    report = view["report"]
    if not options.json:
        from services.router.cli import show

        show.show(_screen(report))
    if report["verdict"] not in PASSES:
        raise CommandFailed(f"the data is {report['verdict']}: SHADOW is not open; {_remedy(report)}", Exit.BLOCKED)


def _remedy(report: View) -> str:
    """The remedy for findings that are not accepted."""
    found = {name: kind for name, kind in report["kinds"].items() if kind["findings"] and not kind["accepted"]}
    fixed = [name for name, kind in found.items() if not kind["acceptable"]]
    if fixed:
        return f"correct through A the findings that cannot be accepted: {', '.join(fixed)}"
    kinds = [name for name, kind in report["kinds"].items() if kind["findings"]]
    return f"correct the records through A, or accept the findings: baton audit --accept {','.join(kinds)}"


def _screen(report: View) -> Group:
    """Lay out the kinds with their meaning and examples."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = {name: kind for name, kind in report["kinds"].items() if kind["findings"]}
    table = Table(box=None, pad_edge=False)
    for name in ("kind", "findings", "may move", "meaning"):
        table.add_column(name, overflow="fold")
    for name, kind in found.items():
        may = "accepted" if kind["accepted"] else "if accepted" if kind["acceptable"] else "no"
        table.add_row(name, str(kind["findings"]), may, kind["meaning"])
    examples = Table(box=None, pad_edge=False)
    for column in ("kind", "record", "for example"):
        examples.add_column(column, overflow="fold")
    for name, kind in found.items():
        for key, detail in kind["examples"][:3]:
            examples.add_row(name, key, detail)
    counted = f"{report['affected']} of {report['records']} records have findings"
    head = Text(f"{report['verdict']}: {counted}; {report['sampled']} were tried out beside B", style="bold")
    return Group(head, Text(""), table, Text(""), examples) if found else Group(head)
