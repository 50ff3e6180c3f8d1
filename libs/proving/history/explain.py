"""Explanation of a violation: why a history is not linearizable, as a sentence and a timeline. It decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from libs.proving.history.history import Call, Outcome
from libs.proving.history.operations import KEEP_VALUE, Operation, State, Status

TIMELINE_LINES = 24


@dataclass(frozen=True, slots=True)
class Violation:
    """The reason, the window in monotonic seconds, the calls to blame and those around them.

    The window ends with the shortest prefix that has no explanation, and begins with the first call to blame.
    """

    reason: str
    window: tuple[float, float]
    culprits: tuple[Call, ...]
    timeline: tuple[str, ...]

    @classmethod
    def of(cls, reason: str, culprits: Iterable[Call], calls: Sequence[Call], until: float | None = None) -> Self:
        """Build the window around the culprits and draw the key's calls in it, at most TIMELINE_LINES of them."""
        blamed = tuple(sorted(set(culprits), key=lambda call: call.start))
        begin = min(call.start for call in blamed)
        last = max(max(call.start, call.end or call.start) for call in blamed)
        window = (begin, last if until is None else max(until, blamed[-1].start))
        return cls(reason, window, blamed, _timeline(window, blamed, calls))

    def __str__(self) -> str:
        return "\n  ".join([self.reason, *self.timeline])


def explain(found: Sequence[Operation], blocked: Operation, initial: State, calls: Sequence[Call]) -> Violation:
    """Explain why ``blocked`` cannot be placed. ``calls``: all calls of the key, for the timeline."""
    for rule in (_revisions, _value, _bucket_owner, _creation):
        for reason, others in rule(found, blocked, initial):
            culprits = [call for op in (blocked, *others) for call in op.calls]
            return Violation.of(reason, culprits, calls, blocked.end)
    around = [op for op in found if op.start <= blocked.end and op.end >= blocked.start]
    earlier = [op for op in found if op.statuses is None and op.end < blocked.start]
    last = sorted(earlier, key=lambda op: op.end)[-1:]
    culprits = [call for op in (blocked, *around, *last) for call in op.calls]
    return Violation.of(f"no order of the calls explains {_name(blocked)}", culprits, calls, blocked.end)


_Found = Iterator[tuple[str, list[Operation]]]


def _revisions(found: Sequence[Operation], blocked: Operation, initial: State) -> _Found:
    """Revisions that contradict each other or the order in time."""
    if blocked.statuses is not None or blocked.revision is None:
        return
    if initial.revision and blocked.revision <= initial.revision:
        yield f"{_name(blocked)} has revision {blocked.revision}, the record began at {initial.revision}", []
    for op in found:
        if op is blocked or op.statuses is not None or op.revision is None:
            continue
        if op.revision == blocked.revision:
            yield f"two writers: {_name(op)} and {_name(blocked)} both made revision {op.revision}", [op]
        early, late = (op, blocked) if op.end < blocked.start else (blocked, op)
        if early.end < late.start and (late.revision or (0, 0)) < (early.revision or (0, 0)):
            yield f"revisions go back: {_name(late)} made {late.revision} after {early.revision} was acknowledged", [op]


def _value(found: Sequence[Operation], blocked: Operation, initial: State) -> _Found:
    """A read of a value that was never written, that is from the future, or that a later write had replaced."""
    if blocked.value is None:
        return
    source = next((op for op in found if op.statuses is None and op.value == blocked.value), None)
    readers = [op for op in found if op.statuses is not None and op.value == blocked.value]
    if source is None:
        if initial.value != blocked.value:
            yield f"{_name(blocked)} saw value {blocked.value!r}, which no client wrote", []
            return
    else:
        for read in readers:
            if read.end < source.start:
                yield (
                    f"{_name(read)} saw value {blocked.value!r} from the future, before its write began",
                    [source, read],
                )
    if blocked.statuses is None:
        return
    source_end = source.end if source else float("-inf")
    for op in sorted(found, key=lambda each: -each.end):
        if op.statuses is None and op is not source and source_end < op.start and op.end < blocked.start:
            if op.method in KEEP_VALUE or (op.method == "delete" and _may_follow(found, op, blocked, {"undelete"})):
                continue
            what = "a deleted record came back" if op.method == "delete" else "stale read"
            yield f"{what}: {_name(blocked)} saw {blocked.value!r} after {_name(op)} had ended", _also(source, op)


def _bucket_owner(found: Sequence[Operation], blocked: Operation, initial: State) -> _Found:
    """An acknowledged record that was not found."""
    if blocked.statuses is None or Status.LIVE in blocked.statuses:
        return
    alive = [op for op in found if op.statuses is None and op.method != "delete" and op.end < blocked.start]
    latest = max(alive, key=lambda op: op.end, default=None)
    if latest is None and initial.status is not Status.LIVE:
        return
    if not any(op.statuses is None and op.method == "delete" and op.start <= blocked.end for op in found):
        what = f"after {_name(latest)} was acknowledged" if latest else "although it was there from the beginning"
        yield f"lost: {_name(blocked)} found no record {what}", _also(latest)
        return
    if latest and not _may_follow(found, latest, blocked, {"delete"}):
        yield f"lost: {_name(blocked)} found no record after {_name(latest)}, nothing deleted it since", [latest]


def _creation(found: Sequence[Operation], blocked: Operation, initial: State) -> _Found:
    """Two creations of a record without a deletion in between."""
    if blocked.statuses is not None or blocked.method != "create":
        return
    for op in found:
        if op.statuses is None and op is not blocked and op.method == "create" and not op.optional:
            early, late = (op, blocked) if op.start <= blocked.start else (blocked, op)
            if op.start <= blocked.end and not _may_follow(found, early, late, {"delete"}):
                yield f"created twice: {_name(early)} and {_name(late)} both succeeded", [op]


def _may_follow(found: Sequence[Operation], early: Operation, late: Operation, methods: set[str]) -> bool:
    """Whether a write of these methods may have happened between the two."""
    return any(
        op.statuses is None and op.method in methods and op.end >= early.start and op.start <= late.end for op in found
    )


def _also(*maybe: Operation | None) -> list[Operation]:
    return [op for op in maybe if op is not None]


def _name(op: Operation | None) -> str:
    if op is None:
        return "nothing"
    call = op.calls[0]
    return f"{call.method} #{call.number} of client {call.client}"


def _timeline(window: tuple[float, float], blamed: Sequence[Call], calls: Sequence[Call]) -> tuple[str, ...]:
    begin, end = window
    within = [call for call in calls if call.start <= end and (call.end is None or call.end >= begin)]
    others = [call for call in within if call not in blamed][-max(0, TIMELINE_LINES - len(blamed)) :]
    shown = sorted([*blamed[-TIMELINE_LINES:], *others], key=lambda call: call.start)[-TIMELINE_LINES:]
    hidden = len(within) - sum(call in within for call in shown)
    lines = [_line(call, begin, call in blamed) for call in shown]
    return (*lines, f"({hidden} more calls in this window)") if hidden > 0 else tuple(lines)


def _line(call: Call, begin: float, blamed: bool) -> str:
    end = "open" if call.end is None else f"{call.end - begin:+.6f}"
    answer = call.outcome.value if call.outcome is not Outcome.FAILED else f"failed {call.reason}"
    marks = f"{' stale' if call.stale else ''}{f' [{call.label}]' if call.label else ''}"
    shown = f"value={call.value!r} revision={call.revision} request_id={call.request_id}"
    mark = ">" if blamed else " "
    where = f"{call.start - begin:+.6f}..{end}s client {call.client} #{call.number}"
    return f"{mark} {where} {call.method} {shown} -> {answer}{marks}"
