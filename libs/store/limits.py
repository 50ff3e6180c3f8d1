"""Limits of the outbox, checked before a commit, and of the work of one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from libs.ownership.limits import RELEASE_ENVELOPE_BYTES
from libs.store.outbox import Depth


class Held(NamedTuple):
    """An upper bound of a store's contents."""

    rows: int
    bytes: int
    """Size of rows and served requests."""


HELD_NOTHING = Held(0, 0)

HELD_SECONDS = 10.0
"""How long a store may reuse such a count: counting many rows takes a second or more."""


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """How many changes may wait for the log. A write that would exceed a limit is refused with OutboxFull."""

    entries: int = 1_000_000
    bytes: int = 1 << 30
    seconds: float = 3600.0
    """Maximum age of the oldest entry, in ticks of the store."""

    def __post_init__(self) -> None:
        for name in ("entries", "bytes", "seconds"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"outbox {name}: {value!r} is not valid: it must be greater than 0")

    def share(self, depth: Depth) -> float:
        """Largest share of a limit that is in use."""
        return max(depth.entries / self.entries, depth.bytes / self.bytes, depth.oldest_seconds / self.seconds)

    def fits(self, depth: Depth, size: int) -> bool:
        """Return whether one more write's entry of `size` bytes fits."""
        return (
            depth.entries + 1 <= self.entries
            and depth.bytes + size <= self.bytes
            and depth.oldest_seconds <= self.seconds
        )

    def is_near(self, depth: Depth, entries: int, size: int) -> bool:
        """Return whether these additional entries may need the reserve, for which the store must count its contents."""
        return depth.entries + entries > self.entries or depth.bytes + size > self.bytes

    def fits_release(self, depth: Depth, entries: int, size: int, held: Held) -> bool:
        """Return whether the entries of releases fit. `size`: their total in bytes.

        Releases may use a reserve of one entry for each row of the store, with the bytes of all rows and served
        requests: a full rollback releases that much. The age of entries does not matter: records must leave a store
        above all when the log has been unavailable for long.
        """
        reserve_bytes = held.bytes + held.rows * RELEASE_ENVELOPE_BYTES
        return depth.entries + entries <= self.entries + held.rows and depth.bytes + size <= self.bytes + reserve_bytes


PULL_BYTES = 1 << 20
"""Approximate size of the answer of one pull, or of one page of an export. The first entry is always returned, whatever
its size."""

LIST_STEP_ROWS = 2_000
"""Rows that one statement of a list examines."""
LIST_ROWS = 20_000
LIST_SECONDS = 0.1
"""A page ends after LIST_ROWS rows or LIST_SECONDS, even if it is not full."""


class Work(NamedTuple):
    """Limits of one page of a list."""

    rows: int
    step_rows: int
    seconds: float

    def share(self, parts: int) -> Work:
        """The limits of each part of a page, so that all parts together have these limits."""
        rows = max(self.rows // max(parts, 1), 1)
        return Work(rows, min(self.step_rows, rows), self.seconds / max(parts, 1))


UNAUTHENTICATED_EVENTS = 1000
UNAUTHENTICATED_BYTES = 64 * 1024 * 1024
"""Parked events without a right code: so many are kept, the last ones, and not more bytes than this."""

PRUNE_ROWS = 500
"""Maximum number of served requests that one call of `prune` removes."""
