"""`baton`, the operator's command."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    import sys

    from services.router.cli.app import tree

    # Print an escape where the terminal's encoding lacks a character.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    tree(sys.argv[1:])()
