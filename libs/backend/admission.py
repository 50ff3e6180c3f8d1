"""Admission: whether a starting store may serve. It asks the other store and the log for changes that it may lack.

A database that was restored, copied back, emptied or promoted may still claim records that it gave away. The evidence:
its identity changed; it has fewer rows than were made in it; the other store has recorded a later state of it, or has
seized its share; the log has a change of this store that it lacks, or no longer holds the next event that it would have
to read. Such a store is fenced, for all later starts, until `baton recover` has repaired it.

One answer is enough, so an ordinary start needs no log, and two stores that start together find each other: these
questions are answered before a store serves.

Other processes of the store may serve meanwhile. So the other store or the log is asked first, and this store's own
state is read after the answer: a state that was read before may be older than the answer, and would look like a
restored store. Evidence must also hold when everything is asked and read a second time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from libs.backend.event_auth import EventAuth
from libs.backend.evidence import by_buckets, by_identity, by_place, by_terms, is_near, read_terms
from libs.backend.lost_rows import RowCount
from libs.errors import BatonError, StoreNotReady
from libs.eventlog.identity import LogReplaced, Mark, check_log, mark_of
from libs.eventlog.port import Event, EventLog, EventLogError, LogReader, OffsetGone, Stored
from libs.ownership.model import BulkRelease, Record, Store, Version
from libs.ownership.orders import ForeignControl, LateOrder
from libs.ownership.wire import (
    STORE_NUMBERS,
    STORES,
    UnreadableRecord,
    bucket_from_pb,
    order_from_pb,
    read_bulk,
)
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.pb.baton.replication.v1.recovery_pb2_grpc import RecoveryServiceStub
from libs.rpc.channel import open_channel
from libs.rpc.metadata import TOKEN
from libs.store.port import FeedState, StorePorts
from libs.store.recovery import Identity
from libs.tls.process import ClientTls

log = logging.getLogger(__name__)

ASK_SECONDS = 2.0
SILENT_SECONDS = 10.0
"""Time without events after which the log is no longer read."""
STEP_SECONDS = 5.0
"""Time limit for reading the log in one decision. A longer backlog takes several decisions, which report their
progress."""
_POLL_EVENTS = 1000
_POLL_SECONDS = 0.5
_READ_KEYS = 500
_MOST_KEYS = 5000
"""Keys after which the rest of a poll waits for their look-up."""
_LOG_READS = 3
"""Attempts if events expire while they are read."""

_Shown = tuple[Store, Sequence[tuple[str, Version]]]
"""The store that made an event, and the versions that the event shows."""

AskOther = Callable[[], Awaitable[pb.GetStandingResponse]]
"""Asks the other store. Raises grpc.aio.AioRpcError."""


@asynccontextmanager
async def open_other(address: str, token: bytes | None, tls: ClientTls | None = None) -> AsyncIterator[AskOther]:
    """A function that asks the store at this internal address."""
    async with open_channel(address, tls) as channel:
        stub = RecoveryServiceStub(channel.grpc)
        pairs = ((TOKEN, token.decode()),) if token else ()

        async def ask() -> pb.GetStandingResponse:
            request = pb.GetStandingRequest(bucket_owners=True)
            return await stub.GetStanding(request, timeout=ASK_SECONDS, metadata=grpc.aio.Metadata(*pairs))

        yield ask


class NotAdmitted(StoreNotReady):
    """Neither the other store nor the log can confirm that this store may serve."""


class StillReading(NotAdmitted):
    """The log is read, or rows are counted, before the store serves"""


@dataclass(slots=True)
class _Seen:
    """Findings in the log beyond this store's position."""

    mine: dict[str, dict[int, Version]] = field(default_factory=dict)
    """Newest version that this store made, by key and term."""
    theirs: dict[str, dict[int, Version]] = field(default_factory=dict)
    """Newest version that the other store made, by key and term."""
    terms: dict[int, int] = field(default_factory=dict)
    """Highest term in which the other store seized, by bucket."""
    announced: dict[int, int] = field(default_factory=dict)
    """Highest term that a terms event of either store announced, by bucket."""

    @property
    def keys(self) -> int:
        return len(self.mine) + len(self.theirs)


@dataclass(slots=True)
class _Scan:
    """A read of the log that may take several decisions."""

    positions: dict[int, int]
    ends: Mapping[int, int]
    marks: dict[int, Mark]
    """Marks of the events that this scan or the feed has read. The log is compared with them again before the scan
    continues, and before its end is trusted."""
    seen: _Seen = field(default_factory=_Seen)
    total: int = 0

    def __post_init__(self) -> None:
        self.total = self.left

    @property
    def left(self) -> int:
        return sum(max(0, end - self.positions[part]) for part, end in self.ends.items())


class Admission:
    """Decides whether the store may serve. Its owner closes the log and the other store."""

    def __init__(
        self,
        ports: StorePorts,
        open_log: Callable[[], Awaitable[EventLog]],
        ask_other: AskOther | None,
        read: Callable[[Event], Record],
        auth: EventAuth | None = None,
    ) -> None:
        """`ask_other`: None if the other store's address is not set. `read`: as `Arrivals.read`. `auth`: None if events
        need no code; an event that is refused is no evidence."""
        self._auth = auth or EventAuth("off", "", ports.feed)
        self._scanning: _Scan | None = None
        self._since: Mapping[int, int] = {}
        """Position of the feed before the evidence was read."""
        self._suspected = False
        """The first of two checks has found a reason to fence the store."""
        self.rows = RowCount(ports.inspection)
        """Begun by the first decision. A `RowCountLoop` continues it while the store serves."""
        self._read = read
        self._ports = ports
        self._open_log = open_log
        self._ask_other = ask_other

    async def decide(self) -> str:
        """Return why the store is fenced, or "" if it may serve. A new reason is kept in the store.

        Raises NotAdmitted, and the store's errors. Raises StillReading after STEP_SECONDS: the next call continues.
        """
        if self._scanning is None:
            self._since = await self._next_offsets()
            await self._learn_order()
        if gone := (await self._ports.recovery.standing()).fence_reason:
            return gone
        reason = await self._evidence()
        if reason and not self._suspected:
            self._suspected = True
            reason = await self._evidence()
        self._suspected = False
        if reason:
            log.error("this store was rolled back or replaced, and is fenced: %s", reason)
            await self._ports.recovery.fence(reason, since=self._since)
        return reason

    def twin(self) -> Admission:
        """Another admission of the same store, with a scan of its own."""
        return Admission(self._ports, self._open_log, self._ask_other, self._read, self._auth)

    async def recheck(self) -> str:
        """Repeat the check of a store that admission has fenced, and reopen it if the evidence is gone: it may have
        come from a wrong address or from another release. The check uses the store's state at the fence, not its
        current one. Returns why the store stays fenced, or "".

        Raises NotAdmitted if the other store or the log does not answer, StillReading, StillHidden, FencedAnew if a
        recovery has begun meanwhile, and the store's errors.
        """
        standing = await self._ports.recovery.standing()
        if not standing.fence_reason:
            return ""
        if standing.fenced_at is None:
            return f"it was not fenced by a look at its start: {standing.fence_reason}; baton recover brings it back"
        try:
            reason = (
                by_place(standing)
                or await self._lost_rows()
                or await self._by_other(Identity(standing.now.database, standing.fenced_at.changes))
                or await self._by_log(standing.fenced_at.next_offsets)
            )
        except (grpc.aio.AioRpcError, EventLogError, TimeoutError, _NotAsked) as error:
            raise NotAdmitted(f"both the other store and the log must answer: {_shown(error)}") from error
        if not reason:
            log.warning("the store may serve again, the evidence against it is gone: %s", standing.fence_reason)
            await self._ports.recovery.reopen(seen=standing)
        return reason

    async def _lost_rows(self) -> str:
        """Check all buckets. A fenced store loses no rows, so the count may take several calls."""
        reason = await self.rows.slice()
        if not (reason or self.rows.is_complete):
            raise StillReading(str(self.rows))
        return reason

    async def _learn_order(self) -> None:
        """Record the other store's order of a recovery, if it is higher: this database may be a restored one."""
        if self._ask_other is None:
            return
        try:
            answer = await self._ask_other()
            if answer.HasField("order"):
                await self._ports.recovery.take_order(order_from_pb(answer.order))
        except (grpc.aio.AioRpcError, LateOrder, ForeignControl):
            return

    async def _evidence(self) -> str:
        """Why the store must be fenced, or ""."""
        return by_place(await self._ports.recovery.standing()) or await self.rows.at_start() or await self._by_others()

    async def _by_others(self) -> str:
        troubles: list[str] = []
        found: list[str] = []
        for ask in (self._by_other, self._by_log):
            try:
                found.append(await ask())
            except (grpc.aio.AioRpcError, EventLogError, TimeoutError, _NotAsked) as error:
                troubles.append(_shown(error))
        if not found:
            raise NotAdmitted(f"it is not known whether this store may serve: {'; '.join(troubles)}")
        return next(filter(None, found), "")

    async def _by_other(self, fenced: Identity | None = None) -> str:
        """`fenced`: this store's identity at the fence; None: the current one."""
        if self._ask_other is None:
            raise _NotAsked("no address of the other store is set (other)")
        answer = await self._ask_other()
        if answer.store == STORE_NUMBERS[self._ports.store]:
            raise _NotAsked("the address of the other store (other) is this store's own")
        theirs = [bucket_from_pb(bucket_owner) for bucket_owner in answer.bucket_owners]
        known = Identity(answer.other.database, answer.other.changes) if answer.HasField("other") else None
        # Read after the answer: another process of this store may have made changes that the other store has recorded.
        now = fenced or (await self._ports.recovery.standing()).now
        mine = await self._ports.transfers.bucket_owners()
        return by_identity(now, known) or by_buckets(mine, theirs, self._ports.store)

    async def _by_log(self, fenced: Mapping[int, int] | None = None) -> str:
        """`fenced`: the feed's position at the fence; None: the current one."""
        for _ in range(_LOG_READS):
            try:
                return await self._read_log(fenced)
            except OffsetGone as error:
                # Events expired during the read. That is evidence only if this store has not read them since.
                trouble = error
        raise trouble

    async def _read_log(self, fenced: Mapping[int, int] | None) -> str:
        """Raises OffsetGone, StillReading."""
        await self._auth.learn()
        if self._scanning is not None:
            async with asyncio.timeout(ASK_SECONDS):
                event_log = await self._open_log()
            try:
                await check_log(event_log, self._scanning.marks)
            except LogReplaced:
                # Findings in the former log are no evidence, so the next scan starts over.
                self._scanning = None
                raise
            return await self._scan(event_log, self._scanning)
        before = await self._next_offsets()
        async with asyncio.timeout(ASK_SECONDS):
            event_log = await self._open_log()
            ends = await event_log.ends()
        # Another process may read on meanwhile. So the log's end is compared with the position before the question, and
        # its begin with the position after the answer.
        after = await self._next_offsets() if fenced is None else fenced
        positions = {part: after.get(part, 0) for part in ends}
        for part, (oldest, end) in ends.items():
            if positions[part] < oldest:
                return (
                    f"the log begins at {oldest} in partition {part}, after {positions[part]}, which this store would"
                    " have to read next"
                )
            if before.get(part, 0) > end:
                raise _NotAsked(f"the log ends at {end} in partition {part}: it was replaced")
        # Raises LogReplaced: such a log proves nothing.
        marks = marks_of(await self._ports.feed.state())
        await check_log(event_log, marks)
        return await self._scan(event_log, _Scan(positions, {part: end for part, (_, end) in ends.items()}, marks))

    async def _next_offsets(self) -> Mapping[int, int]:
        return (await self._ports.feed.state()).next_offsets

    async def _scan(self, event_log: EventLog, scan: _Scan) -> str:
        """Scan from this store's position to the log's end at the start of the scan."""
        self._scanning = None
        seen, positions = scan.seen, {part: at for part, at in scan.positions.items() if at < scan.ends[part]}
        if positions:
            async with event_log.reader(positions) as reader:
                reason = await self._read_on(event_log, reader, scan)
            await check_log(event_log, scan.marks)
            if reason:
                return reason
        return await self._forgotten(seen) or by_terms(await self._ports.transfers.bucket_owners(), seen.terms)

    async def _read_on(self, event_log: EventLog, reader: LogReader, scan: _Scan) -> str:
        """Raises StillReading after the time limit; the next call continues."""
        clock = asyncio.get_running_loop().time
        began = heard = clock()
        last: dict[int, Stored] = {}
        while scan.left:
            found = await reader.poll(_POLL_EVENTS, _POLL_SECONDS)
            if found:
                heard = clock()
            elif clock() - heard >= SILENT_SECONDS:
                raise _NotAsked(f"the log has given nothing for {SILENT_SECONDS:g} s, before its end")
            for stored in found:
                last[stored.partition] = stored
                scan.positions[stored.partition] = stored.offset + 1
                if not self._auth.why_refused(stored) and self._note(scan.seen, stored.event):
                    # A poll may return many bulk releases, of a thousand records each.
                    await asyncio.sleep(0)
                    if scan.seen.keys >= _MOST_KEYS and (reason := await self._forgotten(scan.seen)):
                        return reason
            if scan.seen.keys >= _READ_KEYS and (reason := await self._forgotten(scan.seen)):
                return reason
            if scan.left and found and clock() - began >= STEP_SECONDS:
                self._scanning = scan
                scan.marks |= {part: Mark(one.offset + 1, mark_of(event_log.id, one)) for part, one in last.items()}
                read = scan.total - scan.left
                trouble = StillReading(f"the log is read before the store serves: {read} of {scan.total} events")
                log.info("%s", trouble.message)
                raise trouble
        return ""

    def _note(self, seen: _Seen, event: Event) -> bool:
        """Add the evidence of the event. Return whether it is a bulk release."""
        me = self._ports.store
        if not event.key:
            terms = read_terms(event)
            for one in terms.buckets if terms is not None else ():
                seen.announced[one.bucket] = max(one.term, seen.announced.get(one.bucket, 0))
                if terms is not None and STORES.get(terms.store) is me.other:
                    seen.terms[one.bucket] = max(one.term, seen.terms.get(one.bucket, 0))
            return False
        try:
            bulk = read_bulk(event.key, event.value)
            origin, versions = self._versions(event) if bulk is None else _released(bulk)
        except UnreadableRecord:
            return False
        made = seen.mine if origin is me else seen.theirs
        for key, version in versions:
            # By term: a forged higher term must not hide a change that counts.
            terms_of_key = made.setdefault(key, {})
            terms_of_key[version.term] = max(version, terms_of_key.get(version.term, version))
        return bulk is not None

    def _versions(self, event: Event) -> _Shown:
        """Raises UnreadableRecord."""
        record = self._read(event)
        return record.origin, [(event.key, record.row.version)]

    async def _forgotten(self, seen: _Seen) -> str:
        """A change that this store made and lacks, or one that the other store made to a record that this store claims
        to own: then it has released the record since, and lacks the release."""
        keys = sorted(seen.mine.keys() | seen.theirs.keys())
        for start in range(0, len(keys), _READ_KEYS):
            for found in await self._ports.records.read_many(keys[start : start + _READ_KEYS]):
                made_by = [(made, "this") for made in seen.mine.get(found.key, {}).values()]
                if found.owner is self._ports.store:
                    made_by += [(made, "the other") for made in seen.theirs.get(found.key, {}).values()]
                for made, by in made_by:
                    # A change of an older term than the bucket's no longer counts. A change of a higher term counts
                    # only if a terms event confirms the term: other programs may write to the log.
                    announced, term = seen.announced.get(found.bucket_owner.bucket, 0), found.bucket_owner.term
                    known = announced if is_near(announced, term) else term
                    if made > found.version and found.bucket_owner.term <= made.term <= known:
                        return (
                            f"the log has version {made.term}-{made.revision} of {found.key!r}, which {by} store made,"
                            f" and the store has {found.version.term}-{found.version.revision}"
                        )
        seen.mine.clear()
        seen.theirs.clear()
        return ""


class _NotAsked(BatonError):
    """The source cannot be asked."""


def _released(bulk: BulkRelease) -> _Shown:
    return bulk.origin, [(one.key, one.version) for one in bulk.entries]


def _shown(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"the other store: {error.code().name}"
    return str(error) or type(error).__name__


def marks_of(state: FeedState) -> dict[int, Mark]:
    """Marks by partition, for partitions of which an event was read."""
    return {part: Mark(after, state.marks.get(part, "")) for part, after in state.next_offsets.items() if after}
