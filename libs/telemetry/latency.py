"""Latencies as counts in buckets, and confidence bounds of their quantiles. Pure: time is an argument.

A bucket is 4.4 % (2^(1/16)) wide, which is the precision of a quantile. Counts of several processes can be summed.
`bounds` gives the confidence bounds of a quantile, without an assumption about the distribution.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

_PER_OCTAVE = 16
_LEAST_SECONDS = 1e-5

CONFIDENCE = 0.95
MEDIAN = 0.5
P99 = 0.99

Histogram = Counter[int]
"""Calls by latency bucket."""


def bucket_of_seconds(seconds: float) -> int:
    return int(math.log2(seconds / _LEAST_SECONDS) * _PER_OCTAVE) if seconds > _LEAST_SECONDS else 0


def bucket_edges(bucket: int) -> tuple[float, float]:
    """Lower and upper latency of a bucket, in seconds."""
    low, high = (_LEAST_SECONDS * 2 ** (number / _PER_OCTAVE) for number in (bucket, bucket + 1))
    return (low if bucket else 0.0), high


@lru_cache(maxsize=1024)
def ranks(samples: int, share: float = P99, confidence: float = CONFIDENCE) -> tuple[int | None, int | None]:
    """Ranks (from 1) of the order statistics that bound a quantile from below and from above, each with `confidence`.

    Of n independent samples, the number K of those at or below the quantile q is binomial (n, q). The k-th smallest
    sample is above the quantile if K < k, and P(K <= k - 1) >= confidence makes it an upper bound. It is below if K >=
    k, and P(K >= k) >= confidence makes it a lower bound. None: there are too few samples for the bound; the upper
    bound of P99 at 95 % needs 299. Source: David and Nagaraja, Order Statistics, 3rd edition, section 7.1.
    """
    deviation = math.sqrt(samples * share * (1 - share))
    first = max(0, math.floor(samples * share - 12 * deviation))
    last = min(samples, math.ceil(samples * share + 12 * deviation))
    below = 0.0
    """P(K <= k - 1)."""
    lower = upper = None
    for k in range(first, last + 1):
        if upper is None and k >= 1 and below >= confidence:
            upper = k
        if k >= 1 and 1 - below >= confidence:
            lower = k
        below += _probability(samples, share, k)
    return lower, upper


def _probability(samples: int, share: float, k: int) -> float:
    """Probability of exactly k in a binomial distribution."""
    ways = math.lgamma(samples + 1) - math.lgamma(k + 1) - math.lgamma(samples - k + 1)
    return math.exp(ways + k * math.log(share) + (samples - k) * math.log1p(-share))


class Bounds(NamedTuple):
    """Confidence bounds of a quantile, in seconds. None: too few samples for this bound."""

    samples: int
    lower: float | None
    upper: float | None


def bounds(latencies: Mapping[int, int], share: float = P99, confidence: float = CONFIDENCE) -> Bounds:
    """Confidence bounds of a quantile, each with `confidence`. They are the outer edges of their buckets, so the width
    of the buckets only widens the interval."""
    samples = sum(latencies.values())
    low, high = ranks(samples, share, confidence) if samples else (None, None)
    return Bounds(
        samples,
        None if low is None else bucket_edges(_at_rank(latencies, low))[0],
        None if high is None else bucket_edges(_at_rank(latencies, high))[1],
    )


def quantile(latencies: Mapping[int, int], share: float = P99) -> float | None:
    """Quantile of these samples in seconds: the upper edge of its bucket. None: no samples."""
    samples = sum(latencies.values())
    return bucket_edges(_at_rank(latencies, math.ceil(share * samples)))[1] if samples else None


def _at_rank(latencies: Mapping[int, int], rank: int) -> int:
    seen = 0
    for bucket in sorted(latencies):
        seen += latencies[bucket]
        if seen >= rank:
            return bucket
    raise ValueError(f"rank {rank} of {seen} samples")


def summed(parts: Iterable[Mapping[int, int]]) -> Histogram:
    found: Histogram = Counter()
    for part in parts:
        found.update(part)
    return found


class Recent:
    """Latencies of the last `minutes` minutes, including the current one. `now` is monotonic."""

    def __init__(self, minutes: int) -> None:
        self._minute = 0
        self._slots: deque[Histogram] = deque([Counter()], maxlen=minutes)

    def add(self, seconds: float, now: float) -> None:
        self._roll(now)
        self._slots[-1][bucket_of_seconds(seconds)] += 1

    def counts(self, now: float) -> Histogram:
        self._roll(now)
        return summed(self._slots)

    def _roll(self, now: float) -> None:
        minute = int(now // 60)
        for _ in range(min(minute - self._minute, self._slots.maxlen or 0)):
            self._slots.append(Counter())
        self._minute = minute
