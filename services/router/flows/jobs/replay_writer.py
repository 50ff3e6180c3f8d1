"""Applies replayed events at a store by the rule of `services.router.core.replay`, and counts them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import DecodeError

from libs.contract.descriptors import length_delimited, varint
from libs.errors import BatonError
from libs.eventlog.codes import Codes
from libs.eventlog.port import Stored, why_unreadable
from libs.ownership.limits import LONGEST_TICK_SECONDS, MAX_REVISION
from libs.ownership.model import BulkRelease, Store
from libs.ownership.wire import (
    UnreadableRecord,
    read_bulk,
    read_event,
    store_from_pb,
    version_from_pb,
    version_to_pb,
)
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import all_or_none
from services.router.core.replay import Claim, Give, decide_replay, next_change
from services.router.flows.jobs.replay_counts import Counts
from services.router.flows.moving.transfer import Transfer
from services.router.flows.stores import Refused, StoreClient, Stores

WRITERS = 4
"""Number of concurrent calls. All events of one record go through the same one."""
CALL_EVENTS = 1000
CALL_BYTES = 2 * 1024 * 1024
"""Maximum size of a call that a store accepts."""
CALL_SECONDS = 10.0
READ_POLLS = 40
READ_POLL_SECONDS = 0.1
DRAIN_POLLS = 80

_RECORD = length_delimited(pb.AdoptRecordsRequest.DESCRIPTOR.fields_by_name["records"].number)


class Ends(Protocol):
    """Part of the event log."""

    async def ends(self) -> dict[int, tuple[int, int]]: ...


class NoProgress(BatonError):
    """The replay makes no progress."""


class NotYetRead(BatonError):
    """The other store has not read the log to its end, so its rows may be older than the target's last changes."""


@dataclass(slots=True)
class _CallBatch:
    """The events of one call, by the way in which they are applied."""

    events: list[Stored] = field(default_factory=list)
    """Events that are applied as they are."""
    known: list[Stored] = field(default_factory=list)
    """Events whose version, or a higher one, the target or an earlier event of this call has."""
    copies: list[str] = field(default_factory=list)
    """Keys of records that are copied from the other store."""
    ownerships: dict[str, list[Stored]] = field(default_factory=dict)
    """Events of records that the target takes over as owner, by key."""


@dataclass(frozen=True, slots=True)
class CodeCheck:
    """Which events a replay gives to a store that requires codes."""

    codes: Codes
    checked_from: Mapping[int, int]
    """Offset by partition from which on the store requires a code; empty until that is recorded."""
    accept_older: bool
    """A person has confirmed that older events without a right code are given, too."""

    def accepts(self, stored: Stored) -> bool:
        return not self.codes.why_wrong(stored.event) or (self.accept_older and self.is_older(stored))

    def is_older(self, stored: Stored) -> bool:
        return not self.checked_from or stored.offset < self.checked_from.get(stored.partition, 0)


class ReplayWriter:
    """Applies the events of one step. Raises the errors of the stores and the log, NotYetRead, NoProgress."""

    def __init__(
        self, stores: Stores, log: Ends, arguments: Mapping[str, str], counts: Counts, check: CodeCheck | None = None
    ) -> None:
        """`check`: None if the store requires no codes."""
        self._check = check
        self._to = Store(arguments["to"])
        self._target, self._other = stores[self._to], stores[self._to.other]
        self._transfer = Transfer(stores)
        self._log = log
        self._name = arguments.get("name", "")
        self.dry_run = arguments.get("dry_run") == "yes"
        self._counts = counts

    async def take(self, found: Sequence[Stored]) -> None:
        wanted = [
            stored for stored in found if stored.event.key and stored.event.key == (self._name or stored.event.key)
        ]
        self._counts.others += len(found) - len(wanted)
        if self._check is not None:
            wanted = self._authenticated(wanted, self._check)
        for stored in wanted:
            if why_unreadable(stored.event):
                self._counts.cannot_read(stored)
        wanted, bulk = await self._without_bulk([stored for stored in wanted if not why_unreadable(stored.event)])
        lots: list[list[Stored]] = [[] for _ in range(WRITERS)]
        for stored in wanted:
            lots[zlib.crc32(stored.event.key.encode()) % WRITERS].append(stored)
        await all_or_none([self._lot(lot) for lot in lots if lot])
        # After the records of the same step: most of them have the version before the release.
        for stored, released in bulk:
            await self._give_bulk(stored, released)

    async def _without_bulk(self, wanted: Sequence[Stored]) -> tuple[list[Stored], list[tuple[Stored, BulkRelease]]]:
        """The events of single records, and those of bulk releases."""
        records: list[Stored] = []
        found: list[tuple[Stored, BulkRelease]] = []
        for stored in wanted:
            try:
                bulk = read_bulk(stored.event.key, stored.event.value)
            except UnreadableRecord:
                self._counts.cannot_read(stored)
                continue
            if bulk is None:
                records.append(stored)
            else:
                found.append((stored, bulk))
                # To decode one takes a millisecond, and a poll may return a hundred.
                await asyncio.sleep(0)
        return records, found

    async def _give_bulk(self, stored: Stored, bulk: BulkRelease) -> None:
        """Bring the target's rows to a bulk release, which has no payloads: the other store's rows have them."""
        wanted = {one.key: one.version for one in bulk.entries if self._name in ("", one.key)}
        here, other = await all_or_none([_claims(store, sorted(wanted)) for store in (self._target, self._other)])
        behind = {key for key, version in wanted.items() if key not in here or here[key].version < version}
        rows = {key: other[key] for key in behind if key in other and other[key].version >= wanted[key]}
        owned = {key: row for key, row in rows.items() if row.owner is self._to}
        if not behind:
            self._counts.known += 1
            return
        missed = len(behind) - len(rows)
        if not self.dry_run:
            newest = await self._newest(owned) if owned else set[str]()
            busy = await self._transfer.take(sorted(newest), self._to)
            copied = await self._transfer.copy(sorted(rows.keys() - owned.keys()), self._to)
            missed += len(owned) - len(newest) + len(busy) + len(copied.busy) + len(copied.refused)
        if missed:
            self._counts.withhold(stored)
        else:
            self._counts.applied += 1

    def _authenticated(self, found: Sequence[Stored], check: CodeCheck) -> list[Stored]:
        wanted = []
        for stored in found:
            if check.accepts(stored):
                wanted.append(stored)
            else:
                self._counts.refuse(stored, older=check.is_older(stored))
        return wanted

    async def _lot(self, lot: list[Stored]) -> None:
        for some in _in_calls(lot):
            request = _request(some)
            if request is None:
                some = self._readable(some)
                request = _request(some)
            if request is not None and request.records:
                await self._give(request.records, some)

    def _readable(self, some: list[Stored]) -> list[Stored]:
        good = []
        for stored in some:
            try:
                read_event(stored.event.key, stored.event.value)
            except UnreadableRecord:
                self._counts.cannot_read(stored)
            else:
                good.append(stored)
        return good

    async def _give(self, records: Sequence[record_pb2.Record], some: list[Stored]) -> None:
        """Apply the events whose version the target does not have yet."""
        keys = sorted({record.key for record in records})
        here, other = await all_or_none([_claims(self._target, keys), _claims(self._other, keys)])
        try:
            given = self._sort(records, some, here, other)
        except UnreadableRecord:
            good = self._readable(some)
            request = _request(good)
            if request is not None and request.records and len(good) < len(some):
                await self._give(request.records, good)
            return
        if self.dry_run:
            self._counts.applied += len(given.events) + len(given.copies) + len(given.ownerships)
            self._counts.known += sum(len(events) - 1 for events in given.ownerships.values()) + len(given.known)
            return
        refused = {stored.event.key for stored in await self._apply(given.events)}
        overtaken = [stored for stored in given.known if stored.event.key in refused]
        self._counts.known += len(given.known) - len(overtaken)
        await self._copy(given.copies)
        await self._own(given.ownerships, other)
        if overtaken:
            await self._lot(overtaken)

    def _sort(
        self,
        records: Sequence[record_pb2.Record],
        some: Sequence[Stored],
        here: Mapping[str, Claim],
        other: Mapping[str, Claim],
    ) -> _CallBatch:
        """Sort the events. Raises UnreadableRecord before any event is counted."""
        events = [_claim_of(record) for record in records]
        given = _CallBatch()
        known = {key: claim.version for key, claim in here.items()}
        for record, stored, event in zip(records, some, events, strict=True):
            there = other.get(record.key)
            give = decide_replay(event, there, self._to)
            if give in (Give.EVENT, Give.NOTHING):
                version = event.version
            else:
                assert there is not None, "the other store's row is given"
                version = there.version
            if record.key in known and known[record.key] >= version:
                given.known.append(stored)
            elif give is Give.NOTHING:
                self._counts.withhold(stored)
            elif give is Give.OWNERSHIP:
                given.ownerships.setdefault(record.key, []).append(stored)
            else:
                known[record.key] = version
                if give is Give.EVENT:
                    given.events.append(stored)
                else:
                    given.copies.append(record.key)
        return given

    async def _apply(self, some: list[Stored]) -> list[Stored]:
        """Apply events. Returns those that the target refused."""
        request = _request(some)
        if request is None or not request.records:
            return []
        try:
            answer = await self._target.ask(self._target.replication.AdoptRecords, request, CALL_SECONDS)
        except Refused as error:
            good = self._readable(some) if error.reason == UnreadableRecord.reason else some
            if len(good) == len(some):
                raise
            return await self._apply(good)
        refused = [some[position] for position in answer.refused]
        for stored in refused:
            self._counts.cannot_read(stored)
        self._counts.applied += answer.applied
        self._counts.known += len(some) - answer.applied - len(refused)
        return refused

    async def _copy(self, keys: Sequence[str]) -> None:
        if keys:
            self._counts.copied(keys, await self._transfer.copy(keys, self._to))

    async def _own(self, wanted: Mapping[str, list[Stored]], other: Mapping[str, Claim]) -> None:
        """Hand over records whose newest row is at the other store and names the target as owner."""
        if not wanted:
            return
        newest = await self._newest({key: other[key] for key in wanted})
        busy = await self._transfer.take(sorted(newest), self._to)
        for key, events in wanted.items():
            given = key in newest and key not in busy
            self._counts.applied += given
            for stored in events[given:]:
                if given:
                    self._counts.known += 1
                else:
                    self._counts.withhold(stored)

    async def _newest(self, rows: Mapping[str, Claim]) -> set[str]:
        """Keys of the rows that the target has not changed since. A change would be in the target's outbox or in the
        log, so the other store reads the log to its end before its rows are read again."""
        names = [
            pb.AckChangesRequest.Name(key=key, version=version_to_pb(next_change(row.version)))
            for key, row in rows.items()
        ]
        await self._outbox_drained()
        request = pb.ListUnloggedRequest(changes=names)
        unlogged = await self._target.ask(self._target.replication.ListUnlogged, request, CALL_SECONDS)
        await self._read_to({part: end for part, (oldest, end) in (await self._log.ends()).items() if end > oldest})
        waiting = {change.key for change in unlogged.changes}
        again = await _claims(self._other, sorted(rows))
        return {key for key, row in rows.items() if key not in waiting and again.get(key) == row}

    async def _outbox_drained(self) -> None:
        """Wait, within a bound, until the changes that the target has made before this call are in the log. A bulk
        release in its outbox has the name of its first record only. Raises NotYetRead."""
        clock = asyncio.get_running_loop().time
        began = clock()
        for _ in range(DRAIN_POLLS):
            status = await self._target.ask(self._target.replication.GetStatus, pb.GetStatusRequest(), CALL_SECONDS)
            outbox = status.outbox
            if not outbox.entries or outbox.oldest_seconds + 2 * LONGEST_TICK_SECONDS < clock() - began:
                return
            await asyncio.sleep(READ_POLL_SECONDS)
        raise NotYetRead(f"store {self._to} has {outbox.entries} changes in its outbox that the log does not have yet")

    async def _read_to(self, ends: Mapping[int, int]) -> None:
        """Wait, within a bound, until the other store has applied the log up to these ends. Raises NotYetRead."""
        other = self._other
        for _ in range(READ_POLLS):
            status = await other.ask(other.replication.GetStatus, pb.GetStatusRequest(), CALL_SECONDS)
            behind = sum(max(0, end - status.feed.next_offsets.get(part, 0)) for part, end in ends.items())
            if not behind and not status.feed.parked_now:
                return
            await asyncio.sleep(READ_POLL_SECONDS)
        raise NotYetRead(
            f"store {other.store} has {behind} events of the log to read and {status.feed.parked_now} parked ones to"
            f" apply before store {self._to} may own records again"
        )


async def _claims(store: StoreClient, keys: Sequence[str]) -> dict[str, Claim]:
    """Version and owner of the store's rows; keys without a row are left out."""
    found, after = dict[str, Claim](), ""
    while True:
        request = pb.LookAtRecordsRequest(keys=keys, after=after, limit=CALL_EVENTS, brief=True)
        page = await store.ask(store.replication.LookAtRecords, request, CALL_SECONDS)
        found.update(
            (row.key, Claim(version_from_pb(row.version), store_from_pb(row.owner, "owner"))) for row in page.looks
        )
        if not page.more:
            return found
        if not page.looks:
            raise NoProgress(f"{store.store} reports more records after {after!r}, but returns none")
        after = page.looks[-1].key


def _claim_of(record: record_pb2.Record) -> Claim:
    """Raises UnreadableRecord."""
    try:
        version = version_from_pb(record.version)
        if not all(0 <= number <= MAX_REVISION for number in version):
            raise UnreadableRecord(f"version: {tuple(version)} is not valid: 0 to {MAX_REVISION}", field="version")
        return Claim(version, store_from_pb(record.owner, "owner"))
    except BatonError as error:
        raise UnreadableRecord(error.message) from None


def _in_calls(lot: Iterable[Stored]) -> list[list[Stored]]:
    """The events in batches of at most CALL_EVENTS and CALL_BYTES, or of one event."""
    calls: list[list[Stored]] = []
    room = 0
    for stored in lot:
        size = len(stored.event.value)
        if not calls or size > room or len(calls[-1]) == CALL_EVENTS:
            calls.append([])
            room = CALL_BYTES
        calls[-1].append(stored)
        room -= size
    return calls


def _request(some: Sequence[Stored]) -> pb.AdoptRecordsRequest | None:
    """A request with the events' records, unchanged; None if an event's value is not a record of its key."""
    parts: list[bytes] = []
    for stored in some:
        value = stored.event.value
        parts += (_RECORD, varint(len(value)), value)
    try:
        request = pb.AdoptRecordsRequest.FromString(b"".join(parts))
    except DecodeError:
        return None
    request.from_log = True
    # Those that are not accepted have been left out.
    request.checked = True
    fits = all(record.key == stored.event.key for record, stored in zip(request.records, some, strict=True))
    return request if fits else None
