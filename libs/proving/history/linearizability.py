"""Decides whether the clients' observations of each key could have happened one operation at a time.

The search is that of Wing and Gong (1993) with the memoisation and the just-in-time order of Lowe (2017, "Testing for
linearizability"): walk the starts and ends of the operations in time, keep the set of all configurations (state of the
record, operations already placed) that explain everything so far, and place operations only when one of them ends. An
empty set is a violation, and the history up to that end is the shortest prefix that has one.

Three rules keep the search small. A fitting observation is placed at once, since it changes nothing. Acknowledged
revisions order the writes, so that only writes without one branch. A configuration is dropped if another one with the
same state and writes has placed at least the same observations and used no other optional write. Revisions are checked,
not trusted: an order that contradicts time or values explains nothing and is a violation.

Leases are checked separately, in the order of the revisions (see `leases`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from libs.proving.history import leases
from libs.proving.history.explain import Violation, explain
from libs.proving.history.history import Call
from libs.proving.history.operations import DoubleEffectError, Operation, State, operations

DEFAULT_MAX_STATES = 1_000_000


class Verdict(StrEnum):
    """Only LINEARIZABLE is a pass. EXHAUSTED means that the budget ended before the search did."""

    LINEARIZABLE = "linearizable"
    VIOLATED = "violated"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True)
class KeyResult:
    """The verdict on one key, the number of its calls and of the configurations that were visited."""

    key: str
    verdict: Verdict
    calls: int
    states: int
    violation: Violation | None = None

    def __str__(self) -> str:
        if self.violation is not None:
            return f"{self.key}: {self.violation}"
        return f"{self.key}: {self.verdict} after {self.states} states, {self.calls} calls"


@dataclass(frozen=True, slots=True)
class Report:
    """All keys. ``ok``: every key is linearizable. The caller decides whether there was enough load."""

    keys: tuple[KeyResult, ...]

    @property
    def ok(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[KeyResult, ...]:
        return tuple(result for result in self.keys if result.verdict is not Verdict.LINEARIZABLE)

    @property
    def calls(self) -> int:
        return sum(result.calls for result in self.keys)


def check(
    calls: Iterable[Call], *, initial: Mapping[str, State] | None = None, max_states: int = DEFAULT_MAX_STATES
) -> Report:
    """Check every key by itself (linearizability is local: a history is linearizable if each key's history is).

    ``initial``: records that existed before the history began. ``max_states``: limit of configurations per key. Calls
    without a key are ignored. Raises HistoryError if the history is not a possible record.
    """
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.key:
            by_key[call.key].append(call)
    before = initial or {}
    return Report(tuple(check_key(by_key[key], before.get(key, State()), max_states) for key in sorted(by_key)))


def check_key(calls: Sequence[Call], initial: State, max_states: int = DEFAULT_MAX_STATES) -> KeyResult:
    """Check the calls of one key, which was in state ``initial`` before the first of them."""
    key = calls[0].key if calls else ""
    try:
        found = operations(calls)
    except DoubleEffectError as error:
        return KeyResult(key, Verdict.VIOLATED, len(calls), 0, Violation.of(str(error), error.calls, calls))
    if contradiction := leases.broken(calls):
        reason, culprits = contradiction
        return KeyResult(key, Verdict.VIOLATED, len(calls), 0, Violation.of(reason, culprits, calls))
    search = _Search(found, initial, max_states)
    try:
        blocked = search.run()
    except _BudgetSpentError:
        return KeyResult(key, Verdict.EXHAUSTED, len(calls), search.states)
    if blocked is None:
        return KeyResult(key, Verdict.LINEARIZABLE, len(calls), search.states)
    return KeyResult(key, Verdict.VIOLATED, len(calls), search.states, explain(found, blocked, initial, calls))


class _BudgetSpentError(Exception):
    """The search reached its limit of configurations."""


class _Config(NamedTuple):
    """One explanation of everything so far. Sets of operations are bit masks over their indices."""

    state: State
    writes: int
    """Placed writes that have not ended yet."""
    used: int
    """Optional writes that are assumed to have happened."""
    seen: int
    """Placed observations that have not ended yet."""


class _Frontier:
    """Configurations, without dominated ones."""

    def __init__(self) -> None:
        self._by_state: dict[tuple[State, int], list[_Config]] = defaultdict(list)

    def add(self, config: _Config) -> bool:
        """Keep the configuration unless a kept one dominates it. Returns whether it was kept."""
        rivals = self._by_state[config.state, config.writes]
        if any(_dominates(rival, config) for rival in rivals):
            return False
        rivals[:] = [rival for rival in rivals if not _dominates(config, rival)]
        rivals.append(config)
        return True

    def __iter__(self) -> Iterator[_Config]:
        return (config for rivals in self._by_state.values() for config in rivals)


def _dominates(one: _Config, other: _Config) -> bool:
    return one.used & other.used == one.used and one.seen & other.seen == other.seen


class _Search:
    def __init__(self, found: Sequence[Operation], initial: State, max_states: int) -> None:
        self._operations = found
        self._max_states = max_states
        self.states = 0
        self._configs = [_Config(initial, 0, 0, 0)]
        self._ended = 0
        self._writes: list[Operation] = []
        self._observations: list[Operation] = []
        self._optional: dict[object, list[Operation]] = defaultdict(list)
        self._unended_by_revision = sorted(
            (op for op in found if op.statuses is None and op.revision and not op.optional),
            key=lambda op: op.revision or (0, 0),
        )
        self._constrained = {op.precedes for op in found}

    def run(self) -> Operation | None:
        """Walk the history. Returns the operation that no explanation survives, or None if the history has one."""
        for _, is_end, op in self._moments():
            if not is_end:
                self._begin(op)
                continue
            self._configs = self._place(op)
            if not self._configs:
                return op
            self._end(op)
        return None

    def _moments(self) -> list[tuple[float, bool, Operation]]:
        """Starts and ends in time. At one instant starts come first, so that calls which touch count as concurrent."""
        starts = [(op.start, False, op) for op in self._operations]
        ends = [(op.end, True, op) for op in self._operations if not math.isinf(op.end)]
        return sorted(starts + ends, key=lambda moment: (moment[0], moment[1], moment[2].index))

    def _begin(self, op: Operation) -> None:
        if op.statuses is not None:
            self._observations.append(op)
        elif not op.optional:
            self._writes.append(op)
        else:
            # Equal optional writes are taken in the order of their starts: any other order is equivalent.
            alike = op.index if op.index in self._constrained else (op.method, op.value)
            self._optional[alike].append(op)

    def _end(self, op: Operation) -> None:
        bit = 1 << op.index
        self._ended |= bit
        (self._writes if op.statuses is None else self._observations).remove(op)
        if op.statuses is None and op.revision:
            self._unended_by_revision.remove(op)
        self._configs = [c._replace(writes=c.writes & ~bit, seen=c.seen & ~bit) for c in self._configs]

    def _place(self, ending: Operation) -> list[_Config]:
        """All undominated configurations in which ``ending`` is placed, reached from the present ones."""
        bit = 1 << ending.index
        known, placed = _Frontier(), _Frontier()
        todo = [self._observe(config) for config in self._configs]
        while todo:
            config = todo.pop()
            self.states += 1
            if self.states > self._max_states:
                raise _BudgetSpentError
            if not known.add(config):
                continue
            if (config.writes | config.seen) & bit:
                placed.add(config)
            else:
                todo.extend(self._successors(config))
        return list(placed)

    def _observe(self, config: _Config) -> _Config:
        """Place every observation that fits."""
        seen = config.seen
        taken = self._ended | config.writes | config.used
        for op in self._observations:
            if op.fits(config.state) and not (op.precedes is not None and taken >> op.precedes & 1):
                seen |= 1 << op.index
        return config._replace(seen=seen)

    def _successors(self, config: _Config) -> Iterator[_Config]:
        due = next((op for op in self._unended_by_revision if not config.writes >> op.index & 1), None)
        for alike in self._optional.values():
            op = next((op for op in alike if not config.used >> op.index & 1), None)
            state = op.apply(config.state) if op else None
            if op and state:
                yield self._observe(config._replace(state=state, used=config.used | 1 << op.index))
        for op in self._writes:
            if config.writes >> op.index & 1 or (op.revision and op is not due):
                continue
            state = op.apply(config.state)
            if state:
                yield self._observe(config._replace(state=state, writes=config.writes | 1 << op.index))
