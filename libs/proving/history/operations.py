"""Conversion of one key's calls to the operations that a linearization must explain.

- Attempts of a write that share a request id are one operation, from the first start to the first acknowledgement.
- A write of unknown outcome whose value a strict read returned has happened, at the latest when that read ended.
- A write of unknown outcome whose value was never read is optional. An update of that kind can be left out: it needs a
  live record and leaves a live record, so any valid order stays valid without it.
- Acquiring, renewing and releasing a lease are writes that keep the value. Their meaning is checked by `leases`.
- NOT_FOUND, ALREADY_EXISTS, LEASE_HELD and LEASE_LOST are observations like reads. If another attempt of the same
  request took effect, it did so after this observation; otherwise the answer would have been that of the effect.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from libs.proving.history.history import LEASES, READS, WRITES, Call, HistoryError, Outcome, Version
from libs.proving.history.leases import LEASE_HELD, LEASE_LOST


class Status(Enum):
    """Status of a key. A deleted record keeps its value, because an undelete restores it."""

    ABSENT = "absent"
    LIVE = "live"
    DELETED = "deleted"

    # Identity hashing: states are hashed millions of times, and Enum.__hash__ is Python code.
    __hash__ = object.__hash__


LIVE = frozenset({Status.LIVE})
NOT_LIVE = frozenset({Status.ABSENT, Status.DELETED})
NOT_DELETED = frozenset({Status.ABSENT, Status.LIVE})

WRITE_NEEDS = {"create": NOT_LIVE, "update": LIVE, "delete": LIVE, "undelete": frozenset({Status.DELETED})}
WRITE_NEEDS |= dict.fromkeys(LEASES, LIVE)
KEEP_VALUE = LEASES | {"undelete"}


@dataclass(frozen=True, slots=True)
class State:
    """The record at one point of a linearization.

    ``revision``: the highest known so far. ``exact``: it is that of the last write. It is not exact after a write whose
    revision is unknown.
    """

    status: Status = Status.ABSENT
    value: str | None = None
    revision: Version | None = None
    exact: bool = True


def live(value: str, revision: Version | None = None) -> State:
    """A record that existed before the history began."""
    return State(Status.LIVE, value, revision, exact=revision is not None)


@dataclass(frozen=True, slots=True)
class Operation:
    """A write, or an observation (``statuses`` is set) that fits some states and changes none.

    ``end`` is infinite for an optional write. ``precedes``: index of the write that an observation must come before.
    ``value`` is None in a write whose value no strict read returned: such values need not be distinguished.
    """

    index: int
    method: str
    value: str | None
    revision: Version | None
    start: float
    end: float
    calls: tuple[Call, ...]
    statuses: frozenset[Status] | None = None
    precedes: int | None = None

    @property
    def optional(self) -> bool:
        """A write that may or may not have happened."""
        return math.isinf(self.end)

    def fits(self, state: State) -> bool:
        """Whether this observation is possible in this state."""
        assert self.statuses is not None
        if state.status not in self.statuses or (self.value is not None and state.value != self.value):
            return False
        if self.revision is None or state.revision is None:
            return True
        return self.revision == state.revision if state.exact else self.revision > state.revision

    def apply(self, state: State) -> State | None:
        """The state after this write, or None if it could not have succeeded in this one."""
        if state.status not in WRITE_NEEDS[self.method]:
            return None
        if self.revision is not None and state.revision is not None and self.revision <= state.revision:
            return None
        revision, exact = (self.revision, True) if self.revision else (state.revision, False)
        if self.method == "delete":
            return State(Status.DELETED, state.value, revision, exact)
        value = state.value if self.method in KEEP_VALUE else self.value
        return State(Status.LIVE, value, revision, exact)


class DoubleEffectError(HistoryError):
    """Two answers to one request name different revisions."""

    def __init__(self, calls: Sequence[Call]) -> None:
        revisions = sorted({call.revision for call in calls if call.revision})
        super().__init__(f"double effect: request_id={calls[0].request_id} was acknowledged as revisions {revisions}")
        self.calls = tuple(calls)


def operations(calls: Iterable[Call]) -> list[Operation]:
    """The operations of one key's calls, indexed by position.

    Raises DoubleEffectError if a retry was answered with another revision. Raises HistoryError if an answer came before
    its request, a method is unknown or two requests wrote the same value.
    """
    groups: dict[object, list[Call]] = defaultdict(list)
    observing: list[tuple[Call, frozenset[Status]]] = []
    for call in sorted(calls, key=lambda each: each.start):
        _validate(call)
        statuses = _statuses(call)
        if statuses is not None:
            observing.append((call, statuses))
        elif call.method in WRITES and call.outcome is not Outcome.FAILED:
            groups[_request(call)].append(call)
    _refuse_repeated_values(groups.values())
    writes = _Writes([call for call, _ in observing])
    for request, attempts in groups.items():
        writes.add(request, attempts)
    found = writes.found
    for call, statuses in observing:
        # The revision in a failure's answer is not part of the contract, and a left out update may have made it.
        shows = call.method in READS and call.outcome is not Outcome.FAILED
        value, revision = (call.value, call.revision) if shows else (None, None)
        end = math.inf if call.end is None else call.end
        precedes = writes.index_of.get(_request(call)) if call.method in WRITES else None
        found.append(
            Operation(len(found), call.method, value, revision, call.start, end, (call,), statuses, precedes),
        )
    return _infer_revisions(found)


class _Writes:
    """Collects the write operations of a key, given the observations of strict reads."""

    def __init__(self, observing: list[Call]) -> None:
        reads = [call for call in observing if call.method in READS and call.value is not None]
        self._seen_by: dict[str, list[Call]] = defaultdict(list)
        for call in reads:
            assert call.value is not None
            self._seen_by[call.value].append(call)
        self.found: list[Operation] = []
        self.index_of: dict[object, int] = {}

    def add(self, request: object, attempts: list[Call]) -> None:
        first = attempts[0]
        known = [call for call in attempts if call.outcome is Outcome.OK and call.end is not None]
        if len({call.revision for call in known if call.revision}) > 1:
            raise DoubleEffectError(attempts)
        if len({(call.method, call.value) for call in attempts}) > 1:
            raise HistoryError(f"request_id={first.request_id}: must be one method and one value in all its attempts")
        end = min((call.end for call in known if call.end is not None), default=math.inf)
        reads = self._seen_by.get(first.value, []) if first.value is not None else []
        end = min([end, *(call.end for call in reads if call.end is not None)])
        if math.isinf(end) and first.method == "update":
            return
        revision = next((call.revision for call in known if call.revision), None)
        index = len(self.found)
        self.index_of[request] = index
        self.found.append(
            Operation(index, first.method, first.value if reads else None, revision, first.start, end, tuple(attempts))
        )


def _infer_revisions(found: list[Operation]) -> list[Operation]:
    """Give a write of unknown outcome the revision under which its value was read.

    This needs a unique value per write: an undelete shows an old value under a revision of its own.
    """
    if any(op.method in KEEP_VALUE for op in found):
        return found
    read = {op.value: op.revision for op in found if op.statuses is not None and op.value and op.revision}
    return [
        replace(op, revision=read[op.value]) if op.statuses is None and not op.revision and op.value in read else op
        for op in found
    ]


def _validate(call: Call) -> None:
    if call.method not in WRITES | READS:
        raise HistoryError(f"method={call.method!r}: must be one of {sorted(WRITES | READS)}")
    if call.outcome is not Outcome.UNKNOWN and call.end is None:
        raise HistoryError(f"client={call.client} number={call.number}: an {call.outcome} call must have an end")
    if call.end is not None and call.end < call.start:
        raise HistoryError(f"client={call.client} number={call.number}: end={call.end} must not be before its start")


def _request(call: Call) -> object:
    return call.request_id or (call.client, call.number)


def _statuses(call: Call) -> frozenset[Status] | None:
    """The states in which this answer is possible, or None if it does not depend on the state."""
    if call.stale or call.outcome is Outcome.UNKNOWN:
        return None
    if call.method in READS:
        if call.not_found:
            return NOT_LIVE
        return LIVE if call.outcome is Outcome.OK else None
    if call.not_found and call.method != "create":
        return NOT_DELETED if call.method == "undelete" else NOT_LIVE
    if call.reason in (LEASE_HELD, LEASE_LOST) and call.method != "undelete":
        return LIVE
    return LIVE if call.already_exists and call.method in {"create", "undelete"} else None


def _refuse_repeated_values(groups: Iterable[list[Call]]) -> None:
    wrote: dict[str, object] = {}
    for call in (call for attempts in groups for call in attempts if call.value is not None):
        assert call.value is not None
        if wrote.setdefault(call.value, _request(call)) != _request(call):
            raise HistoryError(f"key={call.key!r} value={call.value!r}: written by two requests, values must be unique")
