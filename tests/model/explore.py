"""Takes every step from every state, breadth first: the first trace found to a broken property is a shortest one."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Model(Protocol[S]):
    """A state may be any hashable value."""

    @property
    def start(self) -> S: ...

    def steps(self, state: S) -> Iterable[tuple[str, S]]: ...

    def broken(self, state: S) -> str | None:
        """The property that does not hold."""
        ...


@dataclass(frozen=True)
class Explored:
    states: int
    broken: str | None
    trace: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.broken or 'safe'} ({self.states} states)"]
        return "\n".join(lines + [f"  {number}. {step}" for number, step in enumerate(self.trace, 1)])


def explore(model: Model[S]) -> Explored:
    """Every state that can be reached, breadth first; ends at the first state that breaks a property."""
    with _no_collection():
        return _explore(model)


@contextmanager
def _no_collection() -> Iterator[None]:
    """All states live until the end, without cycles: collecting them takes a quarter of the time, for nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _explore(model: Model[S]) -> Explored:
    came_from: dict[S, tuple[S, str] | None] = {model.start: None}
    queue = deque([model.start])
    while queue:
        state = queue.popleft()
        if property_ := model.broken(state):
            return Explored(len(came_from), property_, _trace(came_from, state))
        for step, after in model.steps(state):
            if after not in came_from:
                came_from[after] = (state, step)
                queue.append(after)
    return Explored(len(came_from), None, ())


def _trace(came_from: Mapping[S, tuple[S, str] | None], state: S) -> tuple[str, ...]:
    steps: list[str] = []
    while (before := came_from[state]) is not None:
        state, step = before
        steps.append(step)
    return tuple(reversed(steps))
