"""A copy of all records of one store to the other under live traffic: from A to B before a migration, or from B to A.

A backfill is safe at any time and any number of times, because a store keeps a copied record only if its version is
higher. Records are copied in the order of their names: a store that takes over an old file can read in this order
before all its rows are converted. A record that is created or changed behind the cursor reaches the other store through
the log.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from libs.clock import Clock
from libs.errors import BatonError, InvalidField
from libs.ownership.model import Store
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import all_or_none
from services.router.flows.jobs.kind import Position, Step
from services.router.flows.moving.transfer import too_large
from services.router.flows.stores import Stores

NAME = "backfill"
TO_B = "backfill to B"
"""Lane of the backfill that a migration needs."""

PAGE_RECORDS = 1000
"""Maximum number of records per page. A store ends a page earlier at about 1 MiB."""
WRITERS = 3
"""Number of pages that are written concurrently while the next one is read."""
TOTAL_SECONDS = 5.0
"""Interval at which the number of records is read. A store may have to count them."""
STEP_SECONDS = 1.0
"""Time after which a step starts no further page."""
CALL_SECONDS = 5.0


_SERVICE = pb.DESCRIPTOR.services_by_name["ReplicationService"].full_name
EXPORT = f"/{_SERVICE}/ExportRecords"
ADOPT = f"/{_SERVICE}/AdoptRecords"


class NoProgress(BatonError):
    """The copy makes no progress."""


_BY_KEY = -1
"""First part of a checkpoint. The previous release copies by bucket and saves the number of a bucket here; it refuses
this value and waits."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The backfill's checkpoint."""

    after: str = ""
    """Key after which the next page begins."""
    left_out: int = 0
    """Number of records that are too large to be copied."""
    why: str = ""
    """Key and size of the first of them, for the operator."""

    def encode(self) -> bytes:
        # The previous release can read the checkpoint of a copy that left out no record.
        rest = [self.left_out, self.why] if self.left_out else []
        return json.dumps([_BY_KEY, self.after, *rest]).encode()

    @classmethod
    def decode(cls, checkpoint: bytes) -> Cursor:
        order, after, *rest = json.loads(checkpoint) if checkpoint else (_BY_KEY, "")
        # A copy by bucket has copied other keys, so this one starts from the first key.
        return cls(after, *rest) if order == _BY_KEY else cls()

    def behind(self, page: pb.ExportRecordsResponse) -> Cursor:
        """The cursor after a page, including the records that the page left out."""
        keys = [record.key for record in page.records[-1:]] + [one.key for one in page.too_large]
        if not keys:
            return self
        first = "".join(too_large(one.key, one.bytes) for one in page.too_large[:1])
        return Cursor(max(keys, key=str.encode), self.left_out + len(page.too_large), self.why or first)

    @property
    def note(self) -> str:
        """The records that were left out, in words; "" if none."""
        return f", {self.left_out} left out: {self.why}" if self.left_out else ""


@dataclass(slots=True)
class _Pages:
    """The pages of one step. They are read one at a time and written concurrently."""

    cursor: Cursor
    left: int
    until: float
    lock: asyncio.Lock
    done: int = 0
    more: bool = True

    def is_over(self, now: float) -> bool:
        return not self.more or self.left <= 0 or (self.done > 0 and now >= self.until)


class Backfill:
    """A `JobKind`. Argument: `to`, the store that gets the copies, A or B."""

    name = NAME
    unit = "records"

    def __init__(self, stores: Stores, clock: Clock) -> None:
        self._stores = stores
        self._clock = clock
        self._totals: dict[Store, tuple[float, int]] = {}
        """Number of records by store, and the time at which it is read again."""

    def lane(self, arguments: Mapping[str, str]) -> str:
        unknown = sorted(set(arguments) - {"to"})
        if unknown:
            raise InvalidField("arguments", unknown[0], "only to (A or B)")
        return f"{NAME} to {_to(arguments)}"

    async def step(self, at: Position) -> Step:
        """Copy pages for about a second. Raises the stores' errors, NoProgress."""
        to = _to(at.arguments)
        pages = _Pages(Cursor.decode(at.checkpoint), at.limit, self._clock.monotonic() + STEP_SECONDS, asyncio.Lock())
        copying = [self._copy(pages, to) for _ in range(WRITERS)]
        total, *_ = await all_or_none([self._total(to.other), *copying])
        return Step(
            pages.cursor.encode(),
            pages.done,
            total=int(total or 0),
            note=(f"copied up to {pages.cursor.after}" if pages.more else f"{at.done + pages.done} records copied")
            + pages.cursor.note,
            finished=not pages.more,
        )

    async def _copy(self, pages: _Pages, to: Store) -> None:
        target = self._stores[to]
        while True:
            async with pages.lock:
                if pages.is_over(self._clock.monotonic()):
                    return
                data = await self._read(pages, to.other)
            if data:
                await target.call(ADOPT, data, CALL_SECONDS)

    async def _read(self, pages: _Pages, store: Store) -> bytes:
        """The next page, as the bytes of a request to the other store. Moves the cursor behind the page.

        The request leaves out records that name the other store as owner. That store got them by their release. If it
        has lost one, a copy must not make it the owner of a version that may be outdated
        (`services.router.core.replay`)."""
        source, cursor = self._stores[store], pages.cursor
        request = pb.ExportRecordsRequest(after=cursor.after, limit=min(PAGE_RECORDS, pages.left), skip_too_large=True)
        data = (await source.call(EXPORT, request.SerializeToString(), CALL_SECONDS)).data
        page = pb.ExportRecordsResponse.FromString(data)
        pages.cursor = cursor.behind(page)
        if pages.cursor == cursor and page.more:
            raise NoProgress(f"{store} reports more records after {cursor.after!r}, but returns none")
        copies = [record for record in page.records if record.owner == STORE_NUMBERS[store]]
        if len(copies) < len(page.records):
            data = pb.ExportRecordsResponse(records=copies).SerializeToString()
        pages.done += len(page.records)
        pages.left -= len(page.records)
        pages.more = page.more
        return data if copies else b""

    async def _total(self, store: Store) -> int:
        until, total = self._totals.get(store, (0.0, 0))
        if self._clock.monotonic() >= until:
            source = self._stores[store]
            status = await source.ask(source.replication.GetStatus, pb.GetStatusRequest(), CALL_SECONDS)
            total = int(status.records)
            self._totals[store] = self._clock.monotonic() + TOTAL_SECONDS, total
        return total


def _to(arguments: Mapping[str, str]) -> Store:
    """Raises InvalidField."""
    to = arguments.get("to", Store.B.value)
    if to not in {store.value for store in Store}:
        raise InvalidField("to", to, "A or B")
    return Store(to)
