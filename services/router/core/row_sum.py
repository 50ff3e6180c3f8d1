"""The sum of a set of records: their number, and the XOR of the digests that two stores compare. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from libs.ownership.wire import record_from_pb
from libs.pb.baton.record.v1 import record_pb2


class Sum(NamedTuple):
    """The number of rows, and the XOR of their digests."""

    records: int = 0
    digest: int = 0

    def plus(self, records: int, content: int, envelope: int) -> Sum:
        return Sum(self.records + records, self.digest ^ (content << 64 | envelope))

    def with_sum(self, other: Sum) -> Sum:
        return Sum(self.records + other.records, self.digest ^ other.digest)

    @property
    def text(self) -> str:
        return f"{self.digest:032x}"


def with_records(total: Sum, records: Iterable[record_pb2.Record]) -> Sum:
    """Add digests that are computed from the records. Raises UnreadableRecord."""
    for record in records:
        row = record_from_pb(record).row
        total = total.plus(1, row.digest, row.envelope_digest)
    return total
