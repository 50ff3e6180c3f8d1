"""`baton certificate`: the report at the end of a migration, and the check of such a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.router.cli.certificate_text import COMPLETE, NOT_COMPLETE, View, lines
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Common, command

if TYPE_CHECKING:
    from libs.pb.baton.control.v1 import ending_pb2


UNSIGNED = "it is not signed"


def register(app: typer.Typer) -> None:
    command(app, "certificate", Common)(certificate)


def certificate(
    options: Common,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write it as a page; FILE is replaced.")
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="FILE", help="Check a certificate of -o json or --html; print nothing else."),
    ] = None,
    event_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For --verify: the key ring of the signature, which must be there. Without it, a router checks.",
        ),
    ] = None,
) -> None:
    """Show what happened in the migration, and what is still open.

    \b
    JSON keys: certificate: complete open phase history gates stores ledger
        compared jobs clients parked conflicts kind made router service
        generation
      digest: SHA-256 of the certificate as canonical JSON
      key code: its signature, with the event key of this id, or empty
    With --verify: valid complete digest_trouble signature page_trouble
    Exits with 3 while it is NOT COMPLETE, with 4 if only evidence is missing.
    """
    if verify is not None:
        _verify(options, verify, event_keys)
        return
    from libs.pb.baton.control.v1 import ending_pb2 as pb
    from services.router.cli import show
    from services.router.cli.certificate_page import page
    from services.router.cli.client import control

    with control(options) as router:
        answer = router.call("GetCertificate", pb.GetCertificateRequest())
    view = envelope(answer)
    if html is not None:
        _write(html, page(view))
    if options.json:
        show.print_json(view)
    else:
        typer.echo("\n".join(lines(view)))
    if not answer.complete:
        raise not_complete(answer.open)


def envelope(answer: ending_pb2.GetCertificateResponse) -> View:
    """The certificate with its seal."""
    seal = answer.seal
    return {"certificate": json.loads(answer.document), "digest": seal.digest, "key": seal.key, "code": seal.code}


def not_complete(items: Sequence[ending_pb2.OpenItem]) -> CommandFailed:
    code = Exit.INCONCLUSIVE if all(item.inconclusive for item in items) else Exit.BLOCKED
    names = ", ".join(item.name for item in items)
    return CommandFailed(f"the certificate is {NOT_COMPLETE}; open: {names}", code)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"--html: {path} cannot be written: {error.strerror}", Exit.USAGE) from None


def _verify(options: Common, path: Path, event_keys: Path | None) -> None:
    from libs.eventlog.seals import Seal, why_no_seal
    from services.router.cli import show
    from services.router.cli.certificate_page import why_other
    from services.router.core.migration_certificate import canonical

    text = _text(path)
    view = _view(path, text)
    found = view["certificate"]
    seal = Seal(str(view["digest"]), str(view.get("key", "")), str(view.get("code", "")))
    digest, page = why_no_seal(seal, canonical(found)), why_other(text, view)
    signature = _why_no_code(options, seal, event_keys) if seal.code else UNSIGNED
    # Without its signature, a certificate can be changed by anybody.
    signed = not signature or (signature == UNSIGNED and event_keys is None)
    valid = not digest and not page and signed
    complete = found.get("complete") is True
    if options.json:
        troubles = {"digest_trouble": digest, "signature": signature or "valid", "page_trouble": page}
        show.print_json({"valid": valid, "complete": complete, **troubles})
    else:
        typer.echo(f"certificate: {COMPLETE if complete else NOT_COMPLETE}")
        typer.echo(f"digest: {digest or 'valid'}\nsignature: {signature or 'valid'}")
        if page:
            typer.echo(f"page: {page}")
    if not valid:
        raise CommandFailed(f"{path} is not a certificate as a router made it")


def _why_no_code(options: Common, seal: Any, event_keys: Path | None) -> str:
    from libs.eventlog.key_ring import read_key_ring
    from libs.eventlog.seals import why_no_code
    from libs.pb.baton.control.v1 import ending_pb2 as pb
    from services.router.cli.client import control

    if event_keys is not None:
        try:
            return why_no_code(seal, read_key_ring(event_keys.read_bytes()))
        except (OSError, ValueError) as error:
            raise CommandFailed(f"--event-keys: {event_keys} cannot be used: {error}", Exit.USAGE) from None
    request = pb.VerifyCertificateRequest(seal=pb.Seal(digest=seal.digest, key=seal.key, code=seal.code))
    with control(options) as router:
        return str(router.call("VerifyCertificate", request).trouble)


def read(path: Path) -> View:
    """The certificate and its seal in a file of `-o json` or `--html`. Raises CommandFailed."""
    return _view(path, _text(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"--verify: {path} cannot be read: {error.strerror}", Exit.USAGE) from None
    except UnicodeDecodeError:
        raise _no_certificate(path) from None


def _view(path: Path, text: str) -> View:
    from services.router.cli.certificate_page import embedded, is_page

    try:
        view: View = json.loads(embedded(text) if is_page(text) else text)
        if not isinstance(view["certificate"], dict) or not isinstance(view["digest"], str):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise _no_certificate(path) from None
    return view


def _no_certificate(path: Path) -> CommandFailed:
    return CommandFailed(f"--verify: {path} holds no certificate: name a file of -o json or --html", Exit.USAGE)
