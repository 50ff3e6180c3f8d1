"""Takes every step from every state, breadth first: the first way found to a broken promise is a shortest one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from tests.model.ownership import Rules, State, broken


@dataclass(frozen=True)
class Explored:
    states: int
    broken: str | None
    trace: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.broken or 'safe'} ({self.states} states)"]
        return "\n".join(lines + [f"  {number}. {step}" for number, step in enumerate(self.trace, 1)])


def explore(rules: Rules) -> Explored:
    """Every state that can be reached, breadth first; ends at the first that breaks a promise."""
    start = State()
    came_from: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        if what := broken(state):
            return Explored(len(came_from), what, _trace(came_from, state))
        for step, after in rules.steps(state):
            if after not in came_from:
                came_from[after] = (state, step)
                queue.append(after)
    return Explored(len(came_from), None, ())


def _trace(came_from: Mapping[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    steps: list[str] = []
    while (before := came_from[state]) is not None:
        state, step = before
        steps.append(step)
    return tuple(reversed(steps))
