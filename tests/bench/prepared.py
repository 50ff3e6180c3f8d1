"""Writes that are prepared in advance: the calls for a store, and the same changes for the bare database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from uuid import uuid4

from libs.ownership.model import Answered, BucketOwner, Call, Changed, Found, Record, Row, Store, Version, bucket_of
from libs.ownership.rules import Resource, decide_write
from libs.ownership.wire import event_of
from tests.bench.site import name_of, payload_of


@dataclass(frozen=True, slots=True)
class Write:
    call: Call
    payload: bytes

    def change(self, row: Row | None, version: Version) -> Resource | Answered:
        return Resource(self.payload, True, 1)


@dataclass(slots=True)
class Writes:
    """Updates of this many records, in rotation."""

    records: int
    _next: int = 0

    def take(self, count: int) -> list[Write]:
        found = []
        for _ in range(count):
            number = self._next % self.records
            self._next += 1
            request_id = str(uuid4())
            request_hash = blake2b(request_id.encode(), digest_size=16).digest()
            call = Call(name_of(number), "anonymous", request_id, request_hash)
            found.append(Write(call, payload_of(number, self._next % 10)))
        return found


@dataclass(frozen=True, slots=True)
class Change:
    """A write and its effects."""

    call: Call
    before: Version
    changed: Changed
    event: bytes


@dataclass(slots=True)
class Changes:
    """The same writes with the effects on which a store would decide."""

    me: Store
    writes: Writes
    _rows: dict[str, Row] = field(default_factory=dict)

    def take(self, count: int) -> list[Change]:
        return list(self._changes(count))

    def _changes(self, count: int) -> Iterator[Change]:
        for write in self.writes.take(count):
            key = write.call.key
            first = Version(0, 1)
            row = self._rows.get(key) or Row(key, first, self.me, first, True, b"", 1)
            found = Found(key, row, BucketOwner(bucket_of(key), 0, 1, self.me))
            changed = decide_write(found, self.me, write.call, write.change)
            assert isinstance(changed, Changed), "each request is new"
            self._rows[key] = changed.row
            record = Record(changed.row, (changed.served,), self.me, time.time())
            yield Change(write.call, row.version, changed, event_of(record))
