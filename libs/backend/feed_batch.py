"""Events of one poll of the feed, sorted by their treatment."""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.eventlog.identity import mark_of
from libs.eventlog.port import Stored
from libs.ownership.model import BulkRelease, Record
from libs.store.port import FeedStep, Parked, Position


@dataclass(slots=True)
class Batch:
    """Events of one poll, sorted by their treatment, and events without an effect of the polls before it."""

    log_id: str
    until: float
    """Monotonic time until which the positions may wait, if no event has an effect."""
    arrived: list[tuple[Stored, Record]] = field(default_factory=list)
    bulk: list[BulkRelease] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    skipped: int = 0
    terms: dict[int, int] = field(default_factory=dict)
    """Highest term that a terms event of the batch announced, by bucket."""
    positions: dict[int, Position] = field(default_factory=dict)
    last: dict[int, Stored] = field(default_factory=dict)
    """Last event by partition."""
    oldest_seconds: float | None = None
    """Age of the oldest record."""
    youngest_seconds: float = 0.0
    """Age of the youngest event, if it is negative: its time is ahead of this process's clock."""

    @property
    def has_effect(self) -> bool:
        """Whether an event changes more than the position."""
        return bool(self.arrived or self.bulk or self.parked or self.terms)

    @property
    def records(self) -> list[Record]:
        return [record for _, record in self.arrived]

    def step(self) -> FeedStep:
        marked = [
            self.positions[part]._replace(mark=mark_of(self.log_id, stored)) for part, stored in self.last.items()
        ]
        return FeedStep(tuple(marked), tuple(self.parked), self.skipped, len(self.bulk))


def note_term(batch: Batch, bucket: int, term: int) -> None:
    batch.terms[bucket] = max(term, batch.terms.get(bucket, 0))
