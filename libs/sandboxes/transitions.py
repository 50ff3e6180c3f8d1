"""States of a sandbox.

Every transition that a client can request is in `TRANSITIONS`, and only there. A transition to the current state is
always allowed and changes nothing. UNSPECIFIED means "no state yet": its successors are the states that a new sandbox
may start in. Deletion is not a state: a deleted sandbox keeps its state.
"""

from __future__ import annotations

from collections.abc import Mapping

from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.sandboxes.errors import IllegalStateTransition

UNSPECIFIED = int(Sandbox.STATE_UNSPECIFIED)
PENDING = int(Sandbox.STATE_PENDING)
RUNNING = int(Sandbox.STATE_RUNNING)
STOPPED = int(Sandbox.STATE_STOPPED)
FAILED = int(Sandbox.STATE_FAILED)

INITIAL = PENDING
"""State of a sandbox that is created without one."""

TRANSITIONS: Mapping[int, tuple[int, ...]] = {
    UNSPECIFIED: (PENDING, RUNNING),
    PENDING: (RUNNING, FAILED),
    RUNNING: (STOPPED, FAILED),
    STOPPED: (PENDING, RUNNING),
    FAILED: (PENDING,),
}

NAMES: Mapping[int, str] = {
    UNSPECIFIED: "UNSPECIFIED",
    PENDING: "PENDING",
    RUNNING: "RUNNING",
    STOPPED: "STOPPED",
    FAILED: "FAILED",
}
NUMBERS: Mapping[str, int] = {name: number for number, name in NAMES.items() if number != UNSPECIFIED}
"""The states that a sandbox can have."""


def state_name(number: int) -> str:
    """Name of the state in filters and in stores' columns. A state of a newer contract is its number."""
    return NAMES.get(number) or str(number)


def check_transition(before: int, after: int) -> None:
    allowed = TRANSITIONS.get(before, ())
    if after == before or after in allowed:
        return
    names = " or ".join(NAMES[number] for number in allowed) or "no state that this version knows"
    raise IllegalStateTransition(state_name(before), state_name(after), names)
