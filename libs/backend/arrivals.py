"""Checks of events before they are applied: any program that reaches the topic may write to it. Codes, if they are
required, are checked first (`libs.backend.event_auth`).

An event is applied if its bytes are a record of its key, the record fits the contract, its revision leaves room for
later ones, and its term is known. A higher term fences this store as seized and voids every later record of the old
term, so it counts only after the other store or a terms event has confirmed it. Any other event is parked: kept with
its position and headers, shown, and tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc

from libs.backend.admission import AskOther
from libs.backend.event_auth import EventAuth
from libs.backend.evidence import by_terms, is_near
from libs.errors import InvalidField
from libs.eventlog.headers import unpack
from libs.eventlog.port import Event, why_unreadable
from libs.ownership.model import BulkRelease, Record, Row, bucket_of
from libs.ownership.terms import take_term
from libs.ownership.wire import (
    STORE_NUMBERS,
    UnreadableRecord,
    check_versions,
    read_bulk,
    read_event,
    record_from_pb,
    record_of_event,
)
from libs.pb.baton.record.v1 import record_pb2 as pb
from libs.rpc import metadata
from libs.store.port import Parked, StorePorts, Taken

Check = Callable[[Row], None]
"""Raises UnreadableRecord for a row that does not fit the contract."""


class Arrivals:
    """Event checks of one store. `ask_other`: None if the other store's address is not set."""

    def __init__(
        self, ports: StorePorts, check: Check, ask_other: AskOther | None = None, auth: EventAuth | None = None
    ) -> None:
        """`auth`: None if events need no code."""
        self.auth = auth or EventAuth("off", "", ports.feed)
        self._ports = ports
        self._check = check
        self._ask_other = ask_other

    def read(self, event: Event) -> Record:
        """Raises UnreadableRecord."""
        if reason := why_unreadable(event):
            raise UnreadableRecord(reason)
        record = read_event(event.key, event.value)
        self._check(record.row)
        return record

    def read_bulk(self, event: Event) -> BulkRelease | None:
        """Return None if the event is not a bulk release. Raises UnreadableRecord."""
        return None if why_unreadable(event) else read_bulk(event.key, event.value)

    async def sift(self, messages: Sequence[pb.Record]) -> tuple[list[Record], list[int]]:
        """The records that may be applied, and the positions of the others. Raises the store's errors."""
        found: dict[int, Record] = {}
        for position, message in enumerate(messages):
            try:
                record = record_from_pb(message)
                check_versions(record.row)
                self._check(record.row)
            except UnreadableRecord:
                continue
            found[position] = record
        unconfirmed = {id(record) for record in await self.unconfirmed(list(found.values()))}
        found = {position: record for position, record in found.items() if id(record) not in unconfirmed}
        return list(found.values()), [position for position in range(len(messages)) if position not in found]

    async def unconfirmed(self, records: Sequence[Record]) -> Sequence[Record]:
        """The records with an unconfirmed term, which must not be applied. If the other store confirms a higher term,
        this store is fenced first. Raises the store's errors."""
        terms = terms_of(records)
        if not terms:
            return ()
        known = {one.bucket: one.term for one in await self._ports.transfers.bucket_owners(sorted(terms))}
        if any(term > known[bucket] for bucket, term in terms.items()):
            there = await self._terms_there()
            confirmed = {bucket: there[bucket] for bucket in terms if is_near(there.get(bucket, 0), known[bucket])}
            await fence_if_seized(self._ports, confirmed)
            known |= confirmed
        return [one for one in records if one.row.version.term > known.get(bucket_of(one.row.key), 0)]

    async def retry(self, parked: Parked) -> tuple[str, bool]:
        """Apply a parked event if it passes now. Returns why it does not, and whether the store has changed."""
        if why := self.auth.why_parked(parked):
            return why, False
        event = Event(parked.key, parked.event, unpack(parked.headers))
        try:
            if (bulk := self.read_bulk(event)) is not None:
                return await self._retry_bulk(parked, bulk)
            record = self.read(event)
        except UnreadableRecord as error:
            return error.message, False
        if await self.unconfirmed([record]):
            return why_unconfirmed(record), False
        applied, _ = await self._ports.feed.unpark(parked.partition, parked.offset, record)
        return "", applied > 0

    async def _retry_bulk(self, parked: Parked, bulk: BulkRelease) -> tuple[str, bool]:
        """A process of an earlier release parks bulk releases, which it cannot read: its own, too."""
        taken = await self._ports.transfers.take(bulk) if bulk.to is self._ports.store else Taken(0, 0, ())
        if taken.missing:
            return (
                f"{len(taken.missing)} records of a bulk release are missing here, {taken.missing[0].key} first",
                False,
            )
        await self._ports.feed.drop(parked.partition, parked.offset)
        return "", taken.taken > 0

    async def _terms_there(self) -> Mapping[int, int]:
        """Terms at the other store, by bucket; empty if it does not answer."""
        if self._ask_other is None:
            return {}
        try:
            answer = await self._ask_other()
        except grpc.aio.AioRpcError:
            return {}
        if answer.store != STORE_NUMBERS[self._ports.store.other]:
            return {}
        return {one.bucket: one.term for one in answer.bucket_owners}


def why_unconfirmed(record: Record) -> str:
    version = record.row.version
    return (
        f"version: term {version.term} of bucket {bucket_of(record.row.key)} is not known here, and neither the other"
        " store nor a terms event confirms it; it is tried again"
    )


def terms_of(records: Sequence[Record]) -> dict[int, int]:
    """Highest term of these records by bucket, if it is not 0."""
    terms: dict[int, int] = {}
    for record in records:
        if term := record.row.version.term:
            bucket = bucket_of(record.row.key)
            terms[bucket] = max(term, terms.get(bucket, 0))
    return terms


async def fence_if_seized(ports: StorePorts, terms: Mapping[int, int]) -> None:
    """Fence the store if one of its buckets is in a lower term than these. It happens before anything of that term is
    applied; afterwards nothing would show that the store was seized. Raises the store's errors."""
    if not terms:
        return
    bucket_owners = await ports.transfers.bucket_owners(sorted(terms))
    if seized := by_terms(bucket_owners, terms):
        await ports.recovery.fence(seized)
        higher = [one for one in bucket_owners if is_near(terms[one.bucket], one.term)]
        await ports.seizures.take_terms([take_term(one, terms[one.bucket]) for one in higher])


async def adopt_along(ports: StorePorts, key: str, found: Any) -> None:
    """Adopt the record that a write of this key takes along, if its metadata have one, as AdoptRecords does.

    The write itself is decided afterwards, by the row that is stored then: the record that arrives may be an older one.
    Raises InvalidField, UnreadableRecord, and the store's errors.
    """
    data = next((value for name, value in found or () if name == metadata.ARRIVING_BIN), None)
    if not isinstance(data, bytes):
        return
    record = record_of_event(data)
    if record.row.key != key:
        raise InvalidField(metadata.ARRIVING_BIN, record.row.key, f"the record of the call, {key}")
    await fence_if_seized(ports, terms_of([record]))
    await ports.transfers.apply([record])
