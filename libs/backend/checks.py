"""Checks of requests of the replication API. Every check raises InvalidField."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from libs.contract.accounts import may_be_listed
from libs.errors import InvalidField
from libs.ownership.limits import MAX_KEY_BYTES
from libs.ownership.model import BUCKETS, Store
from libs.ownership.patterns import check_pattern
from libs.ownership.wire import store_from_pb
from libs.store.inspection import PARTS, ExportQuery

MAX_KEYS = 1000
MAX_PAGE = 500
MAX_RECORDS = 1000
MAX_ACKS = 10_000
DEFAULT_LIMIT = 200
MAX_WAIT_SECONDS = 20.0


def check_count(values: Sequence[Any], field: str, most: int) -> None:
    if len(values) > most:
        raise InvalidField(field, f"{len(values)} entries", f"at most {most}")


def check_keys(keys: Sequence[str], field: str = "keys") -> None:
    check_count(keys, field, MAX_KEYS)
    for key in keys:
        if not 0 < len(key.encode()) <= MAX_KEY_BYTES or "\0" in key:
            raise InvalidField(field, key, f"1 to {MAX_KEY_BYTES} bytes of UTF-8 without a zero")


def check_buckets(buckets: Sequence[int], field: str = "buckets") -> list[int]:
    check_count(buckets, field, BUCKETS)
    for bucket in buckets:
        if not 0 <= bucket < BUCKETS:
            raise InvalidField(field, bucket, f"0 to {BUCKETS - 1}")
    return list(buckets)


def check_rising(buckets: Sequence[int]) -> Sequence[int]:
    if any(one >= other for one, other in pairwise(buckets)):
        raise InvalidField("buckets", buckets, "rising numbers")
    return buckets


def check_distinct(buckets: Sequence[int], field: str) -> None:
    if len(set(buckets)) < len(buckets):
        raise InvalidField(field, f"{len(buckets)} buckets", "each bucket once")


def check_parts(parts: Sequence[int]) -> list[int]:
    check_count(parts, "parts", PARTS)
    for part in parts:
        if not 0 <= part < PARTS:
            raise InvalidField("parts", part, f"0 to {PARTS - 1}")
    return list(parts)


def check_limit(limit: int, most: int) -> int:
    """The limit, or the default for 0."""
    if not 0 <= limit <= most:
        raise InvalidField("limit", limit, f"1 to {most}, or 0 for {DEFAULT_LIMIT}")
    return limit or DEFAULT_LIMIT


def check_wait(seconds: float) -> float:
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise InvalidField("wait_seconds", seconds, f"0 to {MAX_WAIT_SECONDS:g}")
    return seconds


def store_of(number: int, field: str, *, not_this: Store) -> Store:
    store = store_from_pb(number, field)
    if store is not_this:
        raise InvalidField(field, store, f"the other store, {not_this.other}")
    return store


def check_rule(query: ExportQuery) -> ExportQuery:
    """The query, if its pattern and account are valid."""
    if query.pattern:
        check_pattern("pattern", query.pattern)
    if query.account and not may_be_listed(query.account):
        raise InvalidField("account", query.account, "an account by which records are listed")
    if query.buckets and (query.pattern or query.account):
        raise InvalidField("buckets", query.buckets, "no buckets beside a pattern or an account")
    return query
