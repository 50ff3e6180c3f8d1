"""The clients' writes: requests, the contract's answers, and names."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import count

from libs.errors import BatonError
from libs.ownership.model import Answered, Call, Changed, Row, Version, bucket_of
from libs.ownership.rules import Resource
from libs.store.port import StorePorts
from tests.contracts.store_adapters import hash_of, sandbox, write


class NotFound(BatonError):
    """There is no live record of this name."""

    reason = "SANDBOX_NOT_FOUND"


class AlreadyExists(BatonError):
    """There is a live record of this name."""

    reason = "SANDBOX_ALREADY_EXISTS"


REFUSALS = (NotFound, AlreadyExists)


@dataclass(frozen=True)
class Write:
    """One request of a client; it may be sent any number of times."""

    method: str
    key: str
    request_id: str
    value: str

    @property
    def may_create(self) -> bool:
        return self.method == "create"

    @property
    def call(self) -> Call:
        return Call(self.key, "ann", self.request_id, hash_of(f"{self.method} {self.value}"))

    def change(self, row: Row | None, version: Version) -> Resource | Answered:
        live = row is not None and row.live
        if self.method == "create":
            if live:
                raise AlreadyExists(name=self.key)
        elif row is None or not live:
            raise NotFound(name=self.key)
        elif self.method == "delete":
            return Resource(row.payload, live=False, schema_version=1)
        return Resource(sandbox(self.key, self.value), live=True, schema_version=1)

    async def carry_out(self, store: StorePorts) -> Changed | Answered:
        """Raises NotOwner and REFUSALS, both with nothing changed, and the store's errors."""
        return await write(store, self.call, self.change)


def names(buckets: int, in_each: int) -> list[list[str]]:
    """Names by bucket, so that several share one."""
    found: dict[int, list[str]] = defaultdict(list)
    full: list[list[str]] = []
    for number in count():
        name = f"sandboxes/s{number}"
        group = found[bucket_of(name)]
        group.append(name)
        if len(group) == in_each:
            full.append(group)
            if len(full) == buckets:
                return full
    raise AssertionError
