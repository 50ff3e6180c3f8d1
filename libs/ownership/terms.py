"""Terms: what happens to records when a store is lost. Pure; checked by the model in `tests/model/recovery.py`.

A store that went back in time may believe that it owns what it gave away. It is *gone*: it serves nothing until the
other store has seized its share. A seizure begins a new term for a bucket, which is higher than every revision of an
older one: the seizer becomes the owner of the bucket and of every row in it, which keeps the version that
it had before: its `bases` are one for each seizure that it went through.

From then on nothing of an older term counts any more in that bucket:

* A record of a lower term is never applied. If the seizer had not seen it, it goes to the seizer's journal of
  conflicts, for a person; else it is old. The bases tell: of its term the seizer had seen what is not above the base
  of that term, and of a term without a base nothing. One base alone would not do: what a store made before the first
  seizure, and shows after the second, may be below the second's base without ever having been seen.
  The other store leaves that to the seizer, whose rows it may not have yet: both read the same log.
* A row of a lower term is hidden until the seizer's row replaces it, or until it turns out that the seizer has none;
  then it goes to the journal. Lower rows do not belong to the bucket's owner: that changes with the next handoff, and
  two stores would own the record.
* Whoever meets a higher term takes it, whatever brings it.

Even terms are A's, odd ones B's: so a term alone says who has seized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from libs.errors import BatonError
from libs.ownership.limits import MAX_BASES, MAX_PAYLOAD_BYTES, MAX_REVISION
from libs.ownership.model import BucketOwner, Record, Row, Store, Version

TERMS_TYPE = "baton.terms.v1"
"""Of the event that tells the log of a seizure."""


class SeizureRefused(BatonError):
    """A bucket cannot be seized as it is asked for; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "SEIZURE_REFUSED"


class RowTooLarge(SeizureRefused):
    """A row of the bucket is larger than an event may be: its owner must make it smaller or delete it first."""


def seizer_of(term: int) -> Store:
    """Who begins this term."""
    return Store.B if term % 2 else Store.A


def next_term(term: int, me: Store) -> int:
    """The lowest of my terms after this one."""
    return term + 1 if seizer_of(term + 1) is me else term + 2


def seized_bucket(bucket_owner: BucketOwner, me: Store, term: int) -> BucketOwner:
    """Raises SeizureRefused unless the term is mine and a new one."""
    if seizer_of(term) is not me or term <= bucket_owner.term:
        raise SeizureRefused(
            f"bucket {bucket_owner.bucket}: term {term} is not valid: store {me} may begin term"
            f" {next_term(bucket_owner.term, me)} or a later one of its own, after {bucket_owner.term}"
        )
    return replace(bucket_owner, term=term, version=bucket_owner.version + 1, owner=me)


def seized_row(row: Row, me: Store, term: int) -> Row:
    """The row after a seizure. The last write, and so the etag, stays.

    Raises RowTooLarge: only an old program can have left such a row, and the log does not take its event.
    """
    if len(row.payload) > MAX_PAYLOAD_BYTES:
        raise RowTooLarge(
            f"{row.key} has {len(row.payload)} bytes, an event at most {MAX_PAYLOAD_BYTES}: its owner, store"
            f" {row.owner}, must make it smaller or delete it first"
        )
    bases = (*row.bases, row.version)[-MAX_BASES:]
    return replace(row, version=seized_version(row.version, term), owner=me, bases=bases)


def seized_version(before: Version, term: int) -> Version:
    """A revision that leaves no room for a next one restarts: versions compare by their term first."""
    return Version(term, before.revision + 1 if before.revision < MAX_REVISION else 1)


class Fate(Enum):
    """What becomes of a record that arrives."""

    NEWER = "newer"
    OLD = "old"
    CONFLICT = "conflict"
    """It goes to the journal."""


@dataclass(frozen=True, slots=True)
class Verdict:
    fate: Fate
    bucket_owner: BucketOwner
    """The bucket's, which has taken the record's term if that was higher."""
    journal: Row | None = None
    """The row here, when the record replaces it and its seizer had not seen it."""
    learn: bool = True
    """Whether the requests that it served are known from now on: not when their effects may not be in the row."""


def take_term(bucket_owner: BucketOwner, term: int) -> BucketOwner:
    """Version 0 of a higher term: whatever the seizer says of the bucket is higher."""
    return BucketOwner(bucket_owner.bucket, term, 0, seizer_of(term)) if term > bucket_owner.term else bucket_owner


def decide_apply(record: Record, here: Row | None, bucket_owner: BucketOwner, me: Store) -> Verdict:
    """What apply does. `here`: the row as it is kept, hidden or not."""
    row = record.row
    bucket_owner = take_term(bucket_owner, row.version.term)
    if row.version.term < bucket_owner.term:
        if seizer_of(bucket_owner.term) is not me:
            return Verdict(Fate.OLD, bucket_owner, learn=False)
        missed = here is None or was_missed(row.version, here.bases)
        return Verdict(Fate.CONFLICT if missed else Fate.OLD, bucket_owner, learn=not missed)
    if here is not None and here.version.term < bucket_owner.term:
        return Verdict(Fate.NEWER, bucket_owner, here if was_missed(here.version, row.bases) else None)
    newer = here is None or row.version > here.version
    return Verdict(Fate.NEWER if newer else Fate.OLD, bucket_owner)


def was_missed(version: Version, bases: Sequence[Version]) -> bool:
    """Whether nobody who seized the record had seen this version of an older term. Without the base of its term, which
    may also have made room for newer ones, a person looks."""
    return not any(version.term == base.term and version <= base for base in bases)


def contained(row: Row) -> tuple[Version, ...]:
    """The newest version of each term whose changes are in the row, oldest term first."""
    return (*row.bases, row.version)


def contains(row: Row, version: Version) -> bool:
    """Whether the change that made this version is in the row: it is of the row's own term, or an earlier seizure of
    the record had seen it."""
    return not was_missed(version, contained(row))


def adopted_bucket(offered: BucketOwner, here: BucketOwner, me: Store) -> bool:
    """Whether a store may take the bucket over in exactly this version, as far as terms and versions tell."""
    return offered.owner is me and offered.term == here.term and offered.version > here.version


def declined_bucket(offered: BucketOwner, here: BucketOwner, me: Store) -> BucketOwner | None:
    """The bucket, given back to the store that released it to this one. None: this store may not decline it any more.

    Only the target of a release may undo it. It writes the next version, so a late adopt of the released version is
    refused here, and the releaser adopts exactly the version that was written. A releaser that took the bucket back by
    itself could do so while the target adopts it: two owners.
    """
    if not adopted_bucket(offered, here, me):
        return None
    return replace(offered, version=offered.version + 1, owner=me.other)


def is_share(bucket_owner: BucketOwner, me: Store, rows: int, owned: int) -> bool:
    """Whether another store may own something of the bucket: its bucket owner, or one of its rows."""
    return bucket_owner.owner is not me or owned < rows
