"""Marks of the log that a store has read."""

from __future__ import annotations

from libs.eventlog.identity import Mark
from libs.store.port import FeedState


def marks_of(state: FeedState) -> dict[int, Mark]:
    """Marks by partition, for partitions of which an event was read."""
    return {part: Mark(after, state.marks.get(part, "")) for part, after in state.next_offsets.items() if after}
