"""Plan for the repair of a corrupt record, from both stores' rows. Pure.

The newest row names the owner. A forged event may have made the other store's row the newer one. Then the owner's row
may be intact, and the repair must exceed the forged version, or the other store ignores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from libs.errors import BatonError
from libs.ownership.model import NEVER, Store, Version


class NothingCorrupt(BatonError):
    """Both stores can read the record: change it by the calls of its contract."""

    code = "FAILED_PRECONDITION"
    reason = "RECORD_READABLE"


class NoSuchRecord(BatonError):
    """No reachable store has a record of this name."""

    code = "NOT_FOUND"
    reason = "NO_RECORD"


@dataclass(frozen=True, slots=True)
class Examined:
    """A record as one store has it."""

    version: Version
    owner: Store
    corrupt: str
    """Why the record does not fit the contract; empty if it does."""


@dataclass(frozen=True, slots=True)
class Plan:
    owner: Store
    above: Version
    """Version of the other store's row if it is newer, else NEVER."""
    to_hand_over: bool
    """The other store has released the record, and the owner does not have that version yet."""
    corrupt: str
    """The defect and its store."""


def plan_repair(rows: Mapping[Store, Examined]) -> Plan:
    """`rows`: those that exist, by store. Raises NoSuchRecord, NothingCorrupt."""
    if not rows:
        raise NoSuchRecord
    newest = max(rows.values(), key=lambda row: row.version)
    owner = newest.owner
    mine, other = rows.get(owner), rows.get(owner.other)
    if mine is None or mine.owner is not owner:
        _check_corrupt(newest, owner.other)
        return Plan(owner, NEVER, True, f"store {owner.other}: {newest.corrupt}")
    if other is not None and other.version > mine.version:
        store, row = (owner.other, other) if other.corrupt else (owner, mine)
        _check_corrupt(row, store)
        return Plan(owner, other.version, False, f"store {store}: {row.corrupt}")
    _check_corrupt(mine, owner)
    return Plan(owner, NEVER, False, f"store {owner}: {mine.corrupt}")


def _check_corrupt(row: Examined, store: Store) -> None:
    if not row.corrupt:
        raise NothingCorrupt(
            f"the newest row, at store {store}, can be read: change the record by the calls of its contract; if the"
            " other store's copy of it is corrupt, baton reconcile copies this one there"
        )
