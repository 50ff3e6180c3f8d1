"""The groups of buckets that the mover hands over together."""

from __future__ import annotations

from libs.ownership.model import BUCKETS, Store
from services.router.flows.moving.buckets import GROUP, GROUP_ROWS, Bucket, groups


def test_a_group_has_a_bounded_number_of_buckets_and_of_rows() -> None:
    sizes = [0] * 300 + [GROUP_ROWS // 3] * 10 + [GROUP_ROWS * 2] * 2 + [1] * 10
    buckets = [Bucket(number, Store.A, rows={Store.A: size, Store.B: size // 2}) for number, size in enumerate(sizes)]
    made = groups(buckets, {bucket.number: Store.B for bucket in buckets})
    assert [bucket for group, _ in made for bucket in group] == buckets, "each bucket is in one group, in order"
    assert {to for _, to in made} == {Store.B}
    for group, _ in made:
        assert len(group) <= GROUP
        assert len(group) == 1 or sum(bucket.most_rows for bucket in group) <= GROUP_ROWS
    assert len(made) < len(sizes) / 10


def test_a_group_has_one_target() -> None:
    buckets = [Bucket(number, Store.A) for number in range(BUCKETS)]
    homes = {bucket.number: Store.B if bucket.number % 2 else Store.A for bucket in buckets}
    made = groups(buckets, homes)
    assert all(homes[bucket.number] is to for group, to in made for bucket in group)
    assert len(made) == BUCKETS // GROUP
