"""`baton ledger`: the check of acknowledged writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.router.cli.failure import CommandFailed
from services.router.cli.options import Common, command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from libs.pb.baton.control.v1 import control_pb2 as pb

View = dict[str, Any]


def register(app: typer.Typer) -> None:
    command(app, "ledger", Common)(ledger)


def ledger(
    options: Common,
    limit: Annotated[int, typer.Option(min=0, max=100, help="Number of lost writes to list, newest first.")] = 20,
) -> None:
    """Show how many acknowledged writes this router has checked, and the lost ones.

    \b
    JSON keys: {LedgerCounts} known
      lost_writes: list of {LostWrite}
        rows: list of {LostWrite.Row}
    sampled = checked + superseded + dropped + waiting
    Exits with 1 if a write is lost.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show
    from services.router.cli.client import control

    with control(options) as router:
        view = ledger_view(router.call("GetLedger", pb.GetLedgerRequest()), limit)
    if options.json:
        show.print_json(view)
    else:
        show.show(_screen(view))
    if view["lost"]:
        raise CommandFailed(f"{view['lost']} acknowledged writes are lost")


def ledger_view(answer: pb.GetLedgerResponse, limit: int) -> View:
    from services.router.cli.views import view_of

    view = view_of(answer)
    return {**view_of(answer.counts), "known": view["known"], "lost_writes": view["lost"][:limit]}


def _screen(view: View) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from services.router.cli.lines import counts_line
    from services.router.cli.show import table_of

    head = Text(f"{counts_line(view)}; {view['known']} are checked again from time to time")
    if not view["lost_writes"]:
        return head
    table = table_of("loss", "record", "revision", "request", "answered by", "answered (UTC)", "found", "seen")
    for lost in view["lost_writes"]:
        table.add_row(
            lost["loss"],
            lost["key"],
            str(lost["revision"]),
            lost["request_id"],
            str(lost["store"]),
            lost["acknowledged_time"].replace("T", " ").removesuffix("+00:00"),
            lost["found_time"].replace("T", " ").removesuffix("+00:00"),
            ", ".join(f"{row['store']} {row['revision']}{' (owner)' if row['owned'] else ''}" for row in lost["rows"]),
        )
    return Group(head, Text(""), table)
