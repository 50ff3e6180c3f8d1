"""Whether the log may soon drop events that a store has not read. Pure.

A log drops its oldest events, by age, by size, or both. What a store has not read by then never reaches it by its feed,
and it has to be filled anew. Counted as at risk is what a store still needs of the older half of what the log keeps:

* by age: events older than half of the age at which the log drops them;
* by size, once the log has dropped something: the older half of the events that it holds.

A size that was never reached tells nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

KEPT_SHARE = 0.5
"""Of what the log keeps, from the oldest on: events there are at risk."""


class Risk(NamedTuple):
    """Events that one store has not read."""

    store: str
    old: int
    """That the log may soon drop, or has dropped."""
    gone: int
    """Of these: dropped."""

    def __str__(self) -> str:
        if self.gone:
            return f"the log has dropped {self.gone} events that {self.store} has not read: it has to be filled anew"
        return f"the log may soon drop {self.old} events that {self.store} has not read: bring its feed back"


class Held(NamedTuple):
    """What the log holds of one partition."""

    oldest: int
    end: int
    aged: int
    """Offset of the first event that is younger than KEPT_SHARE of the age at which events are dropped, as it was asked
    for after `end`; `oldest` where age is no reason."""
    by_size: bool

    @property
    def safe_from(self) -> int:
        """Offset of the first event that is not at risk."""
        if not (self.by_size and self.oldest):
            return max(self.oldest, self.aged)
        return max(self.oldest + int(KEPT_SHARE * (self.end - self.oldest)), self.aged)


def risk_of(store: str, following: Mapping[int, int], held: Mapping[int, Held]) -> Risk:
    """`following`: by partition the next offset that the store reads; 0 where it is not known to have read any."""
    places = [(following.get(partition, 0), one) for partition, one in held.items()]
    old = sum(max(0, min(one.safe_from, one.end) - at) for at, one in places)
    return Risk(store, old, sum(max(0, one.oldest - at) for at, one in places))
