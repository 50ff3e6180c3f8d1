# ruff: noqa: N802 - the methods are named as in the .proto.
"""The replication API of a store, over its ports: the router moves, copies and compares records with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

from libs.backend.arrivals import fence_if_seized, terms_of
from libs.backend.calls import Dependencies
from libs.backend.checks import (
    MAX_PAGE,
    MAX_RECORDS,
    check_buckets,
    check_count,
    check_distinct,
    check_keys,
    check_limit,
    check_rising,
    check_rule,
    store_of,
)
from libs.backend.comparison import Comparison
from libs.backend.direct import DirectMethods
from libs.backend.feed import ApplyLoop
from libs.backend.lost_rows import lost_rows
from libs.backend.outbox_methods import OutboxMethods
from libs.backend.pages import page_of
from libs.backend.parked import ParkedMethods
from libs.backend.scopes import limited, scope_of
from libs.backend.status import count_aside, count_feed, locks_to_pb, pools_to_pb
from libs.backend.write_locks import WriteLocks
from libs.contract.descriptors import Contract
from libs.contract.operations import CallContext, List, Operations, item_of
from libs.errors import BatonError, InvalidField, StoreNotReady
from libs.locks.measured import MeasuredLocks
from libs.ownership.limits import MAX_COPY_BYTES
from libs.ownership.model import BUCKETS, Outcome, Record
from libs.ownership.wire import (
    STORE_NUMBERS,
    bucket_from_pb,
    bucket_to_pb,
    put_records,
    read_bulk,
    record_from_pb,
    record_to_pb,
    version_to_pb,
)
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.replication.v1.replication_pb2_grpc import (
    ReplicationServiceServicer,
    add_ReplicationServiceServicer_to_server,
)
from libs.pb.baton.telemetry.v1 import telemetry_pb2
from libs.rpc.errors import Context
from libs.rpc.limits import ANSWER_BYTES, HARD_MESSAGE_BYTES
from libs.rpc.server import TypedService
from libs.store.inspection import ExportQuery
from libs.store.limits import OutboxLimits
from libs.store.port import ReleaseResult, StorePorts
from libs.store.window import made_by
from libs.telemetry.vitals import Gauges, vitals

log = logging.getLogger(__name__)

_Results = pb.ReleaseRecordsResponse
COUNT_SECONDS = 0.7
"""The database may take this long for the counts of a status. A router waits a second for the whole answer."""
_OUTCOMES = {
    Outcome.RELEASE: _Results.OUTCOME_RELEASED,
    Outcome.RELEASED: _Results.OUTCOME_RELEASED,
    Outcome.ABSENT: _Results.OUTCOME_ABSENT,
    Outcome.NOT_OWNED: _Results.OUTCOME_NOT_OWNED,
    Outcome.TOO_LARGE: _Results.OUTCOME_BUSY,
    Outcome.EXHAUSTED: _Results.OUTCOME_BUSY,
    None: _Results.OUTCOME_BUSY,
}


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """Facts about a store for its status."""

    schema_version: int
    """Highest schema version of payloads that it understands."""
    server_id: str = ""
    """Identity of its database server; "" if there is none."""
    outbox: OutboxLimits = field(default_factory=OutboxLimits)
    gauges: Gauges = field(default_factory=Gauges)
    locks: MeasuredLocks | None = None
    process: str = field(default_factory=lambda: uuid4().hex)
    """Id of the process, new with each start."""
    public_auth: str = ""
    """Setting public_auth; "" if it is not set."""
    public_auth_optional: bool = False
    """Callers without credentials are served as `anonymous`."""
    certificate: Callable[[], telemetry_pb2.Certificate | None] = lambda: None
    """The state of the process's certificate; None without TLS."""
    account_records: int = 0
    """Setting account_records; 0: no limit."""


class Replication(DirectMethods, OutboxMethods, ParkedMethods, ReplicationServiceServicer):
    """Raises InvalidField for requests that no router sends, StoreNotReady unless the store serves, and the ports'
    errors."""

    def __init__(
        self,
        operations: Operations,
        contract: Contract,
        ports: StorePorts,
        feed: ApplyLoop,
        deps: Dependencies,
        facts: StoreFacts,
    ) -> None:
        self._operations = operations
        self._contract = contract
        self._ports = ports
        self._feed = feed
        self._serving = deps.serving
        self._clock = deps.clock
        self._logged = deps.logged
        self._clients = deps.clients
        self._served_as = deps.served_as
        self._direct, self._process = deps.direct, facts.process
        self._facts = facts
        self._write_locks = WriteLocks(ports, deps.locks)
        self._comparison = Comparison(operations, ports)

    def service(self) -> TypedService:
        name = pb.DESCRIPTOR.services_by_name["ReplicationService"].full_name
        return TypedService(name, self, add_ReplicationServiceServicer_to_server)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        facts = self._facts
        now = self._clock.monotonic()
        if request.HasField("serves_subjects"):
            self._served_as.learn(subjects=request.serves_subjects, generation=request.generation)
        answer = pb.GetStatusResponse(
            clients=[
                telemetry_pb2.Client(
                    name=seen.name,
                    schema_version=seen.schema_version,
                    calls=seen.calls,
                    idle_seconds=now - seen.last_at,
                )
                for seen in (self._clients.seen() if self._clients is not None else ())
            ],
            store=STORE_NUMBERS[self._ports.store],
            serving=self._serving.serving,
            reason=self._serving.reason,
            schema_version=facts.schema_version,
            backend=self._ports.backend,
            server_id=facts.server_id,
            public_auth=facts.public_auth,
            public_auth_optional=facts.public_auth_optional,
            certificate=facts.certificate(),
            account_records=facts.account_records,
            adopts_bulk=True,
            process=facts.process,
            serves_subjects=self._served_as.subjects,
            feed=pb.Feed(
                last_event_age_seconds=self._feed.last_event_age_seconds,
                trouble=self._feed.trouble,
                clock_ahead_seconds=self._feed.clock_ahead_seconds,
                log_replaced=self._feed.replaced,
                log_adopted=self._feed.adopted,
                event_auth=self._feed.arrivals.auth.mode,
                event_keys=self._feed.arrivals.auth.key_ids,
                event_keys_trouble=self._feed.arrivals.auth.trouble,
            ),
            vitals=vitals(facts.gauges),
            pools=pools_to_pb(self._ports.pools),
        )
        if facts.locks is not None:
            answer.locks.CopyFrom(locks_to_pb(facts.process, facts.locks))
        answer.now_time.FromNanoseconds(int(self._clock.now() * 1e9))
        try:
            async with asyncio.timeout(COUNT_SECONDS):
                await self._count(answer)
        except (BatonError, TimeoutError) as error:
            # A store whose database is unavailable still reports that, before its caller's patience ends.
            late = f"The store's database does not answer within {COUNT_SECONDS:g} s."
            answer.serving, answer.uncounted = False, True
            answer.reason = answer.reason or (error.message if isinstance(error, BatonError) else late)
        return answer

    async def _count(self, answer: pb.GetStatusResponse) -> None:
        ports, limits = self._ports, self._facts.outbox
        # The order matters: a caller that sees that nothing is owned must see the last release in the outbox, or gone
        # from it.
        census = await ports.inspection.census()
        depth = await ports.outbox.depth()
        answer.outbox.entries, answer.outbox.bytes, answer.outbox.oldest_seconds = depth
        answer.outbox.full = not limits.fits(depth, 0)
        answer.outbox.fill_share = limits.share(depth)
        await count_aside(answer.outbox, ports.aside)
        answer.records, answer.owned_records, answer.owned_buckets, answer.unfilled_records = census
        if (connections := await ports.inspection.connections()) is not None:
            answer.connections.CopyFrom(pb.Connections(**connections._asdict()))
        standing = await ports.recovery.standing()
        answer.fence_reason, answer.conflicts = standing.fence_reason, standing.conflicts
        count_feed(answer.feed, await ports.feed.state())

    async def ReadRecords(self, request: pb.ReadRecordsRequest, context: Context) -> pb.ReadRecordsResponse:
        """Returns the first keys, at least one, up to ANSWER_BYTES of payload."""
        self._serving.check()
        check_keys(request.keys)
        answer = pb.ReadRecordsResponse()
        size = 0
        founds = await self._ports.records.read_many(list(request.keys))
        most = MAX_COPY_BYTES if request.mark_too_large else None
        fitting = [row.key for one in founds if (row := one.row) and (most is None or len(row.payload) <= most)]
        complete = await self._complete(fitting) if request.with_served else {}
        for found in founds:
            row = found.row
            marked = most is not None and row is not None and len(row.payload) > most
            if request.with_served and row is not None and not marked and row.key not in complete:
                if answer.rows:
                    break
                complete = await self._complete([row.key])
            size += len(row.payload) if row is not None and not marked else 0
            if answer.rows and size > ANSWER_BYTES:
                break
            entry = answer.rows.add(key=found.key, bucket_owner=bucket_to_pb(found.bucket_owner))
            if row is not None and marked:
                entry.too_large_bytes = len(row.payload)
            elif row is not None:
                record = complete.get(row.key) or Record(row, (), made_by(row), self._clock.now())
                entry.record.CopyFrom(record_to_pb(record))
        return answer

    async def _complete(self, keys: Sequence[str]) -> dict[str, Record]:
        """Records with the requests that they served: those of the lowest keys, about 1 MiB."""
        records, _ = await self._ports.inspection.export(ExportQuery(limit=len(keys), keys=tuple(keys)))
        return {record.row.key: record for record in records}

    async def ListRecords(self, request: pb.ListRecordsRequest, context: Context) -> pb.ListRecordsResponse:
        self._serving.check()
        wanted = self._parse_list(request)
        if request.keys:
            check_keys(request.keys)
            rows = await self._ports.records.page(replace(wanted.page, keys=tuple(request.keys)))
            more = False
            size = sum(len(listed.row.payload) for listed in rows if listed.matches)
            if size > HARD_MESSAGE_BYTES - ANSWER_BYTES:
                raise InvalidField("keys", f"{len(request.keys)} keys", f"fewer: their records have {size} bytes")
        else:
            limit = check_limit(request.limit, MAX_PAGE)
            page = replace(wanted.page, after=request.after, limit=limit, keys=())
            rows, more = await page_of(self._ports, replace(wanted, page=page))
        answer = pb.ListRecordsResponse(full=more)
        for row, matches in rows:
            version = version_to_pb(row.version)
            if row.schema_version > self._facts.schema_version and (matches or request.keys):
                answer.rows.add(key=row.key, version=version, unknown_schema=row.schema_version)
            else:
                item = item_of(wanted, row) if matches else None
                answer.rows.add(key=row.key, version=version, matches=item is not None, item=item or b"")
        return answer

    def _parse_list(self, request: pb.ListRecordsRequest) -> List:
        operations = self._operations
        service, _, name = request.method.removeprefix("/").replace("/", ".").rpartition(".")
        if service == operations.service and name in operations.methods:
            context = CallContext("", "", 0.0, request.schema_version)
            parsed = operations.parse(name, request.request, context)
            if isinstance(parsed, List):
                return limited(parsed, scope_of(self._contract))
        raise InvalidField("method", request.method, f"a method of {operations.service} that lists")

    async def ReleaseRecords(self, request: pb.ReleaseRecordsRequest, context: Context) -> pb.ReleaseRecordsResponse:
        self._serving.check()
        check_keys(request.keys)
        to = store_of(request.to, "to", not_this=self._ports.store)
        async with self._write_locks.before_release(request.keys):
            released = await self._ports.transfers.release(list(request.keys), to, create=request.create)
        return pb.ReleaseRecordsResponse(
            results=[_result_to_pb(result) for result in released.results], remaining=released.remaining
        )

    async def AdoptRecords(self, request: pb.AdoptRecordsRequest, context: Context) -> pb.AdoptRecordsResponse:
        self._serving.check_copies()
        check_count(request.records, "records", MAX_RECORDS)
        refused: Sequence[int] = ()
        if request.from_log:
            self._feed.arrivals.auth.check_replay(checked=request.checked)
            records, refused = await self._feed.arrivals.sift(request.records)
        else:
            records = [record_from_pb(record) for record in request.records]
            await fence_if_seized(self._ports, terms_of(records))
        applied, old = await self._ports.transfers.apply(records)
        return pb.AdoptRecordsResponse(applied=applied, old=old, refused=refused)

    async def ReleaseBulk(self, request: pb.ReleaseBulkRequest, context: Context) -> pb.ReleaseBulkResponse:
        self._serving.check()
        buckets = check_rising(check_buckets(request.buckets))
        to = store_of(request.to, "to", not_this=self._ports.store)
        done = await self._ports.transfers.release_bulk(buckets, to, request.after)
        return pb.ReleaseBulkResponse(event=done.event, released=done.released, last=done.last, full=done.is_full)

    async def AdoptBulk(self, request: pb.AdoptBulkRequest, context: Context) -> pb.AdoptBulkResponse:
        self._serving.check_copies()
        bulk = read_bulk("", request.event)
        if bulk is None or bulk.to is not self._ports.store:
            raise InvalidField("event", f"{len(request.event)} bytes", "a bulk release to this store")
        check_count(bulk.entries, "event", MAX_RECORDS)
        taken, old, missing = await self._ports.transfers.take(bulk)
        return pb.AdoptBulkResponse(taken=taken, old=old, missing=[one.key for one in missing])

    async def ListBuckets(self, request: pb.ListBucketsRequest, context: Context) -> pb.ListBucketsResponse:
        self._serving.check()
        buckets = check_buckets(request.buckets)
        disputed = await self._ports.seizures.disputed(buckets)
        bucket_owners = await self._ports.transfers.bucket_owners(buckets)
        return pb.ListBucketsResponse(
            bucket_owners=[bucket_to_pb(bucket_owner) for bucket_owner in bucket_owners], disputed=sorted(disputed)
        )

    async def ReleaseBuckets(self, request: pb.ReleaseBucketsRequest, context: Context) -> pb.ReleaseBucketsResponse:
        self._serving.check()
        buckets = check_buckets(request.buckets)
        to = store_of(request.to, "to", not_this=self._ports.store)
        found = await self._ports.transfers.release_buckets(buckets, to)
        return pb.ReleaseBucketsResponse(bucket_owners=[bucket_to_pb(bucket_owner) for bucket_owner in found])

    async def AdoptBuckets(self, request: pb.AdoptBucketsRequest, context: Context) -> pb.AdoptBucketsResponse:
        self._serving.check()
        check_count(request.bucket_owners, "bucket_owners", BUCKETS)
        bucket_owners = [bucket_from_pb(bucket_owner) for bucket_owner in request.bucket_owners]
        check_distinct([one.bucket for one in bucket_owners], "bucket_owners")
        despite = request.despite_conflicts
        found = await self._ports.transfers.adopt_buckets(bucket_owners, despite_conflicts=despite)
        return pb.AdoptBucketsResponse(bucket_owners=[bucket_to_pb(bucket_owner) for _, bucket_owner in found])

    async def ReturnBuckets(self, request: pb.ReturnBucketsRequest, context: Context) -> pb.ReturnBucketsResponse:
        self._serving.check()
        check_count(request.bucket_owners, "bucket_owners", BUCKETS)
        bucket_owners = [bucket_from_pb(bucket_owner) for bucket_owner in request.bucket_owners]
        found = await asyncio.gather(
            *(self._ports.transfers.return_bucket(bucket_owner) for bucket_owner in bucket_owners)
        )
        return pb.ReturnBucketsResponse(bucket_owners=[bucket_to_pb(one) for one in found if one is not None])

    async def ExportRecords(self, request: pb.ExportRecordsRequest, context: Context) -> pb.ExportRecordsResponse:
        self._serving.check_copies()
        limit = check_limit(request.limit, MAX_RECORDS)
        buckets = check_buckets(request.buckets)
        check_rising(buckets)
        query = ExportQuery(request.after, limit, tuple(buckets), request.owned_only, request.keys_only)
        if request.keys_only and request.names_only:
            query = check_rule(replace(query, pattern=request.pattern, account=request.account))
            keys, more = await self._ports.inspection.keys(query)
            return pb.ExportRecordsResponse(keys=keys, more=more, by_rule=bool(query.pattern or query.account))
        records, more = await self._ports.inspection.export(query)
        answer = pb.ExportRecordsResponse(more=more)
        if request.skip_too_large:
            large = [record.row for record in records if len(record.row.payload) > MAX_COPY_BYTES]
            for row in large:
                answer.too_large.add(key=row.key, bytes=len(row.payload))
            records = [record for record in records if len(record.row.payload) <= MAX_COPY_BYTES]
        put_records(answer.records, records)
        return answer

    async def DigestBuckets(self, request: pb.DigestBucketsRequest, context: Context) -> pb.DigestBucketsResponse:
        self._serving.check_copies()
        if request.counts_only:
            check_count(request.buckets, "buckets", 0)
            return await self._comparison.counts()
        buckets = check_buckets(request.buckets)
        if not self._serving.fence_reason and (not buckets or 0 in buckets):
            await self._check_rows()
        return await self._comparison.digests(buckets, deep=request.deep, parts=request.parts)

    async def _check_rows(self) -> None:
        """Check at the begin of each comparison, whose repair must not hide lost rows. The fence applies to all
        processes at once; this one stops serving when its admission loop sees it. Raises StoreNotReady."""
        if reason := await lost_rows(self._ports.inspection):
            log.error("this store has lost rows and is fenced: %s", reason)
            await self._ports.recovery.fence(reason)
            raise StoreNotReady(f"the store must be recovered (baton recover): {reason}")

    async def LookAtRecords(self, request: pb.LookAtRecordsRequest, context: Context) -> pb.LookAtRecordsResponse:
        self._serving.check()
        return await self._comparison.looks(request)


def _result_to_pb(result: ReleaseResult) -> pb.ReleaseRecordsResponse.Result:
    record = record_to_pb(result.record) if result.record is not None else None
    return _Results.Result(
        key=result.key,
        outcome=_OUTCOMES[result.outcome],
        record=record,
        bucket_owner=bucket_to_pb(result.bucket_owner),
        too_large=result.outcome is Outcome.TOO_LARGE,
    )
