"""Terms: how ownership survives the loss of a store. Pure; the model in `tests/model/recovery.py` checks it.

A store that was rolled back, for example restored from a backup, may believe that it owns records that it gave away.
So it is *fenced*: it serves no call until the other store has seized its share.

A seizure begins a new term for a bucket. Versions compare by term first, so every version of the new term is higher
than every version of an older one. The seizer becomes the owner of the bucket and of every row in it. Each row keeps
its version from before the seizure as a *base*; `bases` has one entry for each seizure of the row.

From then on, versions of an older term have no effect in that bucket:

* A record of a lower term is never applied. If the seizer had seen its change, the record is old. If not, it goes to
  the seizer's journal of conflicts, where a person decides. The bases are the evidence: the seizer had seen a version
  if the version is at or below the base of its own term. A term without a base counts as not seen.

  A single base, that of the latest seizure, would not suffice. A lost store may make a change that the first seizure
  misses and publish it after the second. The change is below the second base although no seizer has seen it.

  The store that is not the seizer drops such a record. It reads the same log as the seizer, but may lack the seizer's
  rows, so it cannot decide.
* A row of a lower term than its bucket is hidden. The seizer's row replaces it; if the seizer has no such row, the
  hidden row goes to the journal. A hidden row does not belong to the bucket's owner. If it did, a handoff of the bucket
  could make this store the record's owner while the seizer still owns its own row of the record.
* A store adopts any higher term it sees, from any source.

Even terms are A's and odd terms are B's, so a term identifies its seizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from libs.errors import BatonError
from libs.ownership.limits import MAX_BASES, MAX_PAYLOAD_BYTES, MAX_REVISION
from libs.ownership.model import BucketOwner, Record, Row, Store, Version

TERMS_TYPE = "baton.terms.v1"
"""Type of the event that announces a seizure in the log."""


class SeizureRefused(BatonError):
    """The bucket cannot be seized as requested. Nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "SEIZURE_REFUSED"


class RowTooLarge(SeizureRefused):
    """A row of the bucket exceeds the maximum size of an event. Its owner must shrink or delete it first."""


def seizer_of(term: int) -> Store:
    """The store that begins this term."""
    return Store.B if term % 2 else Store.A


def next_term(term: int, me: Store) -> int:
    """The lowest term of store `me` after this one."""
    return term + 1 if seizer_of(term + 1) is me else term + 2


def seized_bucket(bucket_owner: BucketOwner, me: Store, term: int) -> BucketOwner:
    """Return the bucket owner after the seizure. Raises SeizureRefused unless `term` is a new term of store `me`."""
    if seizer_of(term) is not me or term <= bucket_owner.term:
        raise SeizureRefused(
            f"bucket {bucket_owner.bucket}: term {term} is not valid: store {me} may begin term"
            f" {next_term(bucket_owner.term, me)} or a later one of its own, after {bucket_owner.term}"
        )
    return replace(bucket_owner, term=term, version=bucket_owner.version + 1, owner=me)


def seized_row(row: Row, me: Store, term: int) -> Row:
    """Return the row after the seizure. It keeps its write version, and so its etag.

    Raises RowTooLarge if the log would not accept the row's event. Only the old program can have written such a row.
    """
    if len(row.payload) > MAX_PAYLOAD_BYTES:
        raise RowTooLarge(
            f"{row.key} has {len(row.payload)} bytes, an event at most {MAX_PAYLOAD_BYTES}: its owner, store"
            f" {row.owner}, must make it smaller or delete it first"
        )
    bases = (*row.bases, row.version)[-MAX_BASES:]
    return replace(row, version=seized_version(row.version, term), owner=me, bases=bases)


def seized_version(before: Version, term: int) -> Version:
    """Add 1 to the revision, or restart it at 1 if it is the last one: versions compare by term first."""
    return Version(term, before.revision + 1 if before.revision < MAX_REVISION else 1)


class Fate(Enum):
    """The decision on a record that arrives from the other store."""

    NEWER = "newer"
    """The record replaces the row."""
    OLD = "old"
    """The record is ignored."""
    CONFLICT = "conflict"
    """The record goes to the journal."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The effects of an apply."""

    fate: Fate
    bucket_owner: BucketOwner
    """The bucket's owner, with the record's term if that is higher."""
    journal: Row | None = None
    """The replaced row, if the seizer had not seen its version."""
    learn: bool = True
    """Store the record's served requests. False if their effects may be missing from the row."""


def take_term(bucket_owner: BucketOwner, term: int) -> BucketOwner:
    """Adopt a higher term. The bucket's version becomes 0, below every version that the seizer gives it."""
    return BucketOwner(bucket_owner.bucket, term, 0, seizer_of(term)) if term > bucket_owner.term else bucket_owner


def decide_apply(record: Record, here: Row | None, bucket_owner: BucketOwner, me: Store) -> Verdict:
    """Decide on a record that arrives. `here`: the stored row, hidden or not."""
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
    """Whether no seizer of the record had seen this version of an older term.

    Without a base of its term, which newer bases may have displaced, the version counts as missed: a person decides.
    """
    return not any(version.term == base.term and version <= base for base in bases)


def contained(row: Row) -> tuple[Version, ...]:
    """The newest version of each term whose changes are in the row, oldest term first."""
    return (*row.bases, row.version)


def contains(row: Row, version: Version) -> bool:
    """Whether the row includes the change that made this version: the version is of the row's own term and not above
    it, or a seizer of the record had seen it."""
    return not was_missed(version, contained(row))


def adopted_bucket(offered: BucketOwner, here: BucketOwner, me: Store) -> bool:
    """Whether terms and versions allow store `me` to adopt the bucket in exactly this version."""
    return offered.owner is me and offered.term == here.term and offered.version > here.version


def declined_bucket(offered: BucketOwner, here: BucketOwner, me: Store) -> BucketOwner | None:
    """Return the bucket owner that gives the bucket back to its releaser, or None if it is too late to decline.

    Only the target of a release may undo it. The target writes the next version: this store then refuses a late adopt
    of the released version, and the releaser adopts exactly the version written. If the releaser took the bucket back
    by itself, the target could adopt it at the same time, and the bucket would have two owners.
    """
    if not adopted_bucket(offered, here, me):
        return None
    return replace(offered, version=offered.version + 1, owner=me.other)


def is_share(bucket_owner: BucketOwner, me: Store, rows: int, owned: int) -> bool:
    """Whether store `me` lacks ownership of the bucket or of one of its rows, so that there is a share to seize."""
    return bucket_owner.owner is not me or owned < rows
