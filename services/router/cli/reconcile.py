"""`baton reconcile` and `baton validate`: compare the two stores."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.jobs import NewJob, run_job
from services.router.cli.options import Starting, command
from services.router.core.effects import of_reconcile

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from services.router.cli.views import View

KINDS = {
    "MISSING": "its owner has it, the other store has no row",
    "STALE": "the other store has an older version than its owner",
    "CORRUPT": "different content at one version, or written outside Baton",
    "EXTRA": "a store has a copy of a record that its owner has lost",
    "OWNER": "two owners, or an owner that is older than its copy",
}


def register(app: typer.Typer) -> None:
    command(app, "reconcile", Starting)(reconcile)
    command(app, "validate", Starting)(validate)


def reconcile(
    options: Starting,
    repair: Annotated[
        bool, typer.Option("--repair/--no-repair", help="Copy MISSING and STALE records from their owner.")
    ] = True,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every row and recompute its digest: finds edits by hand.")
    ] = False,
    corrupt: Annotated[
        str, typer.Option(metavar="NAME", help="Repair this record if it is CORRUPT, from its owner's content.")
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until it has finished, and show progress.")
    ] = True,
) -> None:
    """Compare the two stores record by record, and repair copies that lag.

    A difference counts if it is still there after both feeds have caught up.
    The router runs it every 5 minutes. It is a job; the gate
    shadow-consistent uses its result.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects; in report:
      records buckets_walked different repaired left
      left_out: records that cannot be copied; why: reason of the first
      found: by kind: MISSING EXTRA STALE CORRUPT OWNER
      differences: the first 100: key kind newer repaired
        A B: version owner content written_beside_baton, or null
      named: of --corrupt: CORRUPT, or why it was not repaired
      deep: with --deep, true; digests: of both stores; changing: buckets
        that changed at each look
    Exits with 1 if differences are left.
    """
    if corrupt and not repair:
        raise CommandFailed("--corrupt repairs a record, --no-repair forbids it: leave one out", Exit.USAGE)
    effects = of_reconcile(repair=repair, deep=deep, corrupt=corrupt)
    arguments = {"repair": "yes" if repair else "no", "deep": "yes" if deep else "no"}
    view = run_job(
        options, NewJob("reconcile", {**arguments, **({"corrupt": corrupt} if corrupt else {})}), effects, wait=wait
    )
    if view is None or not wait:
        return
    report = view["report"]
    if not options.json:
        from services.router.cli import show

        show.show(_differences(report))
        if corrupt and report["named"] != "CORRUPT":
            show.show(f"{corrupt} was not repaired: {report['named']}")
    if report["left"]:
        raise CommandFailed(f"{report['left']} records differ and were not repaired")


def validate(
    options: Starting,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until it has finished, and show progress.")
    ] = True,
) -> None:
    """Count the records that only one database has, and how far each is behind
    the other. Includes changes still in the log: `baton reconcile` waits for
    those. Changes nothing. It is a job.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects; in report:
      records_a records_b in_both only_in_a only_in_b different
      unknown: records among them without a time of their last write
      average_seconds: B's last write of a record after A's, over in_both
      b_behind a_behind: records average_seconds p99_seconds worst_seconds
        worst: the record with worst_seconds; total_seconds ages
    """
    effects = ["the records of A and B are counted and compared; nothing changes"]
    view = run_job(replace(options, yes=True), NewJob("validate"), effects, wait=wait)
    if view is not None and wait and not options.json:
        from services.router.cli import show

        show.show(_queries(view["report"]))


def _differences(report: View) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from services.router.cli.show import table_of

    head = Text(
        f"{report['different']} of {report['records']} records differ, {report['repaired']} are repaired,"
        f" {report['left']} are left; {report['buckets_walked']} of 1024 buckets had differences"
    )
    if not report["different"]:
        return head
    if report["left_out"]:
        head.append(f"\n{report['left_out']} cannot be copied: {report['why']}")
    kinds = table_of("kind", "records", "meaning")
    for kind, meaning in KINDS.items():
        if report["found"][kind]:
            kinds.add_row(kind, str(report["found"][kind]), meaning)
    rows = table_of("kind", "record", "at A", "at B", "repaired")
    for one in report["differences"]:
        rows.add_row(one["kind"], one["key"], _row(one["A"]), _row(one["B"]), "yes" if one["repaired"] else "no")
    return Group(head, Text(""), kinds, Text(""), rows)


def _row(row: View | None) -> str:
    if row is None:
        return "-"
    return f"{row['version']} of {row['owner']}" + (", written outside Baton" if row["written_beside_baton"] else "")


def _queries(report: View) -> Group:
    from rich.console import Group
    from rich.text import Text

    from services.router.cli.show import table_of

    counts = table_of("query", "records")
    for name, title in (
        ("only_in_b", "in service_layer (B), not in simple_mcp (A)"),
        ("only_in_a", "in simple_mcp (A), not in service_layer (B)"),
        ("different", "in both, not the same"),
        ("in_both", "in both"),
    ):
        counts.add_row(title, str(report[name]))
    ages = table_of("age difference", "records", "average", "p99", "worst", "of")
    for name, title in (("b_behind", "B behind A"), ("a_behind", "A behind B")):
        age = report[name]
        seconds = (f"{age[field]:.3f} s" for field in ("average_seconds", "p99_seconds", "worst_seconds"))
        ages.add_row(title, str(age["records"]), *seconds, age["worst"] or "-")
    mean = Text(f"avg(B.updated - A.updated) = {report['average_seconds']:.3f} s over the records in both")
    unknown = [Text(f"{report['unknown']} records have no time of their last write")] if report["unknown"] else []
    return Group(counts, Text(""), ages, Text(""), mean, *unknown)
