"""Events that the log refuses, set aside so that they stop no other.

Such an event leaves the outbox: it counts neither towards its limits nor towards its age. It counts as not logged. It
is kept, shown, and offered to the log again from time to time, since the log's limit may be raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from libs.ownership.model import Version
from libs.store.outbox import ChangeEntry

MAX_ASIDE = 1000
"""Events that a store sets aside at most. If the log refuses more, the outbox fills and refuses writes."""


class Refusal(NamedTuple):
    """A change that the log does not take, and why."""

    key: str
    version: Version
    reason: str


class AsideEntry(NamedTuple):
    change: ChangeEntry
    reason: str


class Aside(Protocol):
    async def set_aside(self, refusals: Sequence[Refusal]) -> list[tuple[str, Version]]:
        """Moves these changes out of the outbox, at most until MAX_ASIDE are set aside. Returns those that moved."""
        ...

    async def entries(self, limit: int) -> list[AsideEntry]:
        """The oldest ones."""
        ...

    async def count(self) -> int: ...

    async def remove(self, changes: Sequence[tuple[str, Version]]) -> int:
        """These are in the log now. Returns how many were set aside."""
        ...

    async def prune(self) -> int:
        """Forgets changes that a newer one of the same record in the log has replaced, when no client can ask for
        their requests any more: after the retry window, in ticks. As long as two of one record are set aside both stay.
        Returns how many."""
        ...
