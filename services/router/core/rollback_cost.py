"""The cost of a rollback to A now. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from services.router.core.phase import Setting


@dataclass(frozen=True, slots=True)
class AtB:
    """The state of B."""

    reachable: bool
    owned_records: int | None
    """Number in the store's last answer; None if it never answered."""
    records_per_second: float
    """Rate of the last handover; 0: not measured."""


class RollbackCost(NamedTuple):
    possible: bool
    records: int | None
    """Records to move back; None: unknown."""
    seconds: float | None
    """Time for that; None: unknown."""
    note: str
    """The cost in words."""


def rollback_cost(setting: Setting, b: AtB) -> RollbackCost:
    if not setting.rule.way_back:
        why = f"not possible: {setting.phase.value} has no way back, A may be shut down or behind"
        return RollbackCost(False, None, None, why)
    records = b.owned_records
    if not b.reachable:
        waits = "an unknown number of records" if records is None else f"{records} records"
        if records == 0:
            return RollbackCost(True, 0, 0.0, "no record to move back; B is unreachable")
        return RollbackCost(
            True,
            records,
            None,
            f"B is unreachable: {waits} wait for it and move back when it answers again. Until then their writes are"
            " UNAVAILABLE and their reads come from A, marked stale. If B is lost: baton recover B",
        )
    if not records:
        return RollbackCost(True, records, 0.0 if records == 0 else None, "no record to move back")
    seconds = records / b.records_per_second if b.records_per_second > 0 else None
    shown = "no rate was measured yet" if seconds is None else f"about {max(seconds, 1.0):.0f} s"
    return RollbackCost(True, records, seconds, f"{records} records to move back to A, {shown}, 0 writes lost")
