"""`baton retire`: the steps that take A away, each with its check, and A's cold backup."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Changing, agree, command

if TYPE_CHECKING:
    from libs.pb.baton.control.v1 import ending_pb2 as pb
    from services.router.cli.backup_file import FoundBackup
    from services.router.cli.client import Control
    from services.router.cli.views import View

MARKS = {"DONE": "done", "NOT_DONE": "NOT DONE", "WAITS": "waits"}


def register(app: typer.Typer) -> None:
    command(app, "retire", Changing)(retire)


def retire(
    options: Changing,
    backup: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write all records of A to this new file and read it back. A file that exists is checked, and recorded"
            " if it has the last export.",
        ),
    ] = None,
) -> None:
    """Show and check the steps that take A away.

    \b
    JSON keys: complete open: list of {OpenItem}
      steps: list of {RetirementStep}
      backup: {Backup}, or null
      backup_checked: whether FILE was read back and is the recorded backup
      dry_run effects
    Refuses with 3 or 4 while `baton certificate` is NOT COMPLETE.
    """
    from libs.pb.baton.control.v1 import ending_pb2 as pb
    from services.router.cli import show
    from services.router.cli.certificate import not_complete
    from services.router.cli.client import control

    with control(options) as router:
        certificate = router.call("GetCertificate", pb.GetCertificateRequest())
        agreed, checked = None, False
        if backup is not None and backup.exists():
            found = _read(backup)
            checked = _is_recorded(router, backup, found, may_be_new=certificate.complete)
            if not checked:
                agreed = agree(options, [f"{backup} is recorded as the backup, if it has all that was exported last"])
                if agreed:
                    _record(router, options, backup, found)
        elif backup is not None and certificate.complete:
            agreed = agree(options, [f"all records of A are written to {backup}, which only you can read", _NOTED])
            if agreed:
                _make(router, options, backup)
        checked = checked or bool(agreed)
        found = router.call("GetRetirement", pb.GetRetirementRequest())
    view = _view(certificate, found) | {"backup_checked": checked}
    if options.json:
        plan = {"dry_run": options.dry_run, "effects": []} if agreed is None else agreed.view
        show.print_json(view | plan)
    else:
        typer.echo("\n".join(_lines(view)))
    if not certificate.complete:
        raise not_complete(certificate.open)


_NOTED = "the file is read back and compared with the store; the journal keeps the result"


def _view(certificate: pb.GetCertificateResponse, found: pb.GetRetirementResponse) -> View:
    from services.router.cli.views import view_of

    return {
        "complete": certificate.complete,
        "open": [view_of(item) for item in certificate.open],
        **view_of(found),
    }


def _make(router: Control, options: Changing, path: Path) -> None:
    """Write, read back, record. Raises CommandFailed."""
    from libs.pb.baton.control.v1 import ending_pb2 as pb
    from services.router.cli import backup_file

    request = pb.ExportStoreRequest(actor=options.who, reason=options.reason)
    try:
        exported = backup_file.write(path, router.stream("ExportStore", request))
    except OSError as error:
        raise _unfit(path, error) from None
    if exported is None:
        raise CommandFailed("the export ended early; no file was kept: try again")
    found = _read(path)
    if found.sum != exported:
        raise CommandFailed(
            f"{path} has {_sum(found.sum)}, but the store has {_sum(exported)}: remove it and try again"
        )
    _record(router, options, path, found)


def _record(router: Control, options: Changing, path: Path, found: FoundBackup) -> None:
    """Raises CommandFailed, also if it is not the last export."""
    from libs.pb.baton.control.v1 import ending_pb2 as pb

    total = pb.ExportSum(records=found.sum.records, digest=found.sum.text)
    router.call(
        "RecordBackup",
        pb.RecordBackupRequest(
            actor=options.who, reason=options.reason, file=str(path), file_digest=found.file_digest, sum=total
        ),
    )


def _is_recorded(router: Control, path: Path, found: FoundBackup, *, may_be_new: bool) -> bool:
    """Whether the file is the recorded backup. `may_be_new`: its record may have failed. Raises CommandFailed."""
    from libs.pb.baton.control.v1 import ending_pb2 as pb

    recorded = router.call("GetRetirement", pb.GetRetirementRequest()).backup
    if (found.file_digest, found.sum.text) == (recorded.file_digest, recorded.digest):
        return True
    if not may_be_new:
        raise CommandFailed(
            f"--backup: {path} exists and is not the recorded backup ({recorded.file or 'there is none'}): name a new"
            " file, or that one",
            Exit.FAILED,
        )
    return False


def _read(path: Path) -> FoundBackup:
    """Raises CommandFailed."""
    from services.router.cli import backup_file

    try:
        return backup_file.read(path)
    except (OSError, backup_file.BackupUnreadable) as error:
        raise _unfit(path, error) from None


def _unfit(path: Path, error: Exception) -> CommandFailed:
    return CommandFailed(f"--backup: {path} cannot be used: {error}")


def _sum(found: Any) -> str:
    return f"{found.records} records with digest {found.text}"


def _lines(view: View) -> list[str]:
    found = []
    for number, step in enumerate(view["steps"], start=1):
        found.append(f"{number}. {MARKS[step['state']]:8}  {step['sentence']}")
        found.append(f"   {'':8}  {step['check']}")
        if step["state"] != "DONE":
            found.append(f"   {'':8}  {step['command']}")
    if view["backup_checked"]:
        found.append("The backup was read back: it is whole, and the recorded one.")
    return found
