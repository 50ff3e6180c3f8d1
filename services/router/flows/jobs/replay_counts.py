"""Counts of a replay's events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from libs.eventlog.port import Stored
from services.router.flows.moving.transfer import Copied

KEPT_PLACES = 20
"""Maximum number of positions of events in the report, per reason why they were not applied."""


@dataclass(slots=True)
class Counts:
    """Numbers of events: read = applied + known + unreadable + others + withheld + left_out + unauthenticated."""

    applied: int = 0
    known: int = 0
    """Events whose version, or a higher one, the store had already."""
    unreadable: int = 0
    others: int = 0
    """Heartbeats, and events of records that were not selected."""
    places: list[str] = field(default_factory=list)
    """Positions (partition/offset) of the first unreadable events."""
    withheld: int = 0
    """Events that would make the store an owner, which the other store's row does not confirm."""
    withheld_places: list[str] = field(default_factory=list)
    """Positions (partition/offset) and names of the first withheld events."""

    unauthenticated: int = 0
    """Events without a right code, which were not given."""
    older: int = 0
    """Unauthenticated events that were in the log before the store required codes."""
    unauthenticated_places: list[str] = field(default_factory=list)
    """Positions of the first unauthenticated events."""

    left_out: int = 0
    """Events whose record could not be copied from the other store."""
    why: str = ""
    """The reason for the first of them, for the operator."""

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON. The previous release can read those of a replay that left out no event."""
        value = asdict(self)
        if not self.left_out:
            del value["left_out"], value["why"]
        if not self.unauthenticated:
            del value["unauthenticated"], value["older"], value["unauthenticated_places"]
        return value

    def copied(self, keys: Sequence[str], copied: Copied) -> None:
        reasons = [*copied.refused.values(), *(f"{key} was busy" for key in copied.busy)]
        self.left_out += len(reasons)
        self.why = self.why or next(iter(reasons), "")
        self.applied += len(keys) - len(reasons)

    def cannot_read(self, stored: Stored) -> None:
        self.unreadable += 1
        if len(self.places) < KEPT_PLACES:
            self.places.append(f"{stored.partition}/{stored.offset}")

    def withhold(self, stored: Stored) -> None:
        self.withheld += 1
        if len(self.withheld_places) < KEPT_PLACES:
            self.withheld_places.append(f"{stored.partition}/{stored.offset} {stored.event.key}")

    def refuse(self, stored: Stored, *, older: bool) -> None:
        self.unauthenticated += 1
        self.older += older
        if len(self.unauthenticated_places) < KEPT_PLACES:
            self.unauthenticated_places.append(f"{stored.partition}/{stored.offset} {stored.event.key}")

    def summary(self, *, dry_run: bool) -> str:
        """The counts in words."""
        applied, ignored = ("would apply", "ignore") if dry_run else ("applied", "ignored")
        text = f"{applied} {self.applied}, {ignored} {self.known} as known"
        if self.withheld:
            text += f", withheld {self.withheld}, whose ownership the other store's row does not confirm"
        if self.unauthenticated:
            text += f", refused {self.unauthenticated} without a right code"
        if self.older:
            text += f"; {self.older} of them are older than the check, --accept-unsigned gives those"
        if self.left_out:
            text += f", left out {self.left_out}: {self.why}"
        return f"{text}; {self.unreadable} cannot be read" if self.unreadable else text
