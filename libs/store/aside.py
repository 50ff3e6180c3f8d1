"""Events that the log refuses, set aside so that they block no other event.

An event that is set aside leaves the outbox and counts neither towards its limits nor towards its age. It counts as not
logged. The store keeps it and shows it, and the relay offers it to the log again from time to time, because the log's
limit may be raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from libs.ownership.model import Version
from libs.store.outbox import ChangeEntry

MAX_ASIDE = 1000
"""Maximum number of events that a store sets aside. If the log refuses more, the outbox fills up and refuses writes."""


class Refusal(NamedTuple):
    """A change that the log refuses, with the reason."""

    key: str
    version: Version
    reason: str


class AsideEntry(NamedTuple):
    change: ChangeEntry
    reason: str


class Aside(Protocol):
    async def set_aside(self, refusals: Sequence[Refusal]) -> list[tuple[str, Version]]:
        """Move these changes out of the outbox, until MAX_ASIDE are set aside. Return the changes that moved."""
        ...

    async def entries(self, limit: int) -> list[AsideEntry]:
        """Return the oldest events that are set aside."""
        ...

    async def count(self) -> int: ...

    async def remove(self, changes: Sequence[tuple[str, Version]]) -> int:
        """Remove changes that are in the log now. Return how many of them were set aside."""
        ...

    async def prune(self) -> int:
        """Remove changes that a newer change of the same record has replaced in the log. Return how many were removed.

        A change is removed only after the retry window, in ticks, because until then a client may repeat its request.
        If several changes of one record are set aside, all of them stay.
        """
        ...
