"""Reads stores and log directly, bypassing the router: over the stores' internal listeners and from the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from libs.eventlog.codes import Codes
from libs.eventlog.port import EventLog, LogUnavailable
from libs.ownership.wire import STORES, UnreadableRecord, bulk_from_pb
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceStub
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.proving.history.consistency import LogEvent, Row, Served
from libs.proving.trial.errors import TrialFailed
from libs.proving.trial.requests import value_of
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from libs.tls.process import ClientTls

if TYPE_CHECKING:
    from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceAsyncStub

CALL_SECONDS = 5.0
PAGE_RECORDS = 500
POLL_SECONDS = 0.1
_LOG_POLL_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """Access to a store's internal listener. ``store`` is A or B."""

    store: str
    address: str
    token: str = ""
    tls: ClientTls | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """One record as a store holds it. ``value``: the clients' value. ``content``: digest of the payload. ``written``:
    version of the last write. ``account``: "" if the record has none."""

    name: str
    version: tuple[int, int]
    written: tuple[int, int]
    owner: str
    live: bool
    value: str | None
    content: str
    account: str = ""

    def row(self, store: str) -> Row:
        """The record as a row of the ledger. Its digest covers all fields that both stores must hold alike."""
        digest = f"{self.content} {'live' if self.live else 'deleted'} {self.written[0]}-{self.written[1]}"
        return Row(store, self.name, self.version, self.owner, digest)


@dataclass(slots=True)
class Reader:
    """One store, read over its internal listener."""

    access: StoreAccess
    stub: ReplicationServiceAsyncStub

    async def ask(self, method: Any, request: Any) -> Any:
        token = ((metadata.TOKEN, self.access.token),) if self.access.token else ()
        return await method(request, timeout=CALL_SECONDS, metadata=grpc.aio.Metadata(*token))

    async def status(self) -> pb.GetStatusResponse:
        found: pb.GetStatusResponse = await self.ask(self.stub.GetStatus, pb.GetStatusRequest())
        return found

    async def export(self) -> list[Held]:
        """All records, in key order."""
        records: list[Held] = []
        more = True
        while more:
            after = records[-1].name if records else ""
            request = pb.ExportRecordsRequest(after=after, limit=PAGE_RECORDS)
            page = await self.ask(self.stub.ExportRecords, request)
            records += [held_of(record) for record in page.records]
            more = page.more and bool(page.records)
        return records

    async def digests(self) -> dict[int, int]:
        """Digests by bucket; buckets without rows are left out."""
        found = await self.ask(self.stub.DigestBuckets, pb.DigestBucketsRequest())
        return {bucket.bucket: bucket.digest for bucket in found.buckets}

    async def bucket_owners(self) -> dict[int, str]:
        """Owners of the buckets in this store's view."""
        found = await self.ask(self.stub.ListBuckets, pb.ListBucketsRequest())
        return {bucket_owner.bucket: STORES[bucket_owner.owner].value for bucket_owner in found.bucket_owners}


@asynccontextmanager
async def open_readers(stores: Sequence[StoreAccess]) -> AsyncIterator[list[Reader]]:
    """A reader for each store, closed at the end."""
    async with AsyncExitStack() as stack:
        readers = []
        for access in stores:
            channel = await stack.enter_async_context(open_channel(access.address, access.tls))
            readers.append(Reader(access, ReplicationServiceStub(channel.grpc)))
        yield readers


def held_of(record: record_pb2.Record) -> Held:
    """The part of a record that the checks need."""
    # Both schema versions have these fields under the same numbers.
    sandbox = Sandbox.FromString(record.payload)
    return Held(
        name=record.key,
        version=(record.version.term, record.version.revision),
        written=(record.write_version.term, record.write_version.revision),
        owner=STORES[record.owner].value,
        live=record.live,
        value=value_of(sandbox) if record.payload else None,
        content=blake2b(record.payload, digest_size=16).hexdigest(),
        account=sandbox.account,
    )


def event_of(record: record_pb2.Record) -> LogEvent:
    """The part of an event that the ledger needs. The value is the write's; events of other changes have none."""
    version = (record.version.term, record.version.revision)
    served = tuple(
        Served(request.request_id, (request.version.term, request.version.revision)) for request in record.served
    )
    return LogEvent(record.key, version, served, STORES[record.origin].value, _value(record))


def _value(record: record_pb2.Record) -> str | None:
    return value_of(Sandbox.FromString(record.payload)) if record.payload else None


async def read_log(log: EventLog, codes: Codes | None = None) -> list[LogEvent]:
    """All record events in the log; with `codes`, those that have a right one.

    Raises LogUnavailable, and TrialFailed for malformed events.
    """
    ends = {part: (oldest, end) for part, (oldest, end) in (await log.ends()).items() if end > oldest}
    events: list[LogEvent] = []
    if not ends:
        return events
    positions = {part: oldest for part, (oldest, _) in ends.items()}
    async with log.reader(positions) as reader:
        while any(positions[part] < end for part, (_, end) in ends.items()):
            stored = await reader.poll(_LOG_POLL_EVENTS, CALL_SECONDS)
            if not stored:
                raise TrialFailed(f"the log gave nothing more within {CALL_SECONDS:g} s, at {positions} of {ends}")
            for one in stored:
                positions[one.partition] = one.offset + 1
                # A heartbeat has no key and no content.
                if one.event.key and (codes is None or not codes.why_wrong(one.event)):
                    events.extend(_parsed(one.event.value, f"partition {one.partition} offset {one.offset}"))
    return events


def _parsed(value: bytes, place: str) -> list[LogEvent]:
    try:
        record = record_pb2.Record.FromString(value)
        if record.HasField("bulk"):
            bulk = bulk_from_pb(record)
            return [
                LogEvent(one.key, (one.version.term, one.version.revision), (), bulk.origin.value)
                for one in bulk.entries
            ]
        return [event_of(record)]
    except (DecodeError, KeyError, UnreadableRecord) as error:
        raise TrialFailed(f"log, {place}: not a record's event: {error!r}") from error


async def wait_until_quiet(readers: Sequence[Reader], log: EventLog, timeout_seconds: float) -> None:
    """Wait until the system is quiet: both outboxes empty, both feeds at the log's end, no parked events.

    Raises TrialFailed with the work that is still in progress.
    """
    deadline = time.monotonic() + timeout_seconds
    while waiting := await _under_way(readers, log):
        if time.monotonic() > deadline:
            raise TrialFailed(f"not quiet after {timeout_seconds:g} s: {'; '.join(waiting)}")
        await asyncio.sleep(POLL_SECONDS)


async def _under_way(readers: Sequence[Reader], log: EventLog) -> list[str]:
    try:
        before = [await reader.status() for reader in readers]
        ends = await log.ends()
        after = [await reader.status() for reader in readers]
    except grpc.aio.AioRpcError as error:
        return [f"a store does not answer: {error.code().name} {error.details()}"]
    except LogUnavailable as error:
        return [f"the log does not answer: {error}"]
    found = []
    for reader, first, status in zip(readers, before, after, strict=True):
        name = f"store {reader.access.store}"
        if first.outbox.entries or status.outbox.entries:
            found.append(f"{name}: {status.outbox.entries} changes in the outbox")
        behind = _behind(status.feed.next_offsets, ends)
        if behind:
            found.append(f"{name}: {behind} events behind{f' ({status.feed.trouble})' if status.feed.trouble else ''}")
        if status.feed.parked_now:
            found.append(f"{name}: {status.feed.parked_now} parked events")
    return found


def _behind(offsets: Mapping[int, int], ends: Mapping[int, tuple[int, int]]) -> int:
    return sum(max(0, end - offsets.get(part, oldest)) for part, (oldest, end) in ends.items())
