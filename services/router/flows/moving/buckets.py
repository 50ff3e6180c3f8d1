"""The buckets as the mover finds them, and the groups in which it hands them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from libs.ownership.model import Store
from services.router.flows.moving.cohort_records import NONE_APART, Apart

GROUP = 128
"""Maximum number of buckets in one group: enough to make many small ones cheap, few enough that each soon has an owner
again."""

GROUP_ROWS = 8000
"""Number of rows at which a group takes no more buckets: between release and adopt, their keys are listed."""


Group = tuple[Sequence["Bucket"], Store]
"""Buckets and their target."""


@dataclass(slots=True)
class Bucket:
    """The owner of a bucket, and the owners of its records."""

    number: int
    bucket_owner: Store | None
    """The bucket's owner; None during a handoff."""
    owned: dict[Store, int] = field(default_factory=dict)
    """Records by owner."""
    rows: dict[Store, int] = field(default_factory=dict)
    term: int = 0
    """The bucket's latest term that a store reported."""
    apart: Apart = field(default_factory=lambda: NONE_APART)
    """Records whose cohort wants them at the other store than the bucket's home."""

    @property
    def on_their_way(self) -> int:
        """Records that no store owns, approximately: the stores answered one after the other."""
        return self.most_rows - sum(self.owned.values())

    @property
    def most_rows(self) -> int:
        return max(self.rows.values(), default=0)

    @property
    def is_level(self) -> bool:
        """Whether both stores have the same number of rows."""
        return self.rows.get(Store.A) == self.rows.get(Store.B)

    def is_at(self, store: Store) -> bool:
        """Whether the store owns the bucket and every record in it."""
        return self.bucket_owner is store and not self.owned.get(store.other)

    def is_home(self, home: Store) -> bool:
        """Whether the bucket and every record in it are where they belong."""
        return self.bucket_owner is home and not self.apart[home] and not self.to_move(home)

    def to_move(self, home: Store) -> int:
        """Number of records that are not where they belong. The store that the bucket leaves may have answered with its
        count before it listed the names."""
        return abs(self.owned.get(home.other, 0) - len(self.apart[home.other])) + len(self.apart[home])


def groups(away: Sequence[Bucket], homes: Mapping[int, Store]) -> list[Group]:
    """Return groups of buckets with one target."""
    found: list[Group] = []
    for to in Store:
        group: list[Bucket] = []
        rows = 0
        for bucket in (one for one in away if homes[one.number] is to):
            if len(group) == GROUP or (group and rows + bucket.most_rows > GROUP_ROWS):
                found.append((group, to))
                group, rows = [], 0
            group.append(bucket)
            rows += bucket.most_rows
        if group:
            found.append((group, to))
    return found
