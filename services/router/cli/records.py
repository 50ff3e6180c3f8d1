"""The commands for unreadable records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Changing, Revealing, agree, command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from libs.pb.baton.control.v1 import records_pb2 as pb

View = dict[str, Any]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The record's name, as in the logs or in `baton reconcile`.")]


def register(app: typer.Typer) -> None:
    records = typer.Typer(help="Unreadable records: show, replace or delete them.", no_args_is_help=True)
    command(records, "show", Revealing)(show_record)
    command(records, "delete", Changing)(delete)
    command(records, "replace", Changing)(replace)
    app.add_typer(records, name="records")


def show_record(options: Revealing, name: Name) -> None:
    """Show each store's row of a record, and why it cannot be read. Changes nothing.

    \b
    JSON keys: records (list of {RecordAt})
    content is JSON text; it is empty when the record cannot be read.
    Secrets are ***, and head is empty, unless --reveal is given.
    """
    from libs.pb.baton.control.v1 import records_pb2 as pb
    from services.router.cli import show
    from services.router.cli.client import control
    from services.router.cli.views import view_of

    with control(options) as router:
        answer = router.call("ShowRecord", pb.ShowRecordRequest(key=name, **options.question))
    views = view_of(answer)["records"]
    if options.json:
        show.print_json({"records": views})
    else:
        show.show(_screen(views))
    if troubles := [view["trouble"] for view in views if view["trouble"]]:
        raise CommandFailed("; ".join(troubles))


def delete(options: Changing, name: Name) -> None:
    """Delete an unreadable record at its owner. Needs --reason. Its content is dropped and cannot be undeleted.
    A readable record is refused: delete it by an ordinary call.

    \b
    JSON keys: name {RepairRecordResponse} dry_run effects
    """
    from libs.pb.baton.control.v1 import records_pb2 as pb

    _repair(options, pb.RepairRecordRequest(key=name, delete=True))


def replace(
    options: Changing,
    name: Name,
    source: Annotated[
        str,
        typer.Option("--from", metavar="A|B|FILE", help="The store with the correct copy, or a file with JSON."),
    ],
) -> None:
    """Replace an unreadable record at its owner. Needs --reason. The other store gets it by the log.

    \b
    JSON keys: name {RepairRecordResponse} dry_run effects
    """
    from libs.ownership.model import Store
    from libs.ownership.wire import STORE_NUMBERS
    from libs.pb.baton.control.v1 import records_pb2 as pb

    request = pb.RepairRecordRequest(key=name)
    if source in ("A", "B"):
        request.copy = STORE_NUMBERS[Store(source)]
    else:
        request.json = _text(source)
    _repair(options, request)


def _text(source: str) -> str:
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"--from: {source!r} is neither A, B nor a file with JSON: {error}", Exit.USAGE) from None


def _repair(options: Changing, request: pb.RepairRecordRequest) -> None:
    from services.router.cli import show
    from services.router.cli.client import control
    from services.router.cli.views import view_of

    if not options.dry_run and not options.reason.strip():
        raise CommandFailed("--reason is required: the journal keeps it", Exit.USAGE)
    request.actor, request.reason, request.dry_run = options.who, options.reason, True
    with control(options) as router:
        answer = router.call("RepairRecord", request)
        agreed = agree(options, [answer.effect])
        if agreed:
            request.dry_run = False
            answer = router.call("RepairRecord", request)
    view = {"name": request.key, **view_of(answer)}
    if options.json:
        show.print_json({**view, **agreed.view})
    elif agreed:
        show.show(f"{request.key}: repaired, version {view['version']}")


def _screen(views: list[View]) -> RenderableType:
    from services.router.cli.show import table_of

    table = table_of("store", "version", "owner", "state", "bytes", "content")
    for view in views:
        content = view["trouble"] or view["content"]
        if view["corrupt"]:
            content = f"{view['corrupt']} [{view['head']}]" if view["head"] else view["corrupt"]
        table.add_row(
            view["store"], view["version"] or "", view["owner"] or "", _state(view), str(view["bytes"]), content
        )
    return table


def _state(view: View) -> str:
    if view["trouble"]:
        return "unknown"
    if not view["exists"]:
        return "no row"
    if view["corrupt"]:
        return "corrupt"
    return "live" if view["live"] else "deleted"
