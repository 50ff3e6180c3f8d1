"""What a store knows of the log that it has read."""

from __future__ import annotations

from libs.eventlog.identity import Mark
from libs.store.port import FeedState


def marks_of(state: FeedState) -> dict[int, Mark]:
    """By partition of which something was read."""
    return {part: Mark(after, state.marks.get(part, "")) for part, after in state.next_offsets.items() if after}
