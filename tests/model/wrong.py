"""Wrong variants of the protocol: each of them tempting, each of them breaks a property.

A wrong rule takes the place of the product's one (`RULES`). Other variants are wrong steps of the world around the
stores, such as a coordinator that lists keys too early: the model that has the step looks at the variant's name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from libs.ownership import rules, terms
from libs.ownership.model import (
    Answered,
    BucketOwner,
    BulkEntry,
    Call,
    Changed,
    Found,
    Head,
    Record,
    Row,
    Served,
    Store,
    Version,
)
from libs.store.window import newest
from tests.model.store import Rules


@dataclass(frozen=True)
class Variant:
    """A rule that is wrong, the scene that shows it, and the property that it breaks."""

    scene: str
    rule: str
    breaks: str


def _write_if_absent(found: Found, me: Store, call: Call, change: rules.Change) -> Changed | Answered:
    bucket_owner = replace(found.bucket_owner, owner=me) if found.row is None else found.bucket_owner
    return rules.decide_write(replace(found, bucket_owner=bucket_owner), me, call, change)


def _write_not_looked_up(found: Found, me: Store, call: Call, change: rules.Change) -> Changed | Answered:
    return rules.decide_write(replace(found, served=()), me, call, change)


def _write_known_is_done(found: Found, me: Store, call: Call, change: rules.Change) -> Changed | Answered:
    for served in found.served:
        if served.request_hash == call.request_hash:
            return Answered(served.answer or b"", served.version)
    return rules.decide_write(found, me, call, change)


def _write_one_principal(found: Found, me: Store, call: Call, change: rules.Change) -> Changed | Answered:
    served = tuple(one for one in found.served if one.principal == call.principal)
    return rules.decide_write(replace(found, served=served), me, call, change)


def _no_requests(row: Row, served: Iterable[Served]) -> tuple[Served, ...]:
    return ()


def _all_requests(row: Row, served: Iterable[Served]) -> tuple[Served, ...]:
    return newest(served)


def _apply_anything(record: Record, here: Row | None, bucket_owner: BucketOwner, me: Store) -> terms.Verdict:
    return terms.Verdict(terms.Fate.NEWER, bucket_owner)


def _apply_without_requests(record: Record, here: Row | None, bucket_owner: BucketOwner, me: Store) -> terms.Verdict:
    verdict = terms.decide_apply(record, here, bucket_owner, me)
    return replace(verdict, learn=False)


def _apply_as_old(record: Record, here: Row | None, bucket_owner: BucketOwner, me: Store) -> terms.Verdict:
    verdict = terms.decide_apply(record, here, bucket_owner, me)
    return replace(verdict, fate=terms.Fate.OLD) if verdict.fate is terms.Fate.CONFLICT else verdict


def _apply_by_last_base(record: Record, here: Row | None, bucket_owner: BucketOwner, me: Store) -> terms.Verdict:
    """Wrong: the last base contains everything of the terms before it."""
    padded = replace(record, row=_padded(record.row))
    verdict = terms.decide_apply(padded, _padded(here) if here is not None else None, bucket_owner, me)
    return replace(verdict, journal=here) if verdict.journal is not None else verdict


def _padded(row: Row) -> Row:
    if not row.bases:
        return row
    last = row.bases[-1]
    return replace(row, bases=(*(Version(term, 1_000) for term in range(last.term)), last))


def _apply_lazily(record: Record, here: Row | None, bucket_owner: BucketOwner, me: Store) -> terms.Verdict:
    """A row of a lower term counts like any other."""
    bucket_owner = terms.take_term(bucket_owner, record.row.version.term)
    if here is None or here.version.term >= bucket_owner.term:
        return terms.decide_apply(record, here, bucket_owner, me)
    newer = record.row.version > here.version
    return terms.Verdict(terms.Fate.NEWER if newer else terms.Fate.OLD, bucket_owner)


def _lower_belongs_to_bucket(row: Row | None, bucket_owner: BucketOwner) -> Row | None:
    if row is None or row.version.term >= bucket_owner.term:
        return row
    version = Version(bucket_owner.term, row.version.revision)
    return replace(row, owner=bucket_owner.owner, version=version, bases=(*row.bases, row.version))


def _entry_without_requests(before: Head, after: Head, served: Iterable[Served]) -> BulkEntry:
    return rules.bulk_entry(before, after, ())


def _take_any_older(
    entry: BulkEntry, here: Head | None, bucket_owner: BucketOwner, me: Store, known: Collection[bytes]
) -> rules.Take:
    """Wrong: every older row of the term is the one that was released."""
    term, revision = entry.version
    if here is not None and here.version.term == term and here.version.revision + 1 < revision:
        return rules.Take.TAKE
    return rules.decide_take(entry, here, bucket_owner, me, known)


def _take_by_revision(
    entry: BulkEntry, here: Head | None, bucket_owner: BucketOwner, me: Store, known: Collection[bytes]
) -> rules.Take:
    """Wrong: all versions are of one term."""
    if here is not None and here.version.revision + 1 == entry.version.revision and here.owner is me.other:
        return rules.Take.TAKE
    return rules.decide_take(entry, here, bucket_owner, me, known)


def _row_stays(row: Row, me: Store, term: int) -> Row:
    return row


def _seize_in_same_term(bucket_owner: BucketOwner, me: Store, term: int) -> BucketOwner:
    return replace(bucket_owner, version=bucket_owner.version + 1, owner=me)


def _same_term(term: int, me: Store) -> int:
    return term


def _own_version(offered: BucketOwner, here: BucketOwner) -> BucketOwner:
    return replace(here, term=max(offered.term, here.term))


def _adopt_any_version(offered: BucketOwner, here: BucketOwner, me: Store) -> bool:
    return offered.owner is me and offered.version != here.version


RULES = {
    "absent_is_free": Rules(write=_write_if_absent),
    "requests_stay": Rules(travels=_no_requests, travels_again=_no_requests),
    "adopt_any_version": Rules(adopts_bucket=_adopt_any_version),
    "apply_anything": Rules(apply=_apply_anything),
    "released_again_bare": Rules(travels_again=_no_requests),
    "requests_are_known_at_home": Rules(apply=_apply_without_requests),
    "lazy_terms": Rules(visible=_lower_belongs_to_bucket, apply=_apply_lazily, seize_row=_row_stays),
    "own_old_bucket": Rules(take_bucket=_own_version),
    "no_term": Rules(next_term=_same_term, seize_bucket=_seize_in_same_term),
    "last_base": Rules(apply=_apply_by_last_base),
    "journaled_stays_known": Rules(write=_write_known_is_done, stays_known=True),
    "known_is_done": Rules(write=_write_known_is_done),
    "late_is_old": Rules(apply=_apply_as_old),
    "one_principal": Rules(write=_write_one_principal),
    "bulk_without_requests": Rules(entry=_entry_without_requests),
    "take_any_older": Rules(take=_take_any_older),
    "take_by_revision": Rules(take=_take_by_revision),
}
LATE_RULES = {"late_is_not_looked_up": Rules(write=_write_not_looked_up)}
"""For requests that are carried out after their caller has given up."""

OWNERSHIP = {
    "absent_is_free": Variant(
        "moving", "a store without a row accepts a create, whichever store owns the bucket", "two owners"
    ),
    "seize": Variant("moving", "a store takes a record over without the owner's release", "two owners"),
    "requests_stay": Variant("moving", "a release travels without the requests that were served", "two effects"),
    "one_principal": Variant(
        "moving", "a request is looked up under the principal of its own attempt only", "two effects"
    ),
    "drain_before_release": Variant(
        "moving", "the source's keys are listed while it still creates records", "two owners"
    ),
    "adopt_without_drain": Variant("moving", "a bucket is adopted before the source's rows are here", "two owners"),
    "adopt_any_version": Variant("moving", "an older version of a bucket is adopted again", "two owners"),
    "declined_is_drained": Variant(
        "moving", "a releaser adopts a declined bucket without a look at the other store's rows", "two owners"
    ),
    "take_back": Variant("moving", "a store takes back by itself what it has released", "two owners"),
    "apply_anything": Variant("moving", "a record that arrives replaces the row, newer or not", "without the newest"),
    "arriving_decides": Variant(
        "moving", "a write is decided by the record that it takes along, whichever row is stored", "two writers"
    ),
    "released_again_bare": Variant(
        "copying", "a release that is repeated answers the row without the requests that were served", "two effects"
    ),
    "copy_of_released_bare": Variant(
        "copying", "a released row is copied to its new owner without the requests it served", "two effects"
    ),
    "read_the_target": Variant("reading", "when both stores deny, the target's row is the answer", "stale read"),
    "bulk_without_requests": Variant(
        "bulk", "an entry of a bulk release does not name the requests that were served", "two effects"
    ),
    "take_any_older": Variant(
        "bulk", "an entry of a bulk release makes a store the owner of any older row", "without an acknowledged write"
    ),
    "untaken_is_dropped": Variant(
        "bulk", "no one looks for a record whose entry the new owner could not take", "nothing brings home"
    ),
    "late_is_not_looked_up": Variant(
        "giving up", "a request that is carried out late is not looked up among the served ones", "two effects"
    ),
    "requests_are_known_at_home": Variant(
        "giving up", "a request is recognised only by the store that has served it", "refused"
    ),
    "refusal_is_told": Variant(
        "giving up", "the client sees the other store's refusal, though the first may still do the request", "refused"
    ),
}

RECOVERY = {
    "old_backup_serves": Variant("B is restored", "a restored store is not recognised", "two owners"),
    "nobody_is_asked": Variant("B returns", "a store that starts does not ask for the terms", "two owners"),
    "lazy_terms": Variant(
        "B is restored", "rows of a lower term belong to the bucket's owner; a seizure leaves them alone", "two"
    ),
    "own_old_bucket": Variant("B returns", "a returned store keeps its own old bucket owner", "two owners"),
    "no_term": Variant("B returns", "a seizure adds one to the revision and begins no term", "two"),
    "log_not_read": Variant("B is restored", "a store seizes before it has read the log to its end", "a logged write"),
    "log_is_not_told": Variant("B returns", "a bucket is seized before the log has the term", "two owners"),
    "last_base": Variant(
        "B is restored twice", "a seizure forgets the versions that earlier ones had seen", "without a trace"
    ),
    "take_by_revision": Variant(
        "B returns, bulk", "an entry of a bulk release is taken by its revision, whatever its term", "two"
    ),
    "journaled_stays_known": Variant(
        "B returns",
        "a store answers every request it has learned, and requests of a row in the journal stay known",
        "without its effect",
    ),
    "known_is_done": Variant(
        "A is copied and emptied",
        "a request that is known as served is answered, though its effect is not in the row",
        "without its effect",
    ),
    "copied_bare": Variant(
        "A is copied and emptied", "a row is copied without the requests that it has served", "two effects"
    ),
    "late_is_old": Variant(
        "B returns", "a record of an older term than its bucket is old, whatever its version", "without a trace"
    ),
}

VARIANTS = {**OWNERSHIP, **RECOVERY}
