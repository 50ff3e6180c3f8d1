"""`baton`, the operator's command."""

from __future__ import annotations


def main() -> None:
    """The entry point."""
    import sys

    from services.router.cli.app import app

    # A terminal that cannot show a character gets its escape.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app()
