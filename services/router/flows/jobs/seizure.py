"""The steps of a seizure and of a recovery. Each is safe to repeat.

Their order makes them safe (see `libs.ownership.terms`, and the model in `tests/model/recovery.py`):

1. The lost store serves nothing: its database is fenced, or a person confirms that it is stopped.
2. The changes that the lost store can still publish are in the log.
3. The terms are appended to the log. From here on, each start of the lost store reads that its share is seized.
4. The other store reads the log to its end, and seizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grpc

from libs.clock import Clock
from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.port import Event, EventLog
from libs.ownership.model import BucketOwner, Store
from libs.ownership.orders import Order
from libs.ownership.terms import TERMS_TYPE, is_share, next_term
from libs.ownership.wire import STORE_NUMBERS, bucket_from_pb
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from services.router.flows.stores import Refused, StoreClient, Stores

CALL_SECONDS = 10.0
SEIZE_BUCKETS = 16
"""Number of buckets per call."""


class BucketTerm(NamedTuple):
    """A bucket, and the term of its seizure."""

    bucket: int
    term: int


class ShareCounts(NamedTuple):
    """Size of the lost store's share, as far as the seizing store has it.

    `bucket_owners`: buckets in which the lost store may create records. `records`: records that the seizing store does
    not own. `buckets`: buckets in the share."""

    bucket_owners: int
    records: int
    buckets: int


class Seizure:
    """The seizure of one lost store's share. Each method raises the errors of the stores and the log. `order` travels
    with each order, so that a store refuses late ones."""

    def __init__(self, stores: Stores, event_log: EventLog, clock: Clock, lost: Store, order: Order) -> None:
        self.lost = stores[lost]
        self.seizer = stores[lost.other]
        self.order = order
        self._log = event_log
        self._clock = clock

    async def standing(self, client: StoreClient, *, bucket_owners: bool = False) -> pb.GetStandingResponse:
        request = pb.GetStandingRequest(bucket_owners=bucket_owners)
        answer: pb.GetStandingResponse = await client.ask(client.recovery.GetStanding, request, CALL_SECONDS)
        return answer

    async def status(self, client: StoreClient) -> rpb.GetStatusResponse:
        answer: rpb.GetStatusResponse = await client.ask(
            client.replication.GetStatus, rpb.GetStatusRequest(), CALL_SECONDS
        )
        return answer

    async def share(self) -> tuple[list[BucketOwner], ShareCounts]:
        """The buckets in which the lost store may own records or may create them."""
        bucket_owners = await self._bucket_owners()
        client = self.seizer
        digests = await client.ask(client.replication.DigestBuckets, rpb.DigestBucketsRequest(), CALL_SECONDS)
        counts = {one.bucket: (one.records, one.owned) for one in digests.buckets}
        me = client.store
        found = [one for one in bucket_owners if is_share(one, me, *counts.get(one.bucket, (0, 0)))]
        stake = ShareCounts(
            sum(one.owner is not me for one in bucket_owners),
            sum(records - owned for records, owned in counts.values()),
            len(found),
        )
        return found, stake

    async def _bucket_owners(self) -> list[BucketOwner]:
        client = self.seizer
        answer = await client.ask(client.replication.ListBuckets, rpb.ListBucketsRequest(), CALL_SECONDS)
        return [bucket_from_pb(one) for one in answer.bucket_owners]

    def terms(self, share: Sequence[BucketOwner], terms_there: Mapping[int, int]) -> list[BucketTerm]:
        """The terms in which to seize. `terms_there`: the lost store's terms, if it answers; the new terms are higher
        than those too."""
        me = self.seizer.store
        return [BucketTerm(one.bucket, next_term(max(one.term, terms_there.get(one.bucket, 0)), me)) for one in share]

    async def append_terms(self, buckets: Sequence[BucketTerm]) -> None:
        if buckets:
            me = self.seizer.store
            terms = pb.Terms(store=STORE_NUMBERS[me], buckets=_to_pb(buckets))
            headers = HeaderWriter(me.value, TERMS_TYPE).write("", (0, 0), self._clock.now())
            await self._log.append([Event("", terms.SerializeToString(), headers)])

    async def ends(self) -> dict[int, int]:
        """The end of the log, by partition."""
        return {part: end for part, (_, end) in (await self._log.ends()).items()}

    async def unread(self, ends: Mapping[int, int]) -> int:
        """Number of events before these ends that the seizing store has not read."""
        read = (await self.status(self.seizer)).feed.next_offsets
        return sum(max(0, end - read[part] if part in read else end) for part, end in ends.items())

    async def seize(self, buckets: Sequence[BucketTerm], ends: Mapping[int, int]) -> dict[int, str]:
        """Seize buckets. Returns those that could not be seized, each with the reason."""
        client = self.seizer
        request = pb.SeizeBucketsRequest(buckets=_to_pb(buckets), ends=ends, name_refused=True, order=self._order)
        answer: pb.SeizeBucketsResponse = await client.ask(client.recovery.SeizeBuckets, request, CALL_SECONDS)
        return {one.bucket: one.reason for one in answer.refused}

    async def take_terms(self, ends: Mapping[int, int]) -> None:
        """Copy the bucket owners and terms of the seizing store to the lost one, and set the lost store's feed to the
        ends that the seizing store had read."""
        taken = await self.standing(self.seizer, bucket_owners=True)
        client = self.lost
        terms = pb.TakeTermsRequest(bucket_owners=taken.bucket_owners, order=self._order)
        await client.ask(client.recovery.TakeTerms, terms, CALL_SECONDS)
        skip = pb.SkipToRequest(next_offsets=ends, order=self._order)
        await client.ask(client.recovery.SkipTo, skip, CALL_SECONDS)

    async def settle(self, limit: int) -> int:
        client = self.lost
        answer = await client.ask(
            client.recovery.SettleRows, pb.SettleRowsRequest(limit=limit, order=self._order), CALL_SECONDS
        )
        return int(answer.settled)

    async def fence(self, reason: str, recovery: str) -> None:
        """Fence the lost store. The seizing store records the order first, because a restored database of the lost
        store would not have it."""
        await self.take_order()
        request = pb.FenceStoreRequest(reason=reason, recovery=recovery, order=self._order)
        await self.lost.ask(self.lost.recovery.FenceStore, request, CALL_SECONDS)

    async def take_order(self) -> None:
        client = self.seizer
        try:
            await client.ask(client.recovery.TakeOrder, pb.TakeOrderRequest(order=self._order), CALL_SECONDS)
        except Refused as error:
            # A store of an earlier release records no orders.
            if error.code != grpc.StatusCode.UNIMPLEMENTED.name:
                raise

    async def recheck(self) -> str:
        """The reason why the lost store stays fenced; "" if it does not."""
        await self.take_order()
        client = self.lost
        request = pb.RecheckStoreRequest(order=self._order)
        return str((await client.ask(client.recovery.RecheckStore, request, CALL_SECONDS)).fence_reason)

    @property
    def _order(self) -> pb.Order:
        one = self.order
        return pb.Order(control=one.control, epoch=one.epoch, job=one.job, number=one.number, stage=one.stage)

    async def open(self, fence_reason: str, recovery: str) -> None:
        """Record each store's current identity at the other one, then open the lost store. Its own record of the
        seizing store may be as old as its backup, and would let the seizing store's next start look like another
        database."""
        for client, other in ((self.seizer, self.lost), (self.lost, self.seizer)):
            now = (await self.standing(other)).now
            note = pb.NoteOtherRequest(other=now, anew=True, order=self._order)
            await client.ask(client.recovery.NoteOther, note, CALL_SECONDS)
        request = pb.OpenStoreRequest(fence_reason=fence_reason, recovery=recovery, order=self._order)
        await self.lost.ask(self.lost.recovery.OpenStore, request, CALL_SECONDS)


def _to_pb(buckets: Sequence[BucketTerm]) -> list[pb.Terms.Bucket]:
    return [pb.Terms.Bucket(bucket=bucket, term=term) for bucket, term in buckets]
