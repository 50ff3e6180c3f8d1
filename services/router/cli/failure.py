"""The failure of a command, and the exit codes."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    BLOCKED = 3
    """A gate fails."""
    INCONCLUSIVE = 4
    """A gate has too little evidence."""
    REFUSED = 5
    """The router refuses the caller: it has no valid credentials, or lacks a role."""
    SECOND_PERSON = 6
    """A second admin must approve the call."""
    STILL_RUNNING = 7
    """The work goes on: --timeout has ended the wait."""


class CommandFailed(Exception):
    """The message and the exit code of a command that failed."""

    def __init__(self, message: str, code: Exit = Exit.FAILED, page: str = "") -> None:
        """`page`: the runbook with the remedy."""
        super().__init__(message)
        self.code = code
        self.page = page
