"""Copying every record of one store to the other, under live traffic: A's to B before a migration, or B's to A.

Safe at any time and as often as one likes: a record is kept only if its version is higher, as every record that comes
from elsewhere. Records are copied by name: the order in which a store that takes over an old file can give them before
all its rows are completed. What is made or changed behind the cursor meanwhile travels by the log as ever.
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
"""The lane of the copy that a migration needs."""

PAGE_RECORDS = 1000
"""A store ends a page earlier when it has about 1 MiB."""
WRITERS = 3
"""Pages that are written at once, while the next one is read."""
TOTAL_SECONDS = 5.0
"""Between two looks at how many records there are: a store may have to count them."""
STEP_SECONDS = 1.0
"""After so long a step begins no further page."""
CALL_SECONDS = 5.0


_SERVICE = pb.DESCRIPTOR.services_by_name["ReplicationService"].full_name
EXPORT = f"/{_SERVICE}/ExportRecords"
ADOPT = f"/{_SERVICE}/AdoptRecords"


class NoProgress(BatonError):
    """The copy does not come forward."""


_BY_KEY = -1
"""First part of a checkpoint. A program of the release before, which copies by bucket, refuses such a bucket and waits;
one of its checkpoints has the number of a bucket."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next page begins after this key."""

    after: str = ""
    left_out: int = 0
    """Records that are too large to be copied."""
    why: str = ""
    """The first of them, for a person."""

    def encode(self) -> bytes:
        # A program of the release before reads the checkpoint of a copy that left nothing out.
        rest = [self.left_out, self.why] if self.left_out else []
        return json.dumps([_BY_KEY, self.after, *rest]).encode()

    @classmethod
    def decode(cls, checkpoint: bytes) -> Cursor:
        order, after, *rest = json.loads(checkpoint) if checkpoint else (_BY_KEY, "")
        # In the order of buckets other keys were copied: all are copied once more.
        return cls(after, *rest) if order == _BY_KEY else cls()

    def behind(self, page: pb.ExportRecordsResponse) -> Cursor:
        """After all records of a page, and those that were left out of it."""
        keys = [record.key for record in page.records[-1:]] + [one.key for one in page.too_large]
        if not keys:
            return self
        first = "".join(too_large(one.key, one.bytes) for one in page.too_large[:1])
        return Cursor(max(keys, key=str.encode), self.left_out + len(page.too_large), self.why or first)

    @property
    def note(self) -> str:
        """What was left out; "" if nothing was."""
        return f", {self.left_out} left out: {self.why}" if self.left_out else ""


@dataclass(slots=True)
class _Pages:
    """The pages of one step: read one after the other, written by several at once."""

    cursor: Cursor
    left: int
    until: float
    lock: asyncio.Lock
    done: int = 0
    more: bool = True

    def is_over(self, now: float) -> bool:
        return not self.more or self.left <= 0 or (self.done > 0 and now >= self.until)


class Backfill:
    """A `JobKind`: `to` is the store that the other one's records are copied to, A or B."""

    name = NAME
    unit = "records"

    def __init__(self, stores: Stores, clock: Clock) -> None:
        self._stores = stores
        self._clock = clock
        self._totals: dict[Store, tuple[float, int]] = {}
        """Records, and until when that is not asked again."""

    def lane(self, arguments: Mapping[str, str]) -> str:
        unknown = sorted(set(arguments) - {"to"})
        if unknown:
            raise InvalidField("arguments", unknown[0], "to, which is A or B")
        return f"{NAME} to {_to(arguments)}"

    async def step(self, at: Position) -> Step:
        """Copies pages for about a second. Raises what the stores' clients raise, NoProgress."""
        to = _to(at.arguments)
        pages = _Pages(Cursor.decode(at.checkpoint), at.limit, self._clock.monotonic() + STEP_SECONDS, asyncio.Lock())
        copying = [self._copy(pages, to) for _ in range(WRITERS)]
        total, *_ = await all_or_none([self._total(to.other), *copying])
        return Step(
            pages.cursor.encode(),
            pages.done,
            total=int(total or 0),
            note=(
                f"copies records after {pages.cursor.after}" if pages.more else f"{at.done + pages.done} records copied"
            )
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
        """The next page, as bytes that the other store takes as they are; moves the cursor behind it.

        Without records that name the other store as owner: it has them by their release, and if it has lost one, a copy
        must not make it the owner of a version that it may have left behind (`services.router.core.replay`)."""
        source, cursor = self._stores[store], pages.cursor
        request = pb.ExportRecordsRequest(after=cursor.after, limit=min(PAGE_RECORDS, pages.left), skip_too_large=True)
        data = (await source.call(EXPORT, request.SerializeToString(), CALL_SECONDS)).data
        page = pb.ExportRecordsResponse.FromString(data)
        pages.cursor = cursor.behind(page)
        if pages.cursor == cursor and page.more:
            raise NoProgress(f"{store} says that there are records after {cursor.after!r}, but sends none")
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
