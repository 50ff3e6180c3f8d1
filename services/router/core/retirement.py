"""The steps that take A away, in order, each with its check. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from services.router.core.phase import LAST_STEP_CONFIRM, Phase


class State(Enum):
    DONE = "DONE"
    NOT_DONE = "NOT_DONE"
    WAITS = "WAITS"
    """An earlier step must be done first, or a time must pass."""


class Step(NamedTuple):
    name: str
    sentence: str
    command: str
    state: State
    check: str
    """The findings, in words."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The facts that decide which steps are done."""

    phase: Phase
    open: Sequence[str]
    """Names of the certificate's open items."""
    backup: str
    """The recorded backup, in words; empty: there is none."""
    backup_counts: bool
    """Whether the backup is recent enough for DEPRECATED, or let it be entered."""
    a_answers: bool
    direct_routes: bool
    """This router gives clients routes to A."""
    keep_until: str
    """The end of the window, for people; empty before DEPRECATED."""
    window_over: bool


def steps(now: Standing) -> list[Step]:
    last = now.phase is Phase.DEPRECATED
    complete, kept = not now.open, bool(now.backup) and now.backup_counts
    return [
        Step(
            "certificate",
            "Nothing is open: every record has arrived at B.",
            "baton certificate",
            State.DONE if complete else State.NOT_DONE,
            "complete" if complete else f"open: {', '.join(now.open)}",
        ),
        Step(
            "backup",
            "A's records are in a backup that was read back and compared.",
            "baton retire --backup FILE --yes",
            _state(kept, complete or last),
            now.backup or "none is recorded",
        ),
        Step(
            "deprecated",
            "No call goes to A, and nothing leads back.",
            f"baton phase advance DEPRECATED --confirm {LAST_STEP_CONFIRM} --yes",
            _state(last, complete and kept),
            f"the phase is {now.phase.value}",
        ),
        Step(
            "routes",
            "Clients with xDS get no route to A.",
            "restart each router without BATON_ROUTER_XDS_STORE_A",
            _state(not now.direct_routes, last),
            "this router names A in its routes" if now.direct_routes else "this router names no route to A",
        ),
        Step(
            "stop",
            "A is stopped, and stays stopped.",
            "stop A as it was started, and remove it from what starts it again",
            _state(last and not now.a_answers, last),
            "A answers" if now.a_answers else "A does not answer",
        ),
        Step(
            "window",
            "The backup and A's database are kept until the window is over.",
            "baton retire --backup FILE checks that the backup is still whole",
            _state(now.window_over, last and not now.a_answers),
            f"keep both until {now.keep_until}" if now.keep_until else "the window begins with DEPRECATED",
        ),
    ]


def _state(done: bool, may_be_done: bool) -> State:
    if done:
        return State.DONE
    return State.NOT_DONE if may_be_done else State.WAITS
