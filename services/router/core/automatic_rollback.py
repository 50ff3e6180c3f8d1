"""Automatic rollback: whether all traffic goes back to A now, without an operator. Pure.

Rule 1: B's share of server faults is above the limit in each of the window's parts, and in one part before it. So it
has been above the limit for the whole window, wherever within a part the faults began. A short outage, however
complete, does not roll back, nor does a share that is above the limit only on average.
Rule 2: B has answered enough calls in the window. If they are too few for that, and enough for a share, operators
decide.
Rule 3: A serves, and its own share of faults in the window is lower by at least the margin. A fault that both stores
share, such as an overloaded machine, does not go away at A. While B is healthy, A gets few calls. If they are too few
for a share, A counts as free of faults while its status shows that it serves.
Rule 4: at most one automatic rollback per pause. If B fails again so soon after operators sent traffic back to it, they
decide.
Rule 5: no automatic rollback while all traffic is held at A, nor in a phase without a way back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from libs.ownership.model import Store
from services.router.core.cohorts import sent_home
from services.router.core.measure import Counts, total
from services.router.core.phase import ORDER, IllegalMove, Phase, Setting
from services.router.core.thresholds import DAY_SECONDS, Limits, count, percent, seconds, switch

PARTS = 6
"""Number of parts of the window."""

LEAST_A_CALLS = 20
"""Answers of A in the window that its share of faults needs."""

LEAST_B_CALLS = 20
"""Calls of B in the window that an alert needs. A rollback needs `rollback_calls`."""

AUTOMATIC = switch("rollback_automatic", True, "1: faults of B roll back; 0: they alert an operator.")
FAULTS = percent("rollback_fault_percent", 5, "Percent of B's calls that may fail by its fault.")
WINDOW = count("rollback_seconds", 30, "Seconds for which B must fail.", least=6, most=50)
CALLS = count("rollback_calls", 200, "Calls of B that are needed in that time.", most=100_000)
MARGIN = percent("rollback_margin_percent", 5, "Percent by which B's share of faults must exceed A's.")
PAUSE = seconds("rollback_pause_seconds", 600, "Seconds between two automatic rollbacks.", least=0.0, most=DAY_SECONDS)

THRESHOLDS = (AUTOMATIC, FAULTS, WINDOW, CALLS, MARGIN, PAUSE)


def needed_seconds(limits: Limits) -> int:
    """The window and one part before it."""
    return limits[WINDOW] + math.ceil(limits[WINDOW] / PARTS)


class Action(Enum):
    KEEP = "keep"
    ROLL_BACK = "roll back"
    ALERT = "alert"
    """B fails, but an automatic rollback is not allowed or would not help."""


class Outcome(NamedTuple):
    action: Action
    reason: str
    """Reason in words, with the figures."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The evidence."""

    setting: Setting
    seconds: Sequence[tuple[Counts, Counts]]
    """Counts of A and B at all routers in each past second, newest first; none from before B got traffic."""
    a_serves: bool
    """A's latest status says so."""
    last_seconds_ago: float | None
    """Seconds since the last automatic rollback; None: there was none."""


def decide(seen: Observation, limits: Limits) -> Outcome:
    if seen.setting.hold or not seen.setting.rule.way_back:
        return Outcome(Action.KEEP, "all traffic is held at A" if seen.setting.hold else "there is no way back")
    window_seconds, needed, least = limits[WINDOW], needed_seconds(limits), limits[CALLS]
    window = seen.seconds[:window_seconds]
    b = total(b for _, b in window)
    if len(seen.seconds) < needed:
        return Outcome(Action.KEEP, f"{len(seen.seconds)} of {needed} s are known")
    few = f"{b.calls} calls of B in {window_seconds} s, {least} are needed"
    if b.calls < min(least, LEAST_B_CALLS):
        return Outcome(Action.KEEP, few)
    if not _all_along(seen.seconds[:needed], limits):
        calm = few if b.calls < least else f"{_share(b)}, not above {limits[FAULTS]:.1%} all along"
        return Outcome(Action.KEEP, calm)
    found = f"{_share(b)} of B's in {window_seconds} s, above {limits[FAULTS]:.1%} all along"
    a = total(a for a, _ in window)
    if objection := _against_a(a, b, seen, limits):
        return Outcome(Action.ALERT, f"{found}; {objection}")
    if b.calls < least:
        return Outcome(Action.ALERT, f"{found}; an automatic rollback needs {least} calls")
    if not limits[AUTOMATIC]:
        return Outcome(Action.ALERT, f"{found}; automatic rollback is switched off")
    ago = seen.last_seconds_ago
    if ago is not None and ago < limits[PAUSE]:
        return Outcome(
            Action.ALERT,
            f"{found}; the last automatic rollback was {ago:.0f} s ago: within {limits[PAUSE]:.0f} s operators decide",
        )
    compared = f"A's share is {a_rate(a):.1%} of {a.answered}" if a.answered >= LEAST_A_CALLS else "A serves"
    return Outcome(Action.ROLL_BACK, f"{found}; {compared}")


def rolled_back(setting: Setting) -> Setting:
    """All traffic to A until an operator lifts the hold; at most DUAL_WRITE, without a canary, so both feeds go on.

    Raises IllegalMove: there is no way back.
    """
    if not setting.rule.way_back:
        raise IllegalMove(f"{setting.phase.value} has no way back: A may be shut down or behind")
    to = min(setting.phase, Phase.DUAL_WRITE, key=ORDER.index)
    after = replace(setting, generation=setting.generation + 1, phase=to, canary_permille=0, hold=True, rehearsal=())
    return replace(after, cohorts=sent_home(setting.cohorts))


def a_rate(counts: Counts) -> float:
    """A's faults as a share of all its answers. While B is away, A gets calls on B's records too, and denies them."""
    return counts.faults / counts.answered if counts.answered else 0.0


def _all_along(seconds: Sequence[tuple[Counts, Counts]], limits: Limits) -> bool:
    """Each part is above the limit by itself. A part without calls is not."""
    edges = [round(number * limits[WINDOW] / PARTS) for number in range(PARTS + 1)] + [needed_seconds(limits)]
    parts = [total(b for _, b in seconds[start:end]) for start, end in pairwise(edges) if end > start]
    return all(part.rate > limits[FAULTS] for part in parts)


def _against_a(a: Counts, b: Counts, seen: Observation, limits: Limits) -> str:
    """The reason why a rollback would not help, or ""."""
    if not seen.a_serves:
        return f"store {Store.A} does not serve either: a rollback would not help"
    if a.answered >= LEAST_A_CALLS and b.rate < a_rate(a) + limits[MARGIN]:
        return f"A's share is {a_rate(a):.1%} of {a.answered}: a fault that both stores share is not B's"
    return ""


def _share(counts: Counts) -> str:
    return f"{counts.faults} server faults in {counts.calls} calls ({counts.rate:.1%})"
