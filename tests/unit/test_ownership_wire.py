"""Records on the wire: nothing is lost on the way, and an event always fits the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.ownership.limits import (
    MAX_ANSWER_BYTES,
    MAX_BASES,
    MAX_EVENT_BYTES,
    MAX_KEY_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_PRINCIPAL_BYTES,
    MAX_REQUEST_ID_BYTES,
    REQUEST_HASH_BYTES,
    SERVED_WINDOW,
)
from libs.ownership.model import BUCKETS, BucketOwner, BulkEntry, BulkRelease, Record, Row, Served, Store, Version
from libs.ownership.wire import (
    UnreadableRecord,
    bucket_from_pb,
    bucket_to_pb,
    bulk_entry_bytes,
    event_of,
    event_of_bulk,
    read_bulk,
    record_from_pb,
    record_of_event,
    record_to_pb,
)
from libs.pb.baton.record.v1 import record_pb2 as pb

LARGEST = (1 << 63) - 1

stores = st.sampled_from(Store)
revisions = st.integers(1, LARGEST)
versions = st.builds(Version, st.integers(0, LARGEST), revisions)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9)
payloads = st.one_of(st.binary(max_size=40), st.just(b"x" * MAX_ANSWER_BYTES), st.just(b"x" * (MAX_ANSWER_BYTES + 1)))


@st.composite
def records(draw: st.DrawFn) -> Record:
    payload = draw(payloads)
    # Some answers are the payload, which is then not sent twice.
    kept = payload if len(payload) <= MAX_ANSWER_BYTES else b"kept"
    answers = st.one_of(st.none(), st.binary(max_size=20), st.just(kept))
    served = st.builds(Served, texts, texts, st.binary(max_size=REQUEST_HASH_BYTES), versions, answers)
    version = draw(versions)
    # Only a seizure begins a term, and so leaves a base.
    bases = draw(st.lists(versions, max_size=MAX_BASES)) if version.term else []
    row = Row(
        draw(texts),
        version,
        draw(stores),
        draw(st.one_of(st.just(Version(0, 0)), versions)),
        draw(st.booleans()),
        payload,
        draw(st.integers(0, (1 << 31) - 1)),
        tuple(bases),
    )
    window = tuple(draw(st.lists(served, max_size=8)))
    return Record(row, window, draw(stores), float(draw(st.integers(0, 1 << 32))))


@given(records())
def test_a_record_arrives_as_it_was_sent(record: Record) -> None:
    assert record_from_pb(record_to_pb(record)) == record
    assert record_of_event(event_of(record)) == record


def test_the_one_base_of_an_earlier_release_is_read() -> None:
    message = record_to_pb(Record(replace(row_with(b"p"), version=Version(4, 9)), (), Store.A, 0.0))
    message.base.term, message.base.revision = 0, 3
    assert record_from_pb(message).row.bases == ((0, 3),)
    message.bases.add(term=2, revision=8)
    assert record_from_pb(message).row.bases == ((2, 8),)


def row_with(payload: bytes, key: str = "sandboxes/k") -> Row:
    return Row(key, Version(0, 2), Store.A, Version(0, 2), True, payload, 1)


def test_an_answer_that_is_the_payload_is_sent_once() -> None:
    payload = b"p" * MAX_ANSWER_BYTES
    served = Served("ann", "r1", b"h", Version(0, 2), payload)
    record = Record(row_with(payload), (served, replace(served, request_id="r2", answer=b"other")), Store.A, 0.0)
    message = record_to_pb(record)
    assert [one.answer_is_payload for one in message.served] == [True, False]
    assert not message.served[0].HasField("answer")
    assert message.ByteSize() < 2 * len(payload)
    assert record_from_pb(message) == record


def test_a_payload_too_large_for_an_answer_is_not_taken_for_one() -> None:
    message = record_to_pb(Record(row_with(b"p" * (MAX_ANSWER_BYTES + 1)), (), Store.A, 0.0))
    message.served.add(principal="ann", request_id="r1", version=pb.Version(revision=2), answer_is_payload=True)
    assert record_from_pb(message).served[0].answer is None


def test_an_answer_that_was_not_kept_stays_unknown() -> None:
    record = Record(row_with(b""), (Served("ann", "r1", b"h", Version(0, 2), None),), Store.A, 0.0)
    assert record_from_pb(record_to_pb(record)).served[0].answer is None
    empty = replace(record, served=(replace(record.served[0], answer=b""),))
    assert record_from_pb(record_to_pb(empty)).served[0].answer == b""


@pytest.mark.parametrize("field", ["owner", "origin"])
@pytest.mark.parametrize("number", [0, 3, 77])
def test_a_store_that_nobody_knows_is_refused_with_its_field(field: str, number: int) -> None:
    message = record_to_pb(Record(row_with(b"p"), (), Store.A, 0.0))
    setattr(message, field, number)
    with pytest.raises(UnreadableRecord, match=f"{field}: {number} names no store"):
        record_from_pb(message)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (pb.Record(), "key: empty"),
        (pb.Record(key="k"), "version"),
        (pb.Record(key="k", version=pb.Version(term=-1, revision=1)), "version"),
        (pb.Record(key="k", version=pb.Version(revision=-1)), "version"),
    ],
)
def test_a_record_without_key_or_version_is_refused(message: pb.Record, text: str) -> None:
    with pytest.raises(UnreadableRecord, match=text):
        record_from_pb(message)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", "k\0"),
        ("key", "k" * (MAX_KEY_BYTES + 1)),
        ("served.principal", "p\0"),
        ("served.principal", "p" * (MAX_PRINCIPAL_BYTES + 1)),
        ("served.request_id", "r\0"),
        ("served.request_id", "r" * (MAX_REQUEST_ID_BYTES + 1)),
        ("made_time.seconds", 1 << 62),
    ],
)
def test_a_record_that_not_every_store_could_keep_is_refused(field: str, value: str | int) -> None:
    message = record_to_pb(Record(row_with(b"p"), (Served("p", "r", b"h", Version(0, 1), None),), Store.A, 0.0))
    part, _, name = field.rpartition(".")
    setattr({"": message, "served": message.served[0], "made_time": message.made_time}[part], name, value)
    with pytest.raises(UnreadableRecord) as refused:
        record_from_pb(message)
    assert field.startswith(refused.value.metadata["field"])


@given(st.binary(max_size=60))
def test_bytes_are_a_record_or_unreadable_and_nothing_else(data: bytes) -> None:
    try:
        record = record_of_event(data)
    except UnreadableRecord:
        return
    assert record.row.key and record.row.version.revision >= 1


@given(st.integers(0, BUCKETS - 1), st.integers(0, LARGEST), st.integers(0, LARGEST), stores)
def test_a_bucket_owner_arrives_as_it_was_sent(bucket: int, term: int, version: int, owner: Store) -> None:
    bucket_owner = BucketOwner(bucket, term, version, owner)
    assert bucket_from_pb(bucket_to_pb(bucket_owner)) == bucket_owner


@pytest.mark.parametrize("bucket", [-1, BUCKETS])
def test_a_bucket_owner_of_no_bucket_is_refused(bucket: int) -> None:
    with pytest.raises(UnreadableRecord, match="bucket"):
        bucket_from_pb(pb.BucketOwner(bucket=bucket, owner=pb.STORE_A))


def longest_window(count: int, answers: list[int]) -> tuple[Served, ...]:
    """Requests whose every field is as long as it may be; `answers`: how long the answers are, again and again."""
    return tuple(
        Served(
            "p" * MAX_PRINCIPAL_BYTES,
            f"{number:0{MAX_REQUEST_ID_BYTES}}",
            b"h" * REQUEST_HASH_BYTES,
            Version(LARGEST, LARGEST - count + number),
            None if (size := answers[number % len(answers)]) < 0 else b"a" * size,
        )
        for number in range(count)
    )


sizes_of_answers = st.lists(st.integers(-1, MAX_ANSWER_BYTES) | st.just(MAX_ANSWER_BYTES), min_size=1, max_size=8)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, MAX_PAYLOAD_BYTES) | st.just(MAX_PAYLOAD_BYTES),
    count=st.integers(0, SERVED_WINDOW) | st.just(SERVED_WINDOW + 3),
    answers=sizes_of_answers | st.just([MAX_ANSWER_BYTES]),
)
def test_an_event_always_fits_the_log(size: int, count: int, answers: list[int]) -> None:
    version = Version(LARGEST, LARGEST)
    row = Row("k" * MAX_KEY_BYTES, version, Store.B, version, True, b"x" * size, (1 << 31) - 1, (version,) * MAX_BASES)
    served = longest_window(count, answers)
    event = event_of(Record(row, served, Store.B, 253_402_300_799.0))
    assert len(event) <= MAX_EVENT_BYTES
    arrived = record_of_event(event)
    assert arrived.row == row
    assert [one.request_id for one in arrived.served] == [one.request_id for one in served[-SERVED_WINDOW:]]
    _assert_that_the_oldest_made_room(arrived.served, served[-SERVED_WINDOW:])


def _assert_that_the_oldest_made_room(arrived: tuple[Served, ...], sent: tuple[Served, ...]) -> None:
    gone = [position for position, one in enumerate(sent) if arrived[position].answer != one.answer]
    if gone:
        assert all(arrived[position].answer is None for position in range(max(gone) + 1))
    assert all(arrived[position].answer is None for position in gone)


def test_answers_make_room_only_when_they_must() -> None:
    few = longest_window(10, [MAX_ANSWER_BYTES])
    assert record_of_event(event_of(Record(row_with(b"x"), few, Store.A, 0.0))).served == few
    many = longest_window(SERVED_WINDOW, [MAX_ANSWER_BYTES])
    kept = [
        one.answer is not None for one in record_of_event(event_of(Record(row_with(b"x"), many, Store.A, 0.0))).served
    ]
    assert kept == sorted(kept) and 25 < sum(kept) < SERVED_WINDOW


def bulk_of(*keys: str) -> BulkRelease:
    names = (b"n" * 16, b"m" * 16)
    entries = [BulkEntry(key, Version(2, 5), 2**64 - 1, 7, names[:number]) for number, key in enumerate(keys)]
    return BulkRelease(Store.B, tuple(entries), 1.5)


def test_a_bulk_release_is_read_as_it_was_made() -> None:
    made = bulk_of("a", "b", "c")
    data = event_of_bulk(made)
    assert read_bulk("a", data) == made == read_bulk("", data)
    assert len(data) <= sum(map(bulk_entry_bytes, made.entries)) + 64
    longest = bulk_of("k" * 256, "l" * 256, "m" * 256)
    assert len(event_of_bulk(longest)) <= sum(map(bulk_entry_bytes, longest.entries)) + 64


def test_an_earlier_release_cannot_take_a_bulk_release_for_a_record() -> None:
    """It applies records by `record_of_event`, and would keep a record without payload."""
    data = event_of_bulk(bulk_of("a"))
    with pytest.raises(UnreadableRecord, match="key: empty"):
        record_of_event(data)
    message = pb.Record.FromString(data)
    assert [field.name for field, _ in message.ListFields()] == ["origin", "made_time", "bulk"]


def test_the_event_of_a_record_is_no_bulk_release() -> None:
    row = Row("a", Version(0, 1), Store.A, Version(0, 1), True, b"w", 1)
    assert read_bulk("a", event_of(Record(row, (), Store.A, 1.0))) is None
    assert read_bulk("a", b"\xff") is None


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("bulk.to", lambda one: one.bulk.ClearField("to")),
        ("origin", lambda one: setattr(one, "origin", pb.STORE_B)),
        ("bulk.keys", lambda one: one.bulk.ClearField("keys")),
        ("bulk.keys", lambda one: one.bulk.terms.append(1)),
        ("bulk.keys", lambda one: one.bulk.digests.pop()),
        ("bulk.keys", lambda one: one.bulk.keys.__setitem__(1, "a")),
        ("bulk.keys", lambda one: one.bulk.keys.__setitem__(1, "k" * 257)),
        ("bulk.requests", lambda one: setattr(one.bulk, "requests", b"n" * 15)),
        ("bulk.requests", lambda one: one.bulk.request_counts.__setitem__(0, -1)),
        ("bulk", lambda one: one.bulk.keys.__setitem__(1, "")),
        ("bulk", lambda one: one.bulk.revisions.__setitem__(1, 1)),
        ("bulk", lambda one: one.bulk.revisions.__setitem__(1, 2**62)),
        ("bulk", lambda one: one.bulk.terms.__setitem__(1, -1)),
    ],
)
def test_a_bulk_release_that_no_store_can_have_made_is_unreadable(
    field: str, change: Callable[[pb.Record], None]
) -> None:
    message = pb.Record.FromString(event_of_bulk(bulk_of("a", "b")))
    change(message)
    with pytest.raises(UnreadableRecord) as error:
        read_bulk("", message.SerializeToString())
    assert error.value.metadata["field"] == field
