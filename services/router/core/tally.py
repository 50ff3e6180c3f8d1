"""Counts of compared reads, and the confirmed differences. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from libs.ownership.model import Store, Version
from services.router.core.compare import Kind, RecordComparison, ShownRecord
from services.router.core.measure import ShadowCounts


class Side(NamedTuple):
    store: Store
    version: Version | None
    content: str
    """Hash of the reply, or status of the error."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A confirmed difference: names, versions, hashes, but no values."""

    time_seconds: float
    """UNIX time of the confirmation."""
    operation: str
    key: str
    kind: Kind
    fields: tuple[str, ...]
    sides: tuple[Side, Side]
    waited_seconds: float
    """Time from the first comparison to the confirmation."""


def hashed(seen: ShownRecord, secret: bytes) -> str:
    """Hash that distinguishes contents without showing them. The secret prevents guessing them from the hash."""
    return seen.status or blake2b(seen.reply, digest_size=8, key=secret).hexdigest()


def sides_of(sight: RecordComparison, stores: tuple[Store, Store], secret: bytes) -> tuple[Side, Side]:
    one, other = (
        Side(store, seen.version, hashed(seen, secret))
        for store, seen in zip(stores, (sight.one, sight.other), strict=True)
    )
    return one, other


@dataclass(slots=True)
class Tally:
    """Counts of one router between two changes of the shadow setting."""

    run: int
    """Generation of the setting at the start."""
    kept: int
    """Number of differences that are kept of each kind, the latest ones."""
    tallies: dict[str, Counter[Kind]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of sampled reads that found the queue full, by operation."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of sampled reads while the other store was unreachable, by operation."""
    differences: dict[Kind, deque[Difference]] = field(default_factory=dict)

    def count(self, operation: str, kind: Kind) -> None:
        self.tallies.setdefault(operation, Counter())[kind] += 1

    def keep(self, difference: Difference) -> None:
        self.differences.setdefault(difference.kind, deque(maxlen=self.kept)).append(difference)

    def counts(self, operations: Iterable[str]) -> ShadowCounts:
        tally: Counter[Kind] = Counter()
        dropped = 0
        for operation in operations:
            tally.update(self.tallies.get(operation, {}))
            dropped += self.dropped[operation]
        return ShadowCounts(
            compared=tally.total(),
            match=tally[Kind.MATCH],
            stale=tally[Kind.STALE],
            mismatch=tally[Kind.MISMATCH],
            missing=tally[Kind.MISSING],
            error=tally[Kind.ERROR],
            dropped=dropped,
            allowed=tally[Kind.ALLOWED],
        )

    @property
    def operations(self) -> list[str]:
        return sorted({*self.tallies, *self.dropped, *self.skipped})
