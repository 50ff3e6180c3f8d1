"""One store of a model, decided by the product's rules.

A `Disk` is everything that a store keeps of one record and its bucket. `Procedures` are the transactions of a store:
each takes a disk and returns the next one. Every decision in them is made by a function of `libs.ownership`; they are
listed in `Rules`. A wrong variant replaces one of them, and everything else stays the product's.

The payload of the record is its history: each write appends its request and its version. So a row shows which writes it
contains, and a rule that loses one cannot hide it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from libs.ownership import model, rules, terms
from libs.ownership.errors import NotOwner, RequestIdReused
from libs.ownership.limits import MAX_ANSWER_BYTES
from libs.ownership.model import (
    NEVER,
    Answered,
    BucketOwner,
    BulkEntry,
    Call,
    Changed,
    Found,
    Head,
    Outcome,
    Record,
    Row,
    Served,
    Store,
    Version,
    bucket_of,
)
from libs.store.window import made_by, newest

A, B = Store.A, Store.B
KEY = "record"
BUCKET = bucket_of(KEY)
PRINCIPALS = {A: model.ANONYMOUS, B: "issuer:client"}
"""Principal of the client's requests, by store."""
NO_REQUESTS: frozenset[Served] = frozenset()


class Request(NamedTuple):
    """A client's request, under one request id."""

    name: str
    needs: str = "nothing"
    """The record must be "live" (then the request deletes it), "not live", or "nothing"."""
    keeps_answer: bool = True
    """False: the answer is too large to be kept with the served request."""


class Effect(NamedTuple):
    """One write in the history of a record."""

    request: str
    version: Version


class Refused(Exception):
    """The contract refuses the request: the record is live and must not be, or the other way round."""


def effects_of(row: Row | None) -> frozenset[Effect]:
    """The writes that a row contains."""
    return frozenset(_effects(row.payload)) if row is not None else frozenset()


@cache
def _effects(payload: bytes) -> tuple[Effect, ...]:
    found = []
    for entry in payload.decode().split():
        request, _, version = entry.partition(":")
        found.append(Effect(request, Version(*map(int, version.split(".")))))
    return tuple(found)


@dataclass(frozen=True, eq=False, slots=True)
class Message:
    """A record on its way. `make_message` makes it: equal records give the same object, which is fast to compare."""

    record: Record
    row: Row
    version: Version
    effects: frozenset[Effect]
    entry: BulkEntry | None
    """Content of a bulk release. The record is for the properties only."""


@cache
def make_message(row: Row, served: tuple[Served, ...], entry: BulkEntry | None = None) -> Message:
    return Message(Record(row, served, made_by(row), 0.0), row, row.version, effects_of(row), entry)


@dataclass(frozen=True, eq=False, slots=True)
class Disk:
    """Everything that a store keeps. `make_disk` makes it: equal contents give the same object."""

    me: Store
    bucket: BucketOwner
    row: Row | None
    served: frozenset[Served]
    outbox: frozenset[Message]
    journal: frozenset[Row]
    version: Version
    effects: frozenset[Effect]

    def but(
        self,
        *,
        bucket: BucketOwner | None = None,
        row: Row | None = None,
        served: frozenset[Served] | None = None,
        outbox: frozenset[Message] | None = None,
        journal: frozenset[Row] | None = None,
    ) -> Disk:
        """The same disk with other contents. A row can be replaced, not removed."""
        return make_disk(
            self.me,
            bucket or self.bucket,
            row or self.row,
            self.served if served is None else served,
            self.outbox if outbox is None else outbox,
            self.journal if journal is None else journal,
        )


@cache
def make_disk(
    me: Store,
    bucket: BucketOwner,
    row: Row | None = None,
    served: frozenset[Served] = NO_REQUESTS,
    outbox: frozenset[Message] = frozenset(),
    journal: frozenset[Row] = frozenset(),
) -> Disk:
    version = row.version if row is not None else NEVER
    return Disk(me, bucket, row, served, outbox, journal, version, effects_of(row))


FIRST = {A: make_disk(A, BucketOwner(BUCKET, 0, 1, A)), B: make_disk(B, BucketOwner(BUCKET, 0, 0, A))}
"""Both stores when the migration begins: A owns the bucket, and no record exists."""


class Written(NamedTuple):
    """A change that a store has committed, and its event."""

    disk: Disk
    event: Message


class Arrived(NamedTuple):
    """A record that a store has applied, or not."""

    disk: Disk
    fate: terms.Fate


def served_by_release(row: Row, served: Iterable[Served]) -> tuple[Served, ...]:
    """The requests that travel with a record: those whose effects are in the row."""
    return newest(one for one in served if terms.contains(row, one.version))


def released_bucket(here: BucketOwner, me: Store) -> BucketOwner | None:
    return replace(here, version=here.version + 1, owner=me.other) if here.owner is me else None


def taken_bucket(offered: BucketOwner, here: BucketOwner) -> BucketOwner:
    return max(offered, here, key=lambda one: (one.term, one.version))


@dataclass(frozen=True)
class Rules:
    """The rules that a store of the model follows: the product's, unless a wrong variant replaces one."""

    visible: Callable[[Row | None, BucketOwner], Row | None] = model.visible
    may_change: Callable[[Found, Store], bool] = rules.may_change
    read: Callable[[Found, Store], Row | None] = rules.read_as_owner
    write: Callable[[Found, Store, Call, rules.Change], Changed | Answered] = rules.decide_write
    release: Callable[[Found, Store], rules.Release] = lambda found, me: rules.decide_release(
        found, me, me.other, create=True
    )
    travels: Callable[[Row, Iterable[Served]], tuple[Served, ...]] = served_by_release
    travels_again: Callable[[Row, Iterable[Served]], tuple[Served, ...]] = served_by_release
    """Like `travels`, for a release that is answered again."""
    entry: Callable[[Head, Head, Iterable[Served]], BulkEntry] = rules.bulk_entry
    take: Callable[[BulkEntry, Head | None, BucketOwner, Store, Collection[bytes]], rules.Take] = rules.decide_take
    apply: Callable[[Record, Row | None, BucketOwner, Store], terms.Verdict] = terms.decide_apply
    stays_known: bool = False
    """Whether the served requests of a row stay known when the row goes to the journal."""
    release_bucket: Callable[[BucketOwner, Store], BucketOwner | None] = released_bucket
    adopts_bucket: Callable[[BucketOwner, BucketOwner, Store], bool] = terms.adopted_bucket
    decline_bucket: Callable[[BucketOwner, BucketOwner, Store], BucketOwner | None] = terms.declined_bucket
    next_term: Callable[[int, Store], int] = terms.next_term
    seize_bucket: Callable[[BucketOwner, Store, int], BucketOwner] = terms.seized_bucket
    seize_row: Callable[[Row, Store, int], Row] = terms.seized_row
    take_term: Callable[[BucketOwner, int], BucketOwner] = terms.take_term
    take_bucket: Callable[[BucketOwner, BucketOwner], BucketOwner] = taken_bucket
    """Rule of a fenced store, from the offered and the stored bucket owner."""


class Procedures:
    """The transactions of a store. Each is computed once for the same arguments."""

    def __init__(self, by: Rules) -> None:
        self.by = by
        self.found = cache(self._found)
        self.accepts = cache(self._accepts)
        self.write = cache(self._write)
        self.release = cache(self._release)
        self.release_in_bulk = cache(self._release_in_bulk)
        self.apply = cache(self._apply)
        self.seize = cache(self._seize)
        self.next_revision = cache(self._next_revision)
        self.release_bucket = cache(self._release_bucket)
        self.adopt_bucket = cache(self._adopt_bucket)
        self.decline_bucket = cache(self._decline_bucket)
        self.take_term = cache(self._take_term)
        self.take_bucket = cache(self._take_bucket)
        self.settle = cache(self._settle)
        self.publish = cache(self._publish)
        self.wrong_answer = cache(self._wrong_answer)

    def _found(self, disk: Disk, request: str = "") -> Found:
        served = newest(one for one in disk.served if one.request_id == request)
        return Found(KEY, self.by.visible(disk.row, disk.bucket), disk.bucket, served)

    def _accepts(self, disk: Disk) -> bool:
        """Whether the store would change the record."""
        return self.by.may_change(self.found(disk), disk.me)

    def _next_revision(self, disk: Disk) -> int:
        return rules.next_version(self.found(disk)).revision

    def read(self, disk: Disk) -> Version | None:
        """The version that a strict read returns. None: the store is not the owner."""
        try:
            row = self.by.read(self.found(disk), disk.me)
        except NotOwner:
            return None
        return row.version if row is not None else NEVER

    def _write(
        self, disk: Disk, request: Request, request_hash: bytes = b"1"
    ) -> Written | Answered | NotOwner | RequestIdReused | Refused:
        # A change of identity is under way: A has not begun it, B has completed it.
        call = Call(KEY, PRINCIPALS[disk.me], request.name, request_hash)
        found = self.found(disk, request.name)
        try:
            decided = self.by.write(found, disk.me, call, _change(request))
        except (NotOwner, RequestIdReused, Refused) as refused:
            return refused
        if isinstance(decided, Answered):
            return decided
        event = make_message(decided.row, (decided.served,))
        entries = rules.replaced(found, call, decided.served)
        others = disk.served - {before for _, before in entries if before is not None}
        after = disk.but(row=decided.row, served=others | {served for served, _ in entries})
        return Written(after, event)

    def _release(self, disk: Disk) -> Written | None:
        """A release to the other store. One that was made before is answered again: the disk stays as it is."""
        found = self.found(disk)
        release = self.by.release(found, disk.me)
        if release.row is None:
            return None
        if release.outcome is Outcome.RELEASED:
            return Written(disk, make_message(release.row, self.by.travels_again(release.row, disk.served)))
        event = make_message(release.row, self.by.travels(found.row or release.row, disk.served))
        return Written(disk.but(row=release.row), event)

    def _release_in_bulk(self, disk: Disk) -> Written | None:
        """A release of a record that exists. Its event has no payload, and the release has no answer."""
        before = self.found(disk).row
        if before is None or not self.accepts(disk):
            return None
        after = self.by.release(self.found(disk), disk.me).row
        if after is None:
            return None
        served = self.by.travels(before, disk.served)
        event = make_message(after, served, self.by.entry(before.head, after.head, served))
        return Written(disk.but(row=after), event)

    def _take(self, disk: Disk, entry: BulkEntry) -> Arrived:
        here = disk.row
        known = {one.name for one in disk.served}
        taken = self.by.take(entry, here.head if here is not None else None, disk.bucket, disk.me, known)
        if taken is not rules.Take.TAKE or here is None:
            return Arrived(disk, terms.Fate.OLD)
        return Arrived(disk.but(row=replace(here, version=entry.version, owner=disk.me)), terms.Fate.NEWER)

    def _apply(self, disk: Disk, arriving: Message) -> Arrived:
        if arriving.entry is not None:
            return self._take(disk, arriving.entry)
        record = arriving.record
        verdict = self.by.apply(record, disk.row, disk.bucket, disk.me)
        served, journal = disk.served, disk.journal
        if verdict.journal is not None:
            journal = journal | {verdict.journal}
            served = served if self.by.stays_known else NO_REQUESTS
        if verdict.fate is terms.Fate.CONFLICT:
            journal = journal | {record.row}
        if verdict.learn:
            served = learned(served, record.served)
        row = record.row if verdict.fate is terms.Fate.NEWER else None
        return Arrived(disk.but(bucket=verdict.bucket_owner, row=row, served=served, journal=journal), verdict.fate)

    def _release_bucket(self, disk: Disk) -> Disk | None:
        after = self.by.release_bucket(disk.bucket, disk.me)
        return disk.but(bucket=after) if after is not None else None

    def _adopt_bucket(self, disk: Disk, offered: BucketOwner) -> Disk | None:
        """None: the store refuses. It does so too while it has a row of an older term."""
        hidden = disk.row is not None and self.by.visible(disk.row, disk.bucket) is None
        if hidden or not self.by.adopts_bucket(offered, disk.bucket, disk.me):
            return None
        return disk.but(bucket=offered)

    def _decline_bucket(self, disk: Disk, offered: BucketOwner) -> Disk | None:
        after = self.by.decline_bucket(offered, disk.bucket, disk.me)
        return disk.but(bucket=after) if after is not None else None

    def _seize(self, disk: Disk, term: int) -> Written | Disk:
        bucket = self.by.seize_bucket(disk.bucket, disk.me, term)
        before = self.by.visible(disk.row, disk.bucket)
        row = self.by.seize_row(before, disk.me, term) if before else None
        if row is None or row == before:
            return disk.but(bucket=bucket)
        event = make_message(row, self.by.travels(row, disk.served))
        return Written(disk.but(bucket=bucket, row=row), event)

    def _take_term(self, disk: Disk, term: int) -> Disk:
        return disk.but(bucket=self.by.take_term(disk.bucket, term))

    def _take_bucket(self, disk: Disk, offered: BucketOwner) -> Disk:
        return disk.but(bucket=self.by.take_bucket(offered, disk.bucket))

    def _publish(self, disk: Disk) -> Disk:
        return disk.but(outbox=frozenset())

    def _settle(self, disk: Disk) -> Disk:
        """A row of an older term goes to the journal: the seizer has no such record."""
        if disk.row is None or self.by.visible(disk.row, disk.bucket) is not None:
            return disk
        served = disk.served if self.by.stays_known else NO_REQUESTS
        return make_disk(disk.me, disk.bucket, None, served, disk.outbox, disk.journal | {disk.row})

    def _wrong_answer(self, disk: Disk, request: Request) -> str | None:
        """The error in the store's answer to a request that may have been served before."""
        if isinstance(self.write(disk, request, b"2"), Answered):
            return "a request is answered with the answer of another one"
        answer = self.write(disk, request)
        has_effect = any(effect.request == request.name for effect in disk.effects)
        if has_effect and isinstance(answer, Written):
            return "two effects of one request"
        if has_effect and isinstance(answer, Refused):
            return "a refused request has an effect"
        if not isinstance(answer, Answered):
            return None
        effect = Effect(request.name, answer.version)
        if effect not in disk.effects:
            return "a request is answered as served without its effect"
        if effect not in _effects(answer.answer):
            return "an answer does not show the effect of its request"
        if not request.keeps_answer and not self.accepts(disk):
            return "a store that is not the owner answers from its row"
        return None


def _change(request: Request) -> rules.Change:
    def change(row: Row | None, version: Version) -> rules.Resource:
        is_live = row is not None and row.live
        if request.needs != "nothing" and is_live != (request.needs == "live"):
            raise Refused
        before = row.payload if row is not None else b""
        payload = before + f"{request.name}:{version.term}.{version.revision} ".encode()
        answer = payload if request.keeps_answer else payload.ljust(MAX_ANSWER_BYTES + 1)
        return rules.Resource(payload, live=request.needs != "live", schema_version=1, answer=answer)

    return change


def learned(known: frozenset[Served], served: Iterable[Served]) -> frozenset[Served]:
    return frozenset(one for _, one in rules.newest_of_each((KEY, one) for one in (*known, *served)))


@cache
def flaw(row: Row) -> str | None:
    """The flaw of a version, whichever store made it."""
    effects = _effects(row.payload)
    if len({effect.request for effect in effects}) < len(effects):
        return "two effects of one request"
    if row.write_version != max((effect.version for effect in effects), default=NEVER):
        return "a version that does not name its last write"
    if row.live != (bool(effects) and not effects[-1].request.startswith("delete")):
        return "a record that is live or deleted against its last write"
    return None
