"""`baton conflicts`: changes of a lost store that a seizure did not see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.inputs import parse_store
from services.router.cli.options import Changing, Revealing, agree, command, without_command

if TYPE_CHECKING:
    from rich.console import RenderableType


View = dict[str, Any]


def register(app: typer.Typer) -> None:
    conflicts = typer.Typer(help="Changes of a lost store that a seizure did not see.")
    without_command(conflicts, Revealing)(list_conflicts)
    command(conflicts, "resolve", Changing)(resolve)
    app.add_typer(conflicts, name="conflicts")


def list_conflicts(
    options: Revealing,
    limit: Annotated[int, typer.Option(min=0, max=1000, help="At most N of each store; 0: 200.")] = 0,
) -> None:
    """List changes of a lost store that were not in the log when its records were seized, unresolved ones first. They
    are never applied automatically. Review each, repeat it by an ordinary call if it is wanted, and resolve it. Until
    then new records of its bucket cannot move.

    \b
    JSON keys: conflicts (list of {Conflict}), troubles
    Secrets are *** unless --reveal is given.
    """
    from libs.pb.baton.control.v1 import conflicts_pb2 as pb
    from services.router.cli import show
    from services.router.cli.client import control
    from services.router.cli.views import view_of

    with control(options) as router:
        answer = router.call("ListConflicts", pb.ListConflictsRequest(limit=limit, **options.question))
    view = view_of(answer)
    if options.json:
        show.print_json(view)
    else:
        show.show(_screen(view["conflicts"]))
    if answer.troubles:
        raise CommandFailed("; ".join(answer.troubles))


def resolve(
    options: Changing,
    store: Annotated[str, typer.Argument(metavar="STORE", help="The store with the conflict in its journal: A or B.")],
    key: Annotated[str, typer.Argument(metavar="NAME", help="The record.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="As `baton conflicts` lists it: 0-7.")],
) -> None:
    """Mark a conflict as resolved; --reason describes how. It stays in the journal.

    \b
    JSON keys: store key version dry_run effects
    """
    from libs.ownership.model import Store
    from libs.ownership.wire import STORE_NUMBERS
    from libs.pb.baton.control.v1 import conflicts_pb2 as pb
    from libs.pb.baton.record.v1 import record_pb2
    from services.router.cli import show
    from services.router.cli.client import control

    at = parse_store(store)
    term, dash, revision = version.strip().partition("-")
    if not (dash and term.isdecimal() and revision.isdecimal()):
        raise CommandFailed(f"version: {version!r} is not a version: term-revision, as 0-7", Exit.USAGE)
    if not options.reason.strip():
        raise CommandFailed("--reason is required: how it was resolved; the journal keeps it", Exit.USAGE)
    with control(options) as router:
        agreed = agree(options, [f"{key} at {version} is marked as resolved in the journal of {at}"])
        if agreed:
            request = pb.ResolveConflictRequest(
                actor=options.who,
                reason=options.reason,
                store=STORE_NUMBERS[Store(at)],
                key=key,
                version=record_pb2.Version(term=int(term), revision=int(revision)),
            )
            router.call("ResolveConflict", request)
    if options.json:
        show.print_json({"store": at, "key": key, "version": version, **agreed.view})
    elif agreed:
        show.show(f"{key} {version}: resolved")


def _screen(views: list[View]) -> RenderableType:
    from rich.text import Text

    from services.router.cli.show import table_of

    if not views:
        return Text("no conflicts")
    table = table_of("store", "record", "version", "why", "content", "resolved by")
    for view in views:
        content = view["content"] if view["live"] else "deleted"
        table.add_row(view["store"], view["key"], view["version"], view["why"], content, view["resolution"])
    return table
