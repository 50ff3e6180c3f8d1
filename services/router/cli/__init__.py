"""`baton`, the operator's command."""

from __future__ import annotations


def main() -> None:
    """The entry point."""
    from services.router.cli.app import app

    app()
