"""Records, bucket owners and orders of a recovery as protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.protobuf.message import DecodeError

from libs.errors import BatonError
from libs.ownership.limits import (
    MAX_ANSWER_BYTES,
    MAX_BASES,
    MAX_EVENT_BYTES,
    MAX_KEY_BYTES,
    MAX_PRINCIPAL_BYTES,
    MAX_REQUEST_ID_BYTES,
    MAX_REVISION,
    REQUEST_NAME_BYTES,
    SERVED_WINDOW,
)
from libs.ownership.model import BUCKETS, BucketOwner, BulkEntry, BulkRelease, Record, Row, Served, Store, Version
from libs.ownership.orders import Order
from libs.pb.baton.record.v1 import record_pb2 as pb
from libs.pb.baton.replication.v1 import recovery_pb2

STORES = {pb.STORE_A: Store.A, pb.STORE_B: Store.B}
STORE_NUMBERS = {Store.A: pb.STORE_A, Store.B: pb.STORE_B}


class UnreadableRecord(BatonError):
    """The bytes are not a record that this release can read."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"


def version_to_pb(version: Version) -> pb.Version:
    return pb.Version(term=version.term, revision=version.revision)


def version_from_pb(message: pb.Version) -> Version:
    return Version(message.term, message.revision)


def store_from_pb(number: int, field: str) -> Store:
    """Raises UnreadableRecord if the number names no store."""
    store = STORES.get(number)  # type: ignore[call-overload]
    if store is None:
        raise UnreadableRecord(f"{field}: {number} names no store: it is STORE_A (1) or STORE_B (2)", field=field)
    return store  # type: ignore[no-any-return]


def _served_to_pb(served: Served, record: Row) -> pb.ServedRequest:
    message = pb.ServedRequest(
        principal=served.principal,
        request_id=served.request_id,
        request_hash=served.request_hash,
        version=version_to_pb(served.version),
    )
    if served.answer is not None:
        if served.answer == record.payload:
            message.answer_is_payload = True
        else:
            message.answer = served.answer
    return message


def _check_text(value: str, most_bytes: int, field: str) -> None:
    """Reject text that a store cannot keep: its feed would never get past it."""
    if len(value.encode()) > most_bytes or "\0" in value:
        raise UnreadableRecord(f"{field}: more than {most_bytes} bytes, or a NUL character", field=field)


def _served_from_pb(message: pb.ServedRequest, payload: bytes) -> Served:
    _check_text(message.principal, MAX_PRINCIPAL_BYTES, "served.principal")
    _check_text(message.request_id, MAX_REQUEST_ID_BYTES, "served.request_id")
    answer = message.answer if message.HasField("answer") else None
    if message.answer_is_payload and len(payload) <= MAX_ANSWER_BYTES:
        answer = payload
    version = version_from_pb(message.version)
    return Served(message.principal, message.request_id, message.request_hash, version, answer)


def record_to_pb(record: Record) -> pb.Record:
    message = pb.Record()
    _put(message, record)
    return message


def _put(message: pb.Record, record: Record) -> None:
    """Fill an empty message in place. Building its parts and copying them takes three times as long."""
    row = record.row
    message.key = row.key
    version, written = message.version, message.write_version
    version.term, version.revision = row.version
    written.term, written.revision = row.write_version
    message.owner = STORE_NUMBERS[row.owner]
    message.live = row.live
    message.origin = STORE_NUMBERS[record.origin]
    message.schema_version = row.schema_version
    message.payload = row.payload
    if record.served:
        message.served.extend(_served_to_pb(served, row) for served in record.served)
    if row.bases:
        message.bases.extend(map(version_to_pb, row.bases))
    message.made_time.FromNanoseconds(int(record.made_seconds * 1e9))


def record_from_pb(message: pb.Record) -> Record:
    """Raises UnreadableRecord."""
    # Every copy runs this for each record. So it reads each field once, and skips lists, which are mostly empty.
    key, payload, served = message.key, message.payload, message.served
    if not key:
        raise UnreadableRecord("key: empty: a record has a key", field="key")
    _check_text(key, MAX_KEY_BYTES, "key")
    version = version_from_pb(message.version)
    if version.revision < 1 or version.term < 0:
        raise UnreadableRecord(f"version: {tuple(version)} is not valid: revisions start at 1", field="version")
    row = Row(
        key=key,
        version=version,
        owner=store_from_pb(message.owner, "owner"),
        write_version=version_from_pb(message.write_version),
        live=message.live,
        payload=payload,
        schema_version=message.schema_version,
        bases=_bases(message) if version.term else (),
    )
    return Record(
        row=row,
        served=tuple(_served_from_pb(one, payload) for one in served) if served else (),
        origin=store_from_pb(message.origin, "origin"),
        made_seconds=_made_seconds(message),
    )


def _bases(message: pb.Record) -> tuple[Version, ...]:
    if not message.bases and message.HasField("base"):
        return (version_from_pb(message.base),)
    return tuple(map(version_from_pb, message.bases[-MAX_BASES:]))


def _made_seconds(message: pb.Record) -> float:
    try:
        return message.made_time.ToNanoseconds() / 1e9
    except ValueError as error:
        raise UnreadableRecord(f"made_time: {error}", field="made_time") from None


def event_of(record: Record) -> bytes:
    """Encode the record as an event of at most MAX_EVENT_BYTES. If it is larger, drop answers, the oldest first.

    A late retry of a request without its answer gets the current record instead.
    """
    if len(record.served) > SERVED_WINDOW:
        record = replace(record, served=record.served[-SERVED_WINDOW:])
    data = record_to_pb(record).SerializeToString()
    served: Sequence[Served] = record.served
    for position in range(len(served)):
        if len(data) <= MAX_EVENT_BYTES:
            return data
        served = [*served[:position], replace(served[position], answer=None), *served[position + 1 :]]
        data = record_to_pb(replace(record, served=tuple(served))).SerializeToString()
    return data


def record_of_event(data: bytes) -> Record:
    """Raises UnreadableRecord."""
    return record_from_pb(_message_of(data))


def event_of_bulk(bulk: BulkRelease) -> bytes:
    """Encode a bulk release as an event. The caller keeps it within MAX_EVENT_BYTES (`bulk_entry_bytes`)."""
    message = pb.Record(origin=STORE_NUMBERS[bulk.origin])
    message.made_time.FromNanoseconds(int(bulk.made_seconds * 1e9))
    found, entries = message.bulk, bulk.entries
    found.to = STORE_NUMBERS[bulk.to]
    found.keys.extend([one.key for one in entries])
    found.terms.extend([one.version.term for one in entries])
    found.revisions.extend([one.version.revision for one in entries])
    found.before.extend([one.before for one in entries])
    found.digests.extend([one.digest for one in entries])
    found.request_counts.extend([len(one.requests) for one in entries])
    found.requests = b"".join(name for one in entries for name in one.requests)
    return message.SerializeToString()


def bulk_entry_bytes(entry: BulkEntry) -> int:
    """Return an upper bound of the size of an entry in an event."""
    return len(entry.key.encode()) + 48 + REQUEST_NAME_BYTES * len(entry.requests)


def read_bulk(key: str, data: bytes) -> BulkRelease | None:
    """Decode the event of a bulk release, and check it against its message's key, the key of its first record. None if
    it is the event of one record, or unreadable: then `read_event` raises the reason.

    Raises UnreadableRecord for a bulk release that no store can have made.
    """
    try:
        message = pb.Record.FromString(data)
    except DecodeError:
        return None
    return bulk_from_pb(message, key) if message.HasField("bulk") and not message.key else None


def bulk_from_pb(message: pb.Record, key: str = "") -> BulkRelease:
    """Raises UnreadableRecord. `key`: the key of the first record; "" for any."""
    found = message.bulk
    to = store_from_pb(found.to, "bulk.to")
    if store_from_pb(message.origin, "origin") is not to.other:
        raise UnreadableRecord(f"origin: store {to} cannot release to itself", field="origin")
    keys, counts, requests = list(found.keys), list(found.request_counts), found.requests
    columns = (found.terms, found.revisions, found.before, found.digests, counts)
    if not keys or any(len(column) != len(keys) for column in columns):
        raise UnreadableRecord(f"bulk: {len(keys)} keys, and lists of other lengths", field="bulk.keys")
    if len(set(keys)) < len(keys):
        raise UnreadableRecord("bulk: a key occurs twice", field="bulk.keys")
    if key not in ("", keys[0]):
        raise UnreadableRecord(f"key: the first record is {keys[0]!r}, but its message has {key!r}", field="key")
    if min(counts) < 0 or sum(counts) * REQUEST_NAME_BYTES != len(requests):
        raise UnreadableRecord(f"bulk.requests: {len(requests)} bytes, not {sum(counts)} names", field="bulk.requests")
    entries, at = [], 0
    for one, term, revision, before, digest, count in zip(keys, *columns, strict=True):
        if not one or not (0 <= term <= MAX_REVISION and 1 < revision <= MAX_REVISION):
            raise UnreadableRecord(f"bulk: {one!r} cannot have been released as {term}-{revision}", field="bulk")
        _check_text(one, MAX_KEY_BYTES, "bulk.keys")
        names: tuple[bytes, ...] = ()
        if count:
            end = at + count * REQUEST_NAME_BYTES
            names = tuple(requests[start : start + REQUEST_NAME_BYTES] for start in range(at, end, REQUEST_NAME_BYTES))
            at = end
        entries.append(BulkEntry(one, Version(term, revision), before, digest, names))
    return BulkRelease(to, tuple(entries), _made_seconds(message))


def read_event(key: str, data: bytes) -> Record:
    """Decode an event and check it against its message's key. The payload is not checked: it belongs to the contract.

    Raises UnreadableRecord.
    """
    record = record_of_event(data)
    check_versions(record.row)
    found = record.row.key
    if found != key:
        raise UnreadableRecord(f"key: the record has {found!r}, but its message has {key!r}", field="key")
    return record


def check_versions(row: Row) -> None:
    """Check that the versions leave room for changes: at a database's largest integer, no owner could write the record.

    Raises UnreadableRecord.
    """
    for field, version in (("version", row.version), ("write_version", row.write_version)):
        if not all(0 <= number <= MAX_REVISION for number in version):
            raise UnreadableRecord(f"{field}: {tuple(version)} is not valid: 0 to {MAX_REVISION}", field=field)
    if row.write_version > row.version:
        raise UnreadableRecord(
            f"write_version: {tuple(row.write_version)} is above version {tuple(row.version)}", field="write_version"
        )


def maker_of_event(data: bytes) -> tuple[str, Store]:
    """Return the record's key and the store that made the event, and check no other field. Raises UnreadableRecord."""
    message = _message_of(data)
    return message.key, store_from_pb(message.origin, "origin")


def _message_of(data: bytes) -> pb.Record:
    try:
        return pb.Record.FromString(data)
    except DecodeError as error:
        raise UnreadableRecord(f"not a serialized record: {error}") from None


def bucket_to_pb(bucket_owner: BucketOwner) -> pb.BucketOwner:
    return pb.BucketOwner(
        bucket=bucket_owner.bucket,
        term=bucket_owner.term,
        version=bucket_owner.version,
        owner=STORE_NUMBERS[bucket_owner.owner],
    )


def bucket_from_pb(message: pb.BucketOwner) -> BucketOwner:
    """Raises UnreadableRecord."""
    if not 0 <= message.bucket < BUCKETS:
        raise UnreadableRecord(f"bucket: {message.bucket} is not valid: 0 to {BUCKETS - 1}", field="bucket")
    return BucketOwner(message.bucket, message.term, message.version, store_from_pb(message.owner, "owner"))


def put_records(messages: RepeatedCompositeFieldContainer[pb.Record], records: Iterable[Record]) -> None:
    """Append the records to a field of another message."""
    for record in records:
        _put(messages.add(), record)


def order_to_pb(order: Order) -> recovery_pb2.Order:
    return recovery_pb2.Order(
        control=order.control, epoch=order.epoch, job=order.job, number=order.number, stage=order.stage
    )


def order_from_pb(order: recovery_pb2.Order) -> Order:
    return Order(order.epoch, order.number, order.stage, order.control, order.job)
