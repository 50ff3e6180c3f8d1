"""The noise floor: the share of reads that differ although one store is compared with itself. Pure.

Such differences have no cause in the migration, for example a field that a store computes anew for each answer. A
comparison of both stores finds them too, so the gate allows that share on top of its limit.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from services.router.core.measure import ShadowCounts


class NoiseFloor(NamedTuple):
    run: int
    """Generation that set the comparison."""
    different: int
    compared: int

    @classmethod
    def of(cls, run: int, counts: ShadowCounts) -> NoiseFloor:
        different = counts.mismatch + counts.missing
        return cls(run, different, different + counts.match + counts.allowed + counts.stale)

    @classmethod
    def from_json(cls, text: str) -> NoiseFloor | None:
        """None if another release wrote it."""
        try:
            found = json.loads(text)
            return cls(int(found["run"]), int(found["different"]), int(found["compared"]))
        except (ValueError, KeyError, TypeError):
            return None

    def to_json(self) -> str:
        return json.dumps(self._asdict())

    def share(self, least: int) -> float:
        """0 if fewer than `least` reads were compared: a few reads show no share."""
        return self.different / self.compared if self.compared >= least else 0.0
