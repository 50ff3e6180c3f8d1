"""The state of all buckets, as runs of equal ones, for the status. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from libs.ownership.model import Store


class BucketState(NamedTuple):
    owner: Store | None
    """None during a handoff, or if the store that may own the bucket is out of reach."""
    target: Store
    arrived: bool
    """The bucket and all its records are at the target."""
    in_rehearsal: bool = False
    seized: bool = False
    """The owner seized the bucket from a lost store."""


class BucketRun(NamedTuple):
    first: int
    length: int
    state: BucketState


def runs(states: Sequence[BucketState]) -> list[BucketRun]:
    """`states`: of all buckets, in order."""
    found, first = [], 0
    for state, some in groupby(states):
        count = sum(1 for _ in some)
        found.append(BucketRun(first, count, state))
        first += count
    return found
