"""Whether traffic must go back to A now, without asking a person. Pure: counts in, a ruling out.

Rule 1: B's share of server faults is above the limit in each part of the window, and in one more part before it: so it
has been above the limit for the whole window, wherever within a part it began. A short outage, however complete, moves
nothing; and a rate that is above the limit only on average does not either.
Rule 2: there are enough calls in the window to say so.
Rule 3: A is there, and its own share of faults in the same window is lower by at least the margin. What both stores
suffer from is not cured by going to A. Healthy traffic at B sends few calls to A. When there are too few to tell, A
is taken to be without faults as long as it says, when asked for its status, that it serves.
Rule 4: at most once in `pause_seconds`. If B fails again so soon after people sent traffic back to it, they decide.
Rule 5: where all traffic is held at A, or there is no way back, there is nothing to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from libs.ownership.model import Store
from services.router.core.measure import Counts, total
from services.router.core.phase import ORDER, IllegalMove, Phase, Setting

PARTS = 6
"""Of the window."""


@dataclass(frozen=True, slots=True)
class RollbackLimits:
    automatic: bool = True
    """False: a person is called instead."""
    fault_rate: float = 0.05
    """Share of B's calls that may be server faults."""
    window_seconds: int = 30
    """For how long it must be exceeded."""
    least_calls: int = 200
    """Of B in the window."""
    margin: float = 0.05
    """By how much B's share must exceed A's."""
    least_a_calls: int = 20
    """Answers of A in the window, for its share to count."""
    pause_seconds: float = 600.0
    """Between two automatic rollbacks."""

    @property
    def seen_seconds(self) -> int:
        """The window and one part before it."""
        return self.window_seconds + math.ceil(self.window_seconds / PARTS)


class Ruling(Enum):
    KEEP = "keep"
    ROLL_BACK = "roll back"
    CALL_A_PERSON = "call a person"
    """B fails, but going back by itself is not allowed, or would not help."""


class Verdict(NamedTuple):
    ruling: Ruling
    reason: str
    """In words, with the figures."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the judge knows."""

    setting: Setting
    seconds: Sequence[tuple[Counts, Counts]]
    """A's and B's counts over all routers in each past second, the newest first; none from before B got traffic."""
    a_serves: bool
    """A has just said so."""
    last_seconds_ago: float | None
    """Since the last automatic rollback; None: there was none."""


def decide(seen: Seen, limits: RollbackLimits) -> Verdict:
    if seen.setting.hold or not seen.setting.rule.way_back:
        return Verdict(Ruling.KEEP, "all traffic is held at A" if seen.setting.hold else "there is no way back")
    window = seen.seconds[: limits.window_seconds]
    b = total(b for _, b in window)
    if len(seen.seconds) < limits.seen_seconds:
        return Verdict(Ruling.KEEP, f"{len(seen.seconds)} of {limits.seen_seconds} s are seen")
    if b.calls < limits.least_calls:
        return Verdict(
            Ruling.KEEP, f"{b.calls} calls of B in {limits.window_seconds} s, {limits.least_calls} are needed"
        )
    if not _all_along(seen.seconds[: limits.seen_seconds], limits):
        return Verdict(Ruling.KEEP, f"{_share(b)}, not above {limits.fault_rate:.1%} all along")
    found = f"{_share(b)} of B's in {limits.window_seconds} s, above {limits.fault_rate:.1%} all along"
    a = total(a for a, _ in window)
    if trouble := _against_a(a, b, seen, limits):
        return Verdict(Ruling.CALL_A_PERSON, f"{found}; {trouble}")
    if not limits.automatic:
        return Verdict(Ruling.CALL_A_PERSON, f"{found}; automatic rollback is switched off")
    ago = seen.last_seconds_ago
    if ago is not None and ago < limits.pause_seconds:
        return Verdict(
            Ruling.CALL_A_PERSON,
            f"{found}; the last automatic rollback was {ago:.0f} s ago: within {limits.pause_seconds:.0f} s people"
            " decide",
        )
    compared = f"A's share is {a_rate(a):.1%} of {a.answered}" if a.answered >= limits.least_a_calls else "A serves"
    return Verdict(Ruling.ROLL_BACK, f"{found}; {compared}")


def automatic_rollback(setting: Setting) -> Setting:
    """All traffic to A until a person lifts the hold; at most DUAL_WRITE, without a canary, so both feeds go on.

    Raises IllegalMove: there is no way back.
    """
    if not setting.rule.way_back:
        raise IllegalMove(f"{setting.phase.value} has no way back: A may be shut down or behind")
    to = min(setting.phase, Phase.DUAL_WRITE, key=ORDER.index)
    return replace(setting, generation=setting.generation + 1, phase=to, canary_permille=0, hold=True, rehearsal=())


def a_rate(counts: Counts) -> float:
    """A's faults among all that it has answered: while B is away A is asked for B's records too, and denies them."""
    return counts.faults / counts.answered if counts.answered else 0.0


def _all_along(seconds: Sequence[tuple[Counts, Counts]], limits: RollbackLimits) -> bool:
    """Each part is above the limit by itself. A part without calls is not."""
    edges = [round(number * limits.window_seconds / PARTS) for number in range(PARTS + 1)] + [limits.seen_seconds]
    parts = [total(b for _, b in seconds[start:end]) for start, end in pairwise(edges) if end > start]
    return all(part.rate > limits.fault_rate for part in parts)


def _against_a(a: Counts, b: Counts, seen: Seen, limits: RollbackLimits) -> str:
    """Why going to A would not help; "" when it would."""
    if not seen.a_serves:
        return f"store {Store.A} does not serve either: going there would not help"
    if a.answered >= limits.least_a_calls and b.rate < a_rate(a) + limits.margin:
        return f"A's share is {a_rate(a):.1%} of {a.answered}: what both suffer from is not B's fault"
    return ""


def _share(counts: Counts) -> str:
    return f"{counts.faults} server faults in {counts.calls} calls ({counts.rate:.1%})"
