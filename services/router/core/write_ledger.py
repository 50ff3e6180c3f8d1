"""A ledger of acknowledged writes, which are compared with the stores later. Pure.

The ledger checks all other checks, so it shares no code with them: it records a write from the client's own answer, and
the stores' rows as clients see them. It keeps sampled writes by key, the newest of each key. It checks a write once
the write has settled, and again from time to time while there is room, to find a store that loses an old write.

The owner must have the write or a later one of the same record. A first check that fails is repeated before it counts,
because the rows of the two stores are not read at the same moment.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import blake2b
from itertools import chain, islice, takewhile
from typing import NamedTuple

from libs.ownership.limits import RETRY_WINDOW_SECONDS
from libs.ownership.model import Store, Version

KEPT_FINDINGS = 100


class Loss(Enum):
    """How an acknowledged write is missing."""

    MISSING = "MISSING"
    """No store has a row of this key."""
    OLDER = "OLDER"
    """The owner's row is older than the write."""
    CHANGED = "CHANGED"
    """The owner's row is of this write, with other content than the client's answer."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A write as the answer to its client shows it."""

    key: str
    request_id: str
    operation: str
    store: Store
    """The store that answered."""
    revision: int
    content: bytes
    """Hash of the record in the answer."""
    schema_version: int
    """Schema version of the answer; 0: the contract has one version."""
    time_seconds: float
    """UNIX time."""


class StoreRow(NamedTuple):
    """The row of one store."""

    store: Store
    owned: bool
    version: Version
    write_revision: int
    """Revision of its last write, which clients see."""
    content: bytes
    schema_version: int


@dataclass(frozen=True, slots=True)
class Finding:
    """An acknowledged write that is lost."""

    loss: Loss
    write: Acknowledged
    rows: tuple[StoreRow, ...]
    found_seconds: float
    """UNIX time."""


@dataclass(frozen=True, slots=True)
class LedgerLimits:
    permille: int = 100
    """Thousandths of the acknowledged writes that are sampled."""
    capacity: int = 10_000
    """Writes that the ledger keeps at most."""
    settle_seconds: float = 10.0
    """Time from the answer to the first check: longer than the usual lag."""
    again_seconds: float = 60.0
    """Time from one check to the next."""


class LedgerCounts(NamedTuple):
    """sampled = checked + superseded + dropped + waiting."""

    sampled: int = 0
    checked: int = 0
    """Checked at least once, including the lost ones."""
    superseded: int = 0
    """Superseded by a later acknowledged write of the same record before the first check."""
    dropped: int = 0
    """Dropped unchecked, for lack of room or time."""
    waiting: int = 0
    lost: int = 0
    doubled: int = 0
    """Requests that took effect twice: two answers to one request name different revisions."""

    def plus(self, other: LedgerCounts) -> LedgerCounts:
        return LedgerCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def is_sampled(request_id: str, permille: int) -> bool:
    """Samples by request id, so that all routers and all retries agree."""
    return int.from_bytes(blake2b(request_id.encode(), digest_size=8).digest(), "big") % 1000 < permille


def loss_of(write: Acknowledged, rows: Sequence[StoreRow]) -> Loss | None:
    """Returns how the write is lost, or None if the rows have it or a later one.

    The row whose store owns it decides. During a handoff no store owns the record, and the newest row decides.
    """
    owned = [row for row in rows if row.owned]
    newest = max(owned or rows, key=lambda row: row.version, default=None)
    if newest is None:
        return Loss.MISSING
    if newest.write_revision != write.revision:
        return Loss.OLDER if newest.write_revision < write.revision else None
    comparable = write.schema_version in (0, newest.schema_version)
    return Loss.CHANGED if comparable and newest.content != write.content else None


def _is_doubled(one: Acknowledged, other: Acknowledged) -> bool:
    """Whether a request took effect twice although its retry came in time."""
    in_time = abs(one.time_seconds - other.time_seconds) < RETRY_WINDOW_SECONDS
    return one.request_id == other.request_id and one.revision != other.revision and in_time


@dataclass(frozen=True, slots=True)
class _Line:
    write: Acknowledged
    due: float
    """Time of the next check, by the monotonic clock."""
    doubted: bool = False
    """The last check did not find the write."""


class Ledger:
    """The newest acknowledged writes, one of each key. Times are of the monotonic clock unless noted."""

    def __init__(self, limits: LedgerLimits) -> None:
        self._limits = limits
        self._new: OrderedDict[str, _Line] = OrderedDict()
        """Unchecked writes by key, in the order of their checks."""
        self._known: OrderedDict[str, _Line] = OrderedDict()
        """Writes that the last check found, by key."""
        self._counts = LedgerCounts()
        self.findings: deque[Finding] = deque(maxlen=KEPT_FINDINGS)
        """The newest last."""

    def __repr__(self) -> str:
        return f"<Ledger {self.counts} known={len(self._known)}>"

    @property
    def counts(self) -> LedgerCounts:
        return self._counts._replace(waiting=len(self._new))

    @property
    def known(self) -> int:
        """Number of writes that were found and are checked again from time to time."""
        return len(self._known)

    def note(self, write: Acknowledged, now: float) -> None:
        """Record that a client got its answer."""
        self._add(sampled=1)
        kept = self._new.get(write.key) or self._known.get(write.key)
        if kept is not None and _is_doubled(kept.write, write):
            self._add(doubled=1)
        if kept is not None and kept.write.revision >= write.revision:
            # Answers overtake each other: the kept write covers this one too.
            self._add(superseded=1)
            return
        if self._new.pop(write.key, None) is not None:
            self._add(superseded=1)
        self._known.pop(write.key, None)
        if len(self._new) + len(self._known) >= self._limits.capacity:
            self._make_room()
        self._new[write.key] = _Line(write, now + self._limits.settle_seconds)

    def due(self, now: float, limit: int) -> list[Acknowledged]:
        """Writes to check now, unchecked ones first."""
        lines = chain(
            takewhile(lambda line: line.due <= now, self._new.values()),
            takewhile(lambda line: line.due <= now, self._known.values()),
        )
        return [line.write for line in islice(lines, limit)]

    def put_off(self, write: Acknowledged, now: float) -> None:
        """Postpone a check whose store does not answer, so that it does not delay others."""
        entries, seconds = self._new, self._limits.settle_seconds
        if write.key not in entries:
            entries, seconds = self._known, self._limits.again_seconds
        line = entries.get(write.key)
        if line is not None and line.write == write:
            entries[write.key] = replace(line, due=now + seconds)
            entries.move_to_end(write.key)

    def look(self, write: Acknowledged, rows: Sequence[StoreRow], now: float, now_seconds: float) -> Finding | None:
        """Check a write against the stores' rows of its key. Returns a finding if the write is lost."""
        entries = self._new if write.key in self._new else self._known
        line = entries.get(write.key)
        if line is None or line.write != write:
            return None
        loss = loss_of(write, rows)
        if loss is not None and not line.doubted:
            entries[write.key] = replace(line, doubted=True)
            return None
        del entries[write.key]
        if entries is self._new:
            self._add(checked=1)
        if loss is None:
            self._known[write.key] = _Line(write, now + self._limits.again_seconds)
            return None
        self._add(lost=1)
        finding = Finding(loss, write, tuple(rows), now_seconds)
        self.findings.append(finding)
        return finding

    def _make_room(self) -> None:
        if self._known:
            self._known.popitem(last=False)
        else:
            self._new.popitem(last=False)
            self._add(dropped=1)

    def _add(self, **counts: int) -> None:
        had = self._counts._asdict()
        self._counts = self._counts._replace(**{name: had[name] + count for name, count in counts.items()})
