"""The bucket of a name is a promise to every process and to all data: it never changes."""

from __future__ import annotations

from collections import Counter

import pytest

from libs.ownership.model import BUCKETS, bucket_of


@pytest.mark.parametrize(
    ("name", "bucket"),
    [
        # The last two bytes of `printf %s NAME | b2sum -l 64`, modulo 1024.
        ("sandboxes/a", 0xE495 % 1024),
        ("sandboxes/b", 0x5BCA % 1024),
        ("sandboxes/a", 149),
        ("sandboxes/b", 970),
        ("sandboxes/0", 73),
        ("sandboxes/é", 622),
        ("sandboxes/" + "x" * 246, 731),
        ("a", 559),
        ("", 692),
    ],
)
def test_a_name_has_the_bucket_that_it_always_had(name: str, bucket: int) -> None:
    assert bucket_of(name) == bucket


def test_names_spread_evenly_over_all_buckets() -> None:
    found = Counter(bucket_of(f"sandboxes/{number}") for number in range(100 * BUCKETS))
    assert set(found) == set(range(BUCKETS))
    # A binomial spread of 100 ± 10: six deviations either way.
    assert min(found.values()) >= 40 and max(found.values()) <= 160
