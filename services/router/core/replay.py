"""The record that a replay of an event gives to a store. A replay alone never makes an owner. Pure.

An event describes the past. A store that has lost its row of a record would accept an old event that names it as owner,
although it has released the record since and the other store writes to it: two owners. So the other store's row is
compared with the event:

* The higher version of the two, of the event and of the other store's row, is given.
* If that one names the other store as owner, it is given: a replica makes no owner.
* If it names the target as owner, it is given only when the other store's row has this very version. That row was left
  by a handoff or by the target's own last event, so it is the newest, unless the target has changed the record since:
  see `next_change`. Else the event is withheld and reported.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from libs.ownership.model import Store, Version


class Claim(NamedTuple):
    """The owner of a record at a version, by an event or by a store's row."""

    version: Version
    owner: Store


class Give(Enum):
    EVENT = "event"
    """The record as the event has it: it names the other store as owner."""
    COPY = "copy"
    """The other store's row, which is newer than the event and which it owns."""
    OWNERSHIP = "ownership"
    """The other store's row, which names the target as owner."""
    NOTHING = "nothing"
    """The event alone names the target as owner: withheld."""


def decide_replay(event: Claim, other: Claim | None, to: Store) -> Give:
    """`other`: the row of the store that is not `to`; None: it has no row."""
    if other is not None and other.version >= event.version:
        if other.owner is to:
            return Give.OWNERSHIP
        return Give.EVENT if other == event else Give.COPY
    return Give.NOTHING if event.owner is to else Give.EVENT


def next_change(version: Version) -> Version:
    """The version of the first change that an owner makes after this one. If the target made it and lost its row, the
    change is in its outbox or in the log: then the row at the other store is not the newest."""
    return Version(version.term, version.revision + 1)
