"""Evidence that a store was rolled back or seized, as pure functions: each returns the reason, or ""."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError

from libs.eventlog.port import Event
from libs.ownership.limits import MAX_REVISION, MAX_TERM_STEP
from libs.ownership.model import BUCKETS, BucketOwner, Store
from libs.ownership.terms import TERMS_TYPE, seizer_of
from libs.ownership.wire import STORES
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.store.recovery import Identity, Standing


def by_place(standing: Standing) -> str:
    if standing.opened_at == standing.now.database:
        return ""
    return f"it was restored or moved: it stood at {standing.opened_at}, this is {standing.now.database}"


def read_terms(event: Event) -> pb.Terms | None:
    """The terms event of a seizure; None for any other event, and for one that no store can have made."""
    if ("ce_type", TERMS_TYPE.encode()) not in event.headers:
        return None
    try:
        terms = pb.Terms.FromString(event.value)
    except DecodeError:
        return None
    seizer = STORES.get(terms.store)
    fits = all(
        0 <= one.bucket < BUCKETS and 0 < one.term <= MAX_REVISION and seizer_of(one.term) is seizer
        for one in terms.buckets
    )
    return terms if fits else None


def by_identity(now: Identity, known: Identity | None) -> str:
    """`known`: the identity of this store that the other store has recorded."""
    if known is None or (known.database == now.database and known.changes <= now.changes):
        return ""
    if known.database != now.database:
        return f"the other store knows another database of this one: {known.database}, and this is {now.database}"
    return f"the other store knows a later state of it: {known.changes} changes, and this one has {now.changes}"


def by_buckets(mine: Sequence[BucketOwner], theirs: Sequence[BucketOwner], me: Store) -> str:
    """A bucket that I own cannot have moved on elsewhere, and a higher term at the other store is a seizure."""
    for here, there in zip(mine, theirs, strict=False):
        if there.term > here.term:
            return _seized(here.bucket, there.term)
        if there.term == here.term and here.owner is me and there.version > here.version:
            return f"the other store knows a later state of bucket {here.bucket}: version {there.version}"
    return ""


def by_terms(mine: Sequence[BucketOwner], terms: Mapping[int, int]) -> str:
    """`terms`: terms of seizures in the log."""
    for here in mine:
        if is_near(terms.get(here.bucket, 0), here.term):
            return _seized(here.bucket, terms[here.bucket])
    return ""


def is_near(term: int, known: int) -> bool:
    """Whether a term is higher than the known one, and near enough for seizures to have led there."""
    return known < term <= known + MAX_TERM_STEP


def _seized(bucket: int, term: int) -> str:
    return f"the other store has seized its share: bucket {bucket} is in term {term}"
