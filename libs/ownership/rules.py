"""Who may change a record: the rules of the ownership protocol, as pure functions.

Two stores hold the same records, and traffic moves between them per record, at any moment. One rule keeps every write:

    Flags are hints. Rows decide. A store accepts a write to a record only if its own row, in the same transaction,
    says that it owns the record.

From it follows everything here:

* A record moves by a release at its owner and an adopt at the other store. A release is a change like any other: it
  raises the version and makes an event. So from the moment it commits nobody owns the record, until the version that
  it made has arrived at the new owner; and it arrives by the handoff or by the log, whichever is faster.
* Apply is a join on versions: the higher one stays. Order, repetition and lateness of what arrives are harmless,
  because a version is made once, by the one store that owned the record then.
* Records that do not exist have an owner too, by bucket (`BucketOwner`), else two stores could create one name.
* A request that was served is remembered with the record and travels with it: a retry is recognised wherever the
  record is by then. A store may learn of a request before the record that shows its effect arrives, or instead of it,
  if the owner is lost. So a request counts as done only where its effect is in the row (`done`). Elsewhere the owner
  runs it, and any other store answers NOT_OWNER.

The engine (`libs.store.engine`) reads a `Found` in a transaction, asks a function of this module for the decision, and
stores exactly that, under the condition that owner and version are still what was read. If the condition does not hold
it starts again from the read.

Statements that change a row. There is no other way to change a record; a test compares this list with the code. Each
statement has the condition in itself, so a decision that ignores ownership changes nothing. Behind them stands a
trigger in each database: a change of a row must raise its version, and a row goes only where its removal is announced.

`Transaction.put` changes a row if its owner and version are those that the decision was made on, and makes a row if its
bucket is in the row's term. For a write or a release this store must own the row, or the bucket, and not be fenced:

    memory_transaction  put
    sqlite_schema       insert, update, update_envelope
    postgres_sql        INSERT_ROWS, UPDATE_ROWS, UPDATE_ENVELOPES

PostgreSQL does the write, and the apply of records in buckets that were never seized, in single statements. The write
has the same conditions; apply changes a row of a lower version, or makes one:

    postgres_sql        CREATE, UPDATE, APPLY

`Transaction.delete` removes a row of a lower term than its bucket. It is in the journal of conflicts by then:

    memory_transaction  delete
    sqlite_transaction  delete
    postgres_sql        DELETE_ROWS

A row of the old program becomes a record of version (0, 1), and leaves the old table; a migration rewrites bases:

    sqlite_old          insert, complete
    sqlite_schema       change
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from libs.ownership.errors import NotOwner, RecordTooLarge, RequestIdReused, RevisionExhausted
from libs.ownership.limits import MAX_ANSWER_BYTES, MAX_PAYLOAD_BYTES, MAX_REVISION, MAX_STORED_REVISION
from libs.ownership.model import NEVER, Answered, Call, Changed, Found, Outcome, Record, Row, Served, Store, Version
from libs.ownership.terms import contains


@dataclass(frozen=True, slots=True)
class Resource:
    """What a write leaves: the payload, and whether the record is live."""

    payload: bytes
    live: bool
    schema_version: int
    answer: bytes | None = None
    """What the caller is told; None: the payload."""


Change = Callable[[Row | None, Version], Resource | Answered]
"""The contract's part of a write: from the row as it is and the version that the write will make to what it leaves.
Raises the contract's errors. It may be called more than once and must not have effects."""


def may_change(found: Found, me: Store) -> bool:
    """The one rule: its row, or for a record that does not exist its bucket's owner, names this store."""
    return found.owner is me


def next_version(found: Found) -> Version:
    """A change adds one to the revision; a new record starts in its bucket's term."""
    if found.row is None:
        return Version(found.bucket_owner.term, 1)
    return Version(found.row.version.term, found.row.version.revision + 1)


def written_version(found: Found, above: Version = NEVER) -> Version:
    """The version that a write makes: the next one, and higher than `above`.

    Raises RevisionExhausted: an event with a higher revision is parked, and no higher term begins without a seizure.
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
    """The row for a strict read: None when the record surely does not exist. Raises NotOwner."""
    if not may_change(found, me):
        raise NotOwner.of(found)
    return found.row


def done(found: Found) -> Served | None:
    """The served request, if the row contains its effect."""
    served, row = found.served, found.row
    return served if served is not None and row is not None and contains(row, served.version) else None


def newest_of_each(learned: Iterable[tuple[str, Served]]) -> list[tuple[str, Served]]:
    """Of served requests by key, the one with the highest version for each request, ordered by key, principal and id.

    A request has two versions if the first effect was lost with its store and the new owner ran it again."""
    newest: dict[tuple[str, str, str], Served] = {}
    for key, served in learned:
        name = key, served.principal, served.request_id
        known = newest.get(name)
        if known is None or known.version < served.version:
            newest[name] = served
    ordered = sorted(newest.items(), key=lambda item: tuple(map(str.encode, item[0])))
    return [(name[0], served) for name, served in ordered]


def decide_write(found: Found, me: Store, call: Call, change: Change, above: Version = NEVER) -> Changed | Answered:
    """What a write does to what was found. `above`: a version of the record elsewhere, which the write must exceed.

    Raises NotOwner, RequestIdReused, RecordTooLarge, RevisionExhausted, and the errors of the contract.
    """
    served = done(found)
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
    outcome: Outcome
    row: Row | None


def decide_release(found: Found, me: Store, to: Store, *, create: bool) -> Release:
    """What giving a record up does. `create`: a record that does not exist may be given up, as a stub.

    A record that is too large for an event stays where it is until an update has made it smaller: only an old program
    can have left one, and its event would stand in the way of all others.
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


def is_newer(record: Record, here: Row | None) -> bool:
    """Whether apply keeps the record. Its served requests are kept either way."""
    return here is None or record.row.version > here.version
