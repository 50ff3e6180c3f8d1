"""The life of a sandbox.

The one rule: every move between states that a client can ask for stands in `TRANSITIONS`, and nowhere else. A move to
the state that the sandbox has already changes nothing and is always allowed. UNSPECIFIED stands for "no state yet":
what follows it is what a new sandbox may start in. Deleting is no state: a deleted sandbox keeps the one it had.
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
"""Of a sandbox that is created without a state."""

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
"""Of the states that a sandbox can have."""


def state_name(number: int) -> str:
    """As filters and stores' columns spell it; a state that a newer contract added is its number."""
    return NAMES.get(number) or str(number)


def check_transition(before: int, after: int) -> None:
    """Raises IllegalStateTransition."""
    allowed = TRANSITIONS.get(before, ())
    if after == before or after in allowed:
        return
    names = " or ".join(NAMES[number] for number in allowed) or "no state that this version knows"
    raise IllegalStateTransition(state_name(before), state_name(after), names)
