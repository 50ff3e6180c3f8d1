"""Counts of shadow reads, and the differences that counted. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from libs.ownership.model import Store, Version
from services.router.core.compare import Kind, Seen, Sight
from services.router.core.measure import ShadowCounts


class Side(NamedTuple):
    store: Store
    version: Version | None
    content: str
    """Hash of the reply, or status of the error."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference that counted, as it is kept: names, versions, hashes. No values."""

    time_seconds: float
    """UNIX time at which it counted."""
    operation: str
    key: str
    kind: Kind
    fields: tuple[str, ...]
    sides: tuple[Side, Side]
    waited_seconds: float
    """From the first sight of it until it counted."""


def hashed(seen: Seen, secret: bytes) -> str:
    """To tell contents apart without showing them. The secret keeps anyone from trying out what hashes to it."""
    return seen.status or blake2b(seen.reply, digest_size=8, key=secret).hexdigest()


def sides_of(sight: Sight, stores: tuple[Store, Store], secret: bytes) -> tuple[Side, Side]:
    one, other = (
        Side(store, seen.version, hashed(seen, secret))
        for store, seen in zip(stores, (sight.one, sight.other), strict=True)
    )
    return one, other


@dataclass(slots=True)
class Tally:
    """What is counted between two changes of the shadow's setting, at one router."""

    run: int
    """The generation of the setting that it began with."""
    kept: int
    """Differences of each kind that are kept, the latest ones."""
    tallies: dict[str, Counter[Kind]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    """By operation: reads that were sampled, for which there was no room."""
    skipped: Counter[str] = field(default_factory=Counter)
    """By operation: reads that were sampled while the other store was known to be out of reach."""
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
        )

    @property
    def operations(self) -> list[str]:
        return sorted({*self.tallies, *self.dropped, *self.skipped})
