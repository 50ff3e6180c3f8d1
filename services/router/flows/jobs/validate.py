"""The job `validate`: counts the records that are missing or different at either store, and their age.

The counts are a snapshot that includes changes in transit; `reconcile` finds the real differences. Only buckets whose
digests differ are compared; in the others, all rows are equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from libs.clock import Clock
from libs.errors import InvalidField
from libs.ownership.model import BUCKETS
from services.router.core.ages import Validation
from services.router.flows.jobs.bucket_comparison import BucketComparison
from services.router.flows.jobs.kind import Position, Step
from services.router.flows.stores import Stores

NAME = "validate"
STEP_SECONDS = 0.25
"""Time after which a step starts no further page."""


class Validate:
    """A `JobKind`, without arguments."""

    name = NAME
    unit = "buckets"

    def __init__(self, stores: Stores, clock: Clock) -> None:
        self._comparing = BucketComparison(stores)
        self._clock = clock

    def lane(self, arguments: Mapping[str, str]) -> str:
        for name in arguments:
            raise InvalidField("arguments", name, "this job takes no arguments")
        return NAME

    async def step(self, at: Position) -> Step:
        """Raises the stores' errors."""
        found = Validation.from_json(at.report)
        if not at.checkpoint:
            pairs = await self._comparing.digests()
            found.records_a = sum(pair.a.records for pair in pairs)
            found.records_b = sum(pair.b.records for pair in pairs)
            left, after = [pair.bucket for pair in pairs if not pair.is_equal], ""
            done = BUCKETS - len(left)
        else:
            left, after = json.loads(at.checkpoint)
            had = len(left)
            after = await self._walk(found, left, after, at.limit)
            done = had - len(left)
        return Step(
            json.dumps([left, after], ensure_ascii=False).encode(),
            done,
            total=BUCKETS,
            note=_summary(found) if not left else f"{len(left)} buckets left to compare",
            finished=not left,
            report=found.to_json(),
        )

    async def _walk(self, found: Validation, left: list[int], after: str, limit: int) -> str:
        """Compare rows, and remove finished buckets from the list. Returns the last key compared in the first bucket
        that is left."""
        end, most = self._clock.monotonic() + STEP_SECONDS, len(left)
        while left and most - len(left) < limit:
            page = await self._comparing.page(left[0], after)
            for key, pair in page.rows:
                found.add(key, pair)
            after = page.after
            if not after:
                left.pop(0)
            if self._clock.monotonic() >= end:
                break
        return after


def _summary(found: Validation) -> str:
    return f"{found.only_in_a} only in A, {found.only_in_b} only in B, {found.different} different"
