"""Limits of gates and of automatic rollback, and their changes while the migration runs. Pure.

Each router's settings give the usual values, under the thresholds' names. The setting of the migration may overlay any
of them (`Setting.limits`); all routers then follow that value, within their refresh interval.
"""

from __future__ import annotations

from collections.abc import Mapping

from libs.errors import InvalidField
from services.router.core import automatic_rollback, gates
from services.router.core.thresholds import Overlay, Threshold

THRESHOLDS: Mapping[str, Threshold[float]] = {
    threshold.name: threshold for threshold in (*gates.thresholds(), *automatic_rollback.THRESHOLDS)
}


def changed(overlay: Overlay, to_set: Mapping[str, float], unset: tuple[str, ...] = ()) -> Overlay:
    """Returns the overlay after a change. Raises InvalidField."""
    for name in (*to_set, *unset):
        if name not in THRESHOLDS:
            raise InvalidField("limit", name, "one of " + ", ".join(THRESHOLDS))
    if both := set(to_set) & set(unset):
        raise InvalidField("limit", sorted(both)[0], "set or unset, not both")
    kept = {name: value for name, value in overlay if name not in unset}
    kept.update({name: THRESHOLDS[name].check(value) for name, value in to_set.items()})
    return tuple(sorted(kept.items()))
