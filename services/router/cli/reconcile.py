"""`baton reconcile` and `baton validate`: whether the two stores have the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli.jobs import Wanted, run_job
from services.router.cli.options import Changing, CommandFailed, Exit, command

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from services.router.cli.views import View

KINDS = {
    "MISSING": "its owner has it, the other store has no row",
    "STALE": "the other store has an older version than its owner",
    "CORRUPT": "other content at one version, or written beside Baton",
    "EXTRA": "a store has what the other one made and has no more",
    "OWNER": "two owners, or an owner that is older than its copy",
}


def register(app: typer.Typer) -> None:
    command(app, "reconcile", Changing)(reconcile)
    command(app, "validate", Changing)(validate)


def reconcile(
    options: Changing,
    repair: Annotated[
        bool, typer.Option("--repair/--no-repair", help="Copy what is MISSING or STALE from its owner.")
    ] = True,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every row and make its digest anew: finds edits by hand.")
    ] = False,
    corrupt: Annotated[
        str, typer.Option(metavar="NAME", help="Mend this record too if it is CORRUPT: its owner's content is right.")
    ] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is finished; shows how far it is.")] = True,
) -> None:
    """Compare the two stores, record by record, and mend what lags behind.

    A difference counts when it is still there after both feeds have passed.
    Runs every 5 minutes by itself. It is a job, and a part of the gate
    shadow-consistent.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects; in report:
      records buckets_walked different repaired left
      left_out: records that cannot be copied; why: the first of them
      found: by kind: MISSING EXTRA STALE CORRUPT OWNER
      differences: the first 100: key kind newer repaired
        A B: version owner content written_beside_baton, or null
      named: of --corrupt: CORRUPT, or why it was not mended as such
    Exits with 1 when differences are left.
    """
    if corrupt and not repair:
        raise CommandFailed("--corrupt mends a record, --no-repair forbids it: leave one out", Exit.USAGE)
    effects = [
        "all records of A and B are compared" + (", each read and its digest made anew" if deep else ""),
        "what is MISSING or STALE is copied from its owner" if repair else "what differs is listed and left as it is",
        *([f"{corrupt}, if it is CORRUPT, gets its owner's content at both stores"] if corrupt else []),
    ]
    arguments = {"repair": "yes" if repair else "no", "deep": "yes" if deep else "no"}
    view = run_job(
        options, Wanted("reconcile", {**arguments, **({"corrupt": corrupt} if corrupt else {})}), effects, wait=wait
    )
    if view is None or not wait:
        return
    report = view["report"]
    if not options.json:
        from services.router.cli import show

        show.show(_differences(report))
        if corrupt and report["named"] != "CORRUPT":
            show.show(f"{corrupt} was not mended as CORRUPT: {report['named']}")
    if report["left"]:
        raise CommandFailed(f"{report['left']} records differ and were not repaired")


def validate(
    options: Changing,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is finished; shows how far it is.")] = True,
) -> None:
    """Ask both databases which records only one of them has, and how far each
    is behind the other. As it is now, with what is on its way: `baton
    reconcile` tells which differences are real. Changes nothing. It is a job.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects; in report:
      records_a records_b in_both only_in_a only_in_b different
      unknown: of those, records that do not say when they were written
      average_seconds: B's last write of a record after A's, over in_both
      b_behind a_behind: records average_seconds p99_seconds worst_seconds
        worst: whose that is; total_seconds ages
    """
    effects = ["the records of A and B are counted and compared; nothing changes"]
    view = run_job(replace(options, yes=True), Wanted("validate"), effects, wait=wait)
    if view is not None and wait and not options.json:
        from services.router.cli import show

        show.show(_queries(view["report"]))


def _differences(report: View) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from services.router.cli.show import table_of

    head = Text(
        f"{report['different']} of {report['records']} records differ, {report['repaired']} are repaired,"
        f" {report['left']} are left; {report['buckets_walked']} of 1024 buckets had to be looked at"
    )
    if not report["different"]:
        return head
    if report["left_out"]:
        head.append(f"\n{report['left_out']} cannot be copied: {report['why']}")
    kinds = table_of("kind", "records", "what it means")
    for kind, meaning in KINDS.items():
        if report["found"][kind]:
            kinds.add_row(kind, str(report["found"][kind]), meaning)
    rows = table_of("kind", "record", "at A", "at B", "repaired")
    for one in report["differences"]:
        rows.add_row(one["kind"], one["key"], _row(one["A"]), _row(one["B"]), "yes" if one["repaired"] else "no")
    return Group(head, Text(""), kinds, Text(""), rows)


def _row(look: View | None) -> str:
    if look is None:
        return "-"
    return f"{look['version']} of {look['owner']}" + (", written beside Baton" if look["written_beside_baton"] else "")


def _queries(report: View) -> Group:
    from rich.console import Group
    from rich.text import Text

    from services.router.cli.show import table_of

    counts = table_of("query", "records")
    for name, said in (
        ("only_in_b", "in service_layer (B), not in simple_mcp (A)"),
        ("only_in_a", "in simple_mcp (A), not in service_layer (B)"),
        ("different", "in both, not the same"),
        ("in_both", "in both"),
    ):
        counts.add_row(said, str(report[name]))
    ages = table_of("age difference", "records", "average", "p99", "worst", "of")
    for name, said in (("b_behind", "B behind A"), ("a_behind", "A behind B")):
        age = report[name]
        seconds = (f"{age[field]:.3f} s" for field in ("average_seconds", "p99_seconds", "worst_seconds"))
        ages.add_row(said, str(age["records"]), *seconds, age["worst"] or "-")
    mean = Text(f"avg(B.updated - A.updated) = {report['average_seconds']:.3f} s over the records in both")
    unknown = [Text(f"{report['unknown']} records do not say when they were written")] if report["unknown"] else []
    return Group(counts, Text(""), ages, Text(""), mean, *unknown)
