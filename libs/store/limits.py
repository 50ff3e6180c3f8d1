"""Limits of a store's queues, checked before a commit."""

from __future__ import annotations

from dataclasses import dataclass

from libs.ownership.limits import OUTBOX_RESERVE
from libs.store.port import Depth


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

    def fits(self, depth: Depth, size: int, *, reserve: bool = False) -> bool:
        """Whether one more entry of `size` bytes may join. `reserve`: it is a release, which may go 10 % further."""
        factor = OUTBOX_RESERVE if reserve else 1.0
        return (
            depth.entries + 1 <= self.entries * factor
            and depth.bytes + size <= self.bytes * factor
            and depth.oldest_seconds <= self.seconds * factor
        )


PULL_BYTES = 1 << 20
"""About what one pull or one page of an export returns; a first entry is always returned, whatever its size."""

PRUNE_ROWS = 500
"""Served requests that one call of `prune` forgets at most."""
