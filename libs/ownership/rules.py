"""The rules of the ownership protocol: which store may change a record. Pure functions.

Two stores hold the same records, and traffic moves between them at any moment, record by record. One rule keeps every
write:

    Flags are hints. Rows decide. A store accepts a write to a record only if its own row, read in the same
    transaction, names this store as the owner.

The rest follows from it:

* A record moves by a release at its owner and an apply at the other store. A release is a change like any other: it
  raises the version and makes an event. From its commit until the released version reaches the new owner, no store
  owns the record. Both the handoff and the log carry that version; the first to arrive completes the move.
* Apply is a join on versions: the higher version stays. Each version is made once, by the store that owned the record
  at the time, so two rows of one version are equal. Events may therefore arrive late, repeatedly and in any order.
* A record that does not exist has an owner too: the owner of its bucket (`BucketOwner`). Otherwise both stores could
  create the same name.
* A served request is stored with its record and travels with it, so the record's owner recognises a retry. A request
  may arrive at a store before its effect and, if the owner is lost in between, without it. So a request counts as done
  only if its effect is in the row (`done`). Otherwise the owner runs the request, and the other store answers
  NOT_OWNER.

The engine (`libs.store.engine`) reads a `Found` in a transaction, asks a function of this module for the decision, and
stores exactly that, on the condition that owner and version are still the ones it read. If the condition fails, the
engine starts again from the read.

Statements that change a row. No other statement of a store changes a record; a test compares this list with the stores'
modules. `put` and the statements that replace it repeat the condition of the decision, so a decision that ignores
ownership changes no row. The others are safe for the reasons given below; docs/protocol.md has the whole argument.
Triggers in each database are the last guard: an update must raise the row's version, and a transaction must announce
each removal.

`Transaction.put` updates a row if its owner and version are those that the decision was based on, and inserts a row if
its bucket is in the row's term. For a write or a release, this store must also own the row, or the bucket if there is
no row, and must not be fenced. `put_heads` does the same for a change that keeps the payload:

    memory_transaction  put
    sqlite_schema       insert, update, update_envelope
    postgres_sql        INSERT_ROWS, UPDATE_ROWS, UPDATE_ENVELOPES

PostgreSQL runs a write, a release of one record, and an apply in buckets that were never seized, as single statements.
Write and release have the same conditions. The apply updates a row of a lower version, or inserts one:

    postgres_sql        CREATE, UPDATE, RELEASE, APPLY

`Transaction.delete` removes a row of a lower term than its bucket. The statement names the key only. `settle`, the only
caller, has locked the row and put it into the journal of conflicts in the same transaction:

    memory_transaction  delete
    sqlite_transaction  delete
    postgres_sql        DELETE_ROWS

A row of the old program becomes a record of version (0, 1) and leaves the old table, which no statement updates. A
migration rewrites bases and keeps owner, version and payload:

    sqlite_old          insert, complete
    sqlite_schema       change

The test does not read two kinds of statements. PostgreSQL's migration 0006 rewrites bases as SQLite's does. The modules
`takeover`, `leave` and `fitness` of simple_mcp change a file that no store serves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from libs.ownership.errors import NotOwner, RecordTooLarge, RequestIdReused, RevisionExhausted
from libs.ownership.limits import MAX_ANSWER_BYTES, MAX_PAYLOAD_BYTES, MAX_REVISION, MAX_STORED_REVISION
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
)
from libs.ownership.terms import contains


@dataclass(frozen=True, slots=True)
class Resource:
    """The record after a write. `live` is False for a tombstone."""

    payload: bytes = field(repr=False)
    live: bool
    schema_version: int
    answer: bytes | None = field(default=None, repr=False)
    """The answer to the caller. None: the payload."""


Change = Callable[[Row | None, Version], Resource | Answered]
"""The contract's part of a write: maps the current row and the version that the write makes to the record after it.
Raises the contract's errors. It may run more than once and must not have side effects."""


def may_change(found: Found, me: Store) -> bool:
    """The one rule: the owner in the row, or the bucket's owner if there is no row, is store `me`."""
    return found.owner is me


def next_version(found: Found) -> Version:
    """Add 1 to the revision. A new record starts in its bucket's term."""
    if found.row is None:
        return Version(found.bucket_owner.term, 1)
    return Version(found.row.version.term, found.row.version.revision + 1)


def written_version(found: Found, above: Version = NEVER) -> Version:
    """Return the version that a write makes: the next one, and higher than `above`.

    Raises RevisionExhausted if the term has no such version: stores park events above MAX_REVISION, and only a seizure
    begins a higher term.
    """
    version = next_version(found)
    if above >= version:
        version = Version(above.term, above.revision + 1)
    if version.revision > MAX_REVISION or version.term != next_version(found).term:
        raise RevisionExhausted(
            f"{found.key}: no version above {max(above, found.version)} can be made in term"
            f" {next_version(found).term}: seize the share of the store that does not own it (baton recover), which"
            " begins a new term and restarts the revision"
        )
    return version


def read_as_owner(found: Found, me: Store) -> Row | None:
    """Return the row for a strict read, or None if the record does not exist. Raises NotOwner."""
    if not may_change(found, me):
        raise NotOwner.of(found)
    return found.row


def done(found: Found, call: Call) -> Served | None:
    """Return the request as it was served to this caller if the row contains its effect, else None.

    Attempts of one request may be stored under two principals (`Call.is_of_caller`). The one with the same content
    counts, then the newest one.
    """
    row = found.row
    if not found.served or row is None:
        return None
    of_caller = (one for one in found.served if call.is_of_caller(one.principal) and contains(row, one.version))
    return max(of_caller, key=lambda one: (one.request_hash == call.request_hash, one.version), default=None)


def replaced(found: Found, call: Call, served: Served) -> list[tuple[Served, Served | None]]:
    """Return the entries to store for a request that was served, each with the one that it replaces.

    An entry whose effect is not in the row is replaced under its own principal too. Otherwise it would count as done
    once later changes have raised the row to its version.
    """
    known = [one for one in found.served if call.is_of_caller(one.principal)]
    entries: list[tuple[Served, Served | None]] = [(replace(served, principal=one.principal), one) for one in known]
    if all(one.principal != served.principal for one in known):
        entries.append((served, None))
    return entries


def newest_of_each(learned: Iterable[tuple[str, Served]]) -> list[tuple[str, Served]]:
    """Keep the entry with the highest version for each request, ordered by key, principal and request_id.

    A request has two versions if its first effect was lost with its store and the new owner ran the request again.
    """
    newest: dict[tuple[str, str, str], Served] = {}
    for key, served in learned:
        name = key, served.principal, served.request_id
        known = newest.get(name)
        if known is None or known.version < served.version:
            newest[name] = served
    ordered = sorted(newest.items(), key=lambda item: tuple(map(str.encode, item[0])))
    return [(name[0], served) for name, served in ordered]


def decide_write(found: Found, me: Store, call: Call, change: Change, above: Version = NEVER) -> Changed | Answered:
    """Decide on a write. `above`: a version that the write must exceed, such as that of the other store's row.

    Raises NotOwner, RequestIdReused, RecordTooLarge, RevisionExhausted, and the errors of the contract.
    """
    served = done(found, call)
    if served is not None:
        if served.request_hash != call.request_hash:
            raise RequestIdReused(request_id=call.request_id)
        if served.answer is not None:
            return Answered(served.answer, served.version)
        if found.row is not None and may_change(found, me):
            return Answered(found.row.payload, served.version)
    if not may_change(found, me):
        raise NotOwner.of(found)
    version = written_version(found, above)
    after = change(found.row, version)
    if isinstance(after, Answered):
        return after
    if len(after.payload) > MAX_PAYLOAD_BYTES:
        raise RecordTooLarge(
            f"the record would have {len(after.payload)} bytes: at most {MAX_PAYLOAD_BYTES} are allowed"
        )
    row = Row(
        key=found.key,
        version=version,
        owner=me,
        write_version=version,
        live=after.live,
        payload=after.payload,
        schema_version=after.schema_version,
        bases=found.row.bases if found.row else (),
    )
    answer = after.payload if after.answer is None else after.answer
    kept = answer if len(answer) <= MAX_ANSWER_BYTES else None
    return Changed(row, Served(call.principal, call.request_id, call.request_hash, version, kept), answer)


@dataclass(frozen=True, slots=True)
class Release:
    """The decision on a release. `row`: see `Outcome`."""

    outcome: Outcome
    row: Row | None


def decide_release(found: Found, me: Store, to: Store, *, create: bool) -> Release:
    """Decide on the release of a record to store `to`. `create`: also release a record that does not exist, as a stub.

    A record that exceeds the maximum size of an event stays until an update shrinks it, because its event would block
    the events behind it. Only the old program can have written such a record.
    """
    if to is me:
        raise ValueError(f"store {me} cannot release to itself")
    if found.row is not None:
        if found.row.owner is not me:
            return Release(Outcome.RELEASED, found.row)
        if len(found.row.payload) > MAX_PAYLOAD_BYTES:
            return Release(Outcome.TOO_LARGE, None)
        if found.row.version.revision >= MAX_STORED_REVISION:
            return Release(Outcome.EXHAUSTED, None)
        return Release(Outcome.RELEASE, replace(found.row, version=next_version(found), owner=to))
    if found.bucket_owner.owner is not me:
        return Release(Outcome.NOT_OWNED, None)
    if not create:
        return Release(Outcome.ABSENT, None)
    stub = Row(found.key, next_version(found), to, NEVER, live=False, payload=b"", schema_version=0)
    return Release(Outcome.RELEASE, stub)


def decide_bulk_release(row: Row, me: Store, to: Store) -> tuple[Head, Head] | None:
    """Return the row's head before and after its release to store `to`; None if it stays. See `decide_release`."""
    if to is me or row.owner is not me or len(row.payload) > MAX_PAYLOAD_BYTES or row.version.revision >= MAX_REVISION:
        return None
    return row.released(to)


def bulk_entry(before: Head, after: Head, served: Iterable[Served]) -> BulkEntry:
    """Return the entry of a record in the event of a bulk release. `served`: the requests that a release carries."""
    return BulkEntry(after.key, after.version, before.digest, after.digest, tuple(one.name for one in served))


class Take(Enum):
    """The decision on an entry of a bulk release."""

    TAKE = "take"
    """This store has the released row and its requests: it becomes the owner, in the entry's version."""
    OLD = "old"
    """The entry has no effect."""
    FETCH = "fetch"
    """Something is missing here. A whole release brings it."""


def decide_take(
    entry: BulkEntry, here: Head | None, bucket_owner: BucketOwner, me: Store, known: Collection[bytes]
) -> Take:
    """Decide on an entry that arrives. `here`: the stored row, hidden or not. `known`: names of the record's requests
    that this store can answer.

    The row must be exactly the one that was released: one revision below, in the same term, with the same owner and
    payload. Then the effects of all requests are in it, and to take it loses no write. If a request is not known here,
    its retry would have a second effect, so the record is fetched with its requests.

    An entry of a lower term than its bucket has no effect. Its writes have events of their own, which the seizer
    applied or put into its journal. An entry of a higher term proves no seizure.
    """
    if entry.version.term < bucket_owner.term or (here is not None and here.version >= entry.version):
        return Take.OLD
    released = Version(entry.version.term, entry.version.revision - 1)
    fits = (
        here is not None
        and entry.version.term == bucket_owner.term
        and here.version == released
        and here.owner is me.other
        and here.digest == entry.before
        and all(name in known for name in entry.requests)
    )
    return Take.TAKE if fits else Take.FETCH


def is_newer(record: Record, here: Row | None) -> bool:
    """Whether apply replaces the row. The record's served requests are stored in either case."""
    return here is None or record.row.version > here.version
