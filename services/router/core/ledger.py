"""A ledger of acknowledged writes: what clients were told, to be held against what the stores have later. Pure.

It is the check on all other checks, so it shares nothing with them: it knows a write by the client's own answer, and
the stores' rows by what they show. A sampled write is kept by its key, the newest one of each key. It is looked at when
it is old enough for what may go wrong after a write to have happened; then again from time to time, as long as there is
room, so that a store which loses an old write is found too.

The owner must have the write or a later one of the same record. A first look that says otherwise is not believed: the
rows of two stores are not read at one moment. The second one is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import blake2b
from itertools import chain, islice, takewhile
from typing import NamedTuple

from libs.ownership.model import Store, Version

KEPT_FINDINGS = 100


class Loss(Enum):
    """How an acknowledged write is missing."""

    MISSING = "MISSING"
    """No store has a row of this key."""
    OLDER = "OLDER"
    """The owner's row is older than the write."""
    CHANGED = "CHANGED"
    """The owner's row is of this very write, with other content than the client was shown."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A write as its client was told of it."""

    key: str
    request_id: str
    operation: str
    store: Store
    """Which answered."""
    revision: int
    content: bytes
    """Hash of the record that the answer shows."""
    schema_version: int
    """In which it is shown; 0: the contract has but one."""
    time_seconds: float
    """UNIX time."""


class Seen(NamedTuple):
    """The row of one store."""

    store: Store
    owned: bool
    version: Version
    write_revision: int
    """Of its last write: what clients are shown."""
    content: bytes
    schema_version: int


@dataclass(frozen=True, slots=True)
class Finding:
    """An acknowledged write that is lost."""

    loss: Loss
    write: Acknowledged
    rows: tuple[Seen, ...]
    found_seconds: float
    """UNIX time."""


@dataclass(frozen=True, slots=True)
class LedgerLimits:
    permille: int = 100
    """Thousandths of the acknowledged writes."""
    capacity: int = 10_000
    """Writes that are kept."""
    settle_seconds: float = 10.0
    """From the answer to the first look: more than the lag is as a rule."""
    again_seconds: float = 60.0
    """From one look to the next."""


class LedgerCounts(NamedTuple):
    """sampled = checked + superseded + dropped + waiting."""

    sampled: int = 0
    checked: int = 0
    """Looked at once or more often; the lost ones are among them."""
    superseded: int = 0
    """Before they were looked at, by a later acknowledged write of the same record."""
    dropped: int = 0
    """Not looked at: there was no room, or no time."""
    waiting: int = 0
    lost: int = 0

    def plus(self, other: LedgerCounts) -> LedgerCounts:
        return LedgerCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def is_sampled(request_id: str, permille: int) -> bool:
    """The same at every router, and for each retry."""
    return int.from_bytes(blake2b(request_id.encode(), digest_size=8).digest(), "big") % 1000 < permille


def loss_of(write: Acknowledged, rows: Sequence[Seen]) -> Loss | None:
    """What the rows of both stores say of the write; None: it is there, or a later one is.

    A row that its store owns decides. While the record is on its way there is none, and the newest row is it.
    """
    owned = [row for row in rows if row.owned]
    newest = max(owned or rows, key=lambda row: row.version, default=None)
    if newest is None:
        return Loss.MISSING
    if newest.write_revision != write.revision:
        return Loss.OLDER if newest.write_revision < write.revision else None
    comparable = write.schema_version in (0, newest.schema_version)
    return Loss.CHANGED if comparable and newest.content != write.content else None


@dataclass(frozen=True, slots=True)
class _Line:
    write: Acknowledged
    due: float
    """When it is looked at next, by the monotonic clock."""
    doubted: bool = False
    """The last look did not find it."""


class Ledger:
    """The newest acknowledged writes, one of each key. Times are of the monotonic clock unless they say otherwise."""

    def __init__(self, limits: LedgerLimits) -> None:
        self._limits = limits
        self._new: OrderedDict[str, _Line] = OrderedDict()
        """Not looked at yet, by key; those first that wait longest."""
        self._known: OrderedDict[str, _Line] = OrderedDict()
        """Found at the last look."""
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
        """Writes that were found and are looked at again from time to time."""
        return len(self._known)

    def note(self, write: Acknowledged, now: float) -> None:
        """A client has its answer."""
        self._add(sampled=1)
        kept = self._new.get(write.key) or self._known.get(write.key)
        if kept is not None and kept.write.revision >= write.revision:
            # Answers overtake each other: what is kept shows this one too.
            self._add(superseded=1)
            return
        if self._new.pop(write.key, None) is not None:
            self._add(superseded=1)
        self._known.pop(write.key, None)
        if len(self._new) + len(self._known) >= self._limits.capacity:
            self._make_room()
        self._new[write.key] = _Line(write, now + self._limits.settle_seconds)

    def due(self, now: float, limit: int) -> list[Acknowledged]:
        """Writes that are to be looked at now; those first that never were."""
        lines = chain(
            takewhile(lambda line: line.due <= now, self._new.values()),
            takewhile(lambda line: line.due <= now, self._known.values()),
        )
        return [line.write for line in islice(lines, limit)]

    def put_off(self, write: Acknowledged, now: float) -> None:
        """Nobody can tell now, since the store that could does not answer. It is looked at later, so that it does not
        stand in the way of others."""
        places, seconds = self._new, self._limits.settle_seconds
        if write.key not in places:
            places, seconds = self._known, self._limits.again_seconds
        line = places.get(write.key)
        if line is not None and line.write == write:
            places[write.key] = replace(line, due=now + seconds)
            places.move_to_end(write.key)

    def look(self, write: Acknowledged, rows: Sequence[Seen], now: float, now_seconds: float) -> Finding | None:
        """What both stores have under the write's key, as far as they have a row. The finding, when it is lost."""
        places = self._new if write.key in self._new else self._known
        line = places.get(write.key)
        if line is None or line.write != write:
            return None
        loss = loss_of(write, rows)
        if loss is not None and not line.doubted:
            places[write.key] = replace(line, doubted=True)
            return None
        del places[write.key]
        if places is self._new:
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
