"""Limits of a store's queues, checked before a commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from libs.ownership.limits import RELEASE_ENVELOPE_BYTES
from libs.store.outbox import Depth


class Held(NamedTuple):
    """At least as much as a store holds."""

    rows: int
    bytes: int
    """Of rows and served requests."""


HELD_NOTHING = Held(0, 0)

HELD_SECONDS = 10.0
"""How long a store may keep what it has counted: counting many rows takes a second or more."""


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """How many changes may wait for the log. A write that would pass a limit is refused with OutboxFull."""

    entries: int = 1_000_000
    bytes: int = 1 << 30
    seconds: float = 3600.0
    """Age of the oldest entry, in ticks of the store."""

    def __post_init__(self) -> None:
        for name in ("entries", "bytes", "seconds"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"outbox {name}: {value!r} is not valid: more than 0 is needed")

    def fits(self, depth: Depth, size: int) -> bool:
        """Whether one more write's entry of `size` bytes may join."""
        return (
            depth.entries + 1 <= self.entries
            and depth.bytes + size <= self.bytes
            and depth.oldest_seconds <= self.seconds
        )

    def is_near(self, depth: Depth, entries: int, size: int) -> bool:
        """Whether so many more may need the reserve: then it has to be known how much the store holds."""
        return depth.entries + entries > self.entries or depth.bytes + size > self.bytes

    def fits_release(self, depth: Depth, entries: int, size: int, held: Held) -> bool:
        """Whether the entries of releases, `size` bytes together, may join.

        They may use a reserve of one entry for each row of the store, which is what a full rollback releases, with the
        bytes of all rows and served requests. Their age is no reason to refuse: a store must be left most of all when
        the log has been away for long.
        """
        reserve_bytes = held.bytes + held.rows * RELEASE_ENVELOPE_BYTES
        return depth.entries + entries <= self.entries + held.rows and depth.bytes + size <= self.bytes + reserve_bytes


PULL_BYTES = 1 << 20
"""About what one pull or one page of an export returns; a first entry is always returned, whatever its size."""

LIST_STEP_ROWS = 2_000
"""Rows that one statement of a list looks at."""
LIST_ROWS = 20_000
LIST_SECONDS = 0.1
"""After so many rows, or so long, a page ends though it is not full."""

PRUNE_ROWS = 500
"""Served requests that one call of `prune` forgets at most."""
