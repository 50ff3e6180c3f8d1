"""Every branch of the rules, by stored state, caller and request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.errors import InvalidField
from libs.ownership.errors import NotOwner, RecordTooLarge, RequestIdReused
from libs.ownership.limits import MAX_ANSWER_BYTES, MAX_PAYLOAD_BYTES, MAX_REVISION
from libs.ownership.model import (
    NEVER,
    Answered,
    BucketOwner,
    Call,
    Changed,
    Found,
    Outcome,
    Record,
    Row,
    Served,
    Store,
    Version,
)
from libs.ownership.rules import (
    Change,
    Release,
    Resource,
    Take,
    bulk_entry,
    decide_bulk_release,
    decide_release,
    decide_take,
    decide_write,
    is_newer,
    may_change,
    next_version,
    read_as_owner,
)

A, B = Store.A, Store.B
KEY = "sandboxes/k"
CALL = Call(KEY, "ann", "r1", b"hash")
NEW = Resource(b"new", live=True, schema_version=2)


def bucket_owner(owner: Store, term: int = 0) -> BucketOwner:
    return BucketOwner(7, term, 3, owner)


def row(owner: Store, *, term: int = 0, revision: int = 4, live: bool = True, payload: bytes = b"old") -> Row:
    return Row(KEY, Version(term, revision), owner, Version(term, revision), live, payload, 1)


def served(*, request_hash: bytes = b"hash", answer: bytes | None = b"then") -> Served:
    return Served("ann", "r1", request_hash, Version(0, 2), answer)


STUB = Row(KEY, Version(0, 1), B, NEVER, live=False, payload=b"", schema_version=0)
TOMBSTONE = row(A, live=False)

HERE = Found(KEY, row(A), bucket_owner(B))
ELSEWHERE = Found(KEY, row(B), bucket_owner(A))
ABSENT_HERE = Found(KEY, None, bucket_owner(A))
ABSENT_ELSEWHERE = Found(KEY, None, bucket_owner(B))


def leaving(resource: Resource | Answered) -> Change:
    def change(before: Row | None, version: Version) -> Resource | Answered:
        return resource

    return change


def changed(version: Version, resource: Resource = NEW, *bases: Version) -> Changed:
    after = Row(KEY, version, A, version, resource.live, resource.payload, resource.schema_version, bases)
    return Changed(after, Served("ann", "r1", b"hash", version, resource.payload), resource.payload)


@pytest.mark.parametrize(
    ("found", "owned"),
    [
        pytest.param(HERE, True, id="the row says here, whatever the bucket owner says"),
        pytest.param(ELSEWHERE, False, id="the row says elsewhere, whatever the bucket owner says"),
        pytest.param(ABSENT_HERE, True, id="without a row the bucket owner decides: here"),
        pytest.param(ABSENT_ELSEWHERE, False, id="without a row the bucket owner decides: elsewhere"),
        pytest.param(replace(HERE, row=STUB), False, id="a stub given away is elsewhere"),
        pytest.param(replace(HERE, row=replace(STUB, owner=A)), True, id="a stub that has arrived is here"),
        pytest.param(replace(HERE, row=TOMBSTONE), True, id="a tombstone has an owner like any record"),
    ],
)
def test_the_row_decides_who_may_change_a_record(found: Found, owned: bool) -> None:
    assert may_change(found, A) is owned
    assert may_change(found, B) is not owned
    if owned:
        assert read_as_owner(found, A) == found.row
    else:
        with pytest.raises(NotOwner) as denied:
            read_as_owner(found, A)
        expected = (B, found.version, found.row is None)
        assert (denied.value.owner, denied.value.version, denied.value.absent) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (HERE, Version(0, 5)),
        (replace(HERE, row=TOMBSTONE), Version(0, 5)),
        (replace(HERE, row=STUB), Version(0, 2)),
        (Found(KEY, row(A, term=2, revision=9), bucket_owner(A, term=4)), Version(2, 10)),
        (Found(KEY, None, bucket_owner(A, term=4)), Version(4, 1)),
    ],
)
def test_a_change_adds_one_and_a_new_record_begins_in_its_buckets_term(found: Found, expected: Version) -> None:
    assert next_version(found) == expected


@pytest.mark.parametrize(
    ("found", "decided"),
    [
        pytest.param(HERE, changed(Version(0, 5)), id="owned here: the next version"),
        pytest.param(ABSENT_HERE, changed(Version(0, 1)), id="absent, bucket owner owned here: the first version"),
        pytest.param(replace(HERE, row=TOMBSTONE), changed(Version(0, 5)), id="a tombstone: the revision goes on"),
        pytest.param(
            replace(HERE, row=replace(STUB, owner=A)), changed(Version(0, 2)), id="a stub: the revision goes on"
        ),
        pytest.param(
            replace(HERE, row=replace(row(A), bases=(Version(0, 1),))),
            changed(Version(0, 5), NEW, Version(0, 1)),
            id="the bases of seizures stay",
        ),
        pytest.param(
            replace(HERE, served=(served(),)), Answered(b"then", Version(0, 2)), id="served, answer kept: that answer"
        ),
        pytest.param(
            replace(ELSEWHERE, served=(served(),)),
            Answered(b"then", Version(0, 2)),
            id="served, answer kept, owned elsewhere by now: that answer all the same",
        ),
        pytest.param(
            replace(HERE, served=(served(answer=b""),)), Answered(b"", Version(0, 2)), id="an empty answer is an answer"
        ),
        pytest.param(
            replace(HERE, served=(served(answer=None),)),
            Answered(b"old", Version(0, 2)),
            id="served, answer not kept: the record as it is, with the version of then",
        ),
    ],
)
def test_what_a_write_does(found: Found, decided: Changed | Answered) -> None:
    assert decide_write(found, A, CALL, leaving(NEW)) == decided


@pytest.mark.parametrize(
    ("found", "error"),
    [
        pytest.param(ELSEWHERE, NotOwner, id="owned elsewhere"),
        pytest.param(ABSENT_ELSEWHERE, NotOwner, id="absent, bucket owner owned elsewhere"),
        pytest.param(replace(HERE, row=STUB), NotOwner, id="a stub given away"),
        pytest.param(
            replace(ELSEWHERE, served=(served(answer=None),)),
            NotOwner,
            id="answer not kept: only the owner knows",
        ),
        pytest.param(
            replace(ABSENT_HERE, served=(served(answer=None),)),
            None,
            id="served, but no row: a new write",
        ),
        pytest.param(replace(HERE, served=(served(request_hash=b"other"),)), RequestIdReused, id="another request"),
        pytest.param(
            replace(ELSEWHERE, served=(served(request_hash=b"other"),)),
            RequestIdReused,
            id="another request, owned elsewhere",
        ),
    ],
)
def test_what_a_write_is_refused_for(found: Found, error: type[Exception] | None) -> None:
    if error is None:
        assert isinstance(decide_write(found, A, CALL, leaving(NEW)), Changed)
        return
    with pytest.raises(error):
        decide_write(found, A, CALL, _must_not_be_called)


def _must_not_be_called(before: Row | None, version: Version) -> Resource:
    raise AssertionError("the contract is asked although the protocol has decided")


def test_a_write_that_only_checks_changes_nothing() -> None:
    answer = Answered(b"would be", Version(0, 5))
    assert decide_write(HERE, A, CALL, leaving(answer)) == answer


def test_the_contract_sees_the_row_and_the_version_that_it_will_make() -> None:
    seen: list[tuple[Row | None, Version]] = []

    def change(before: Row | None, version: Version) -> Resource:
        seen.append((before, version))
        return NEW

    decide_write(HERE, A, CALL, change)
    decide_write(ABSENT_HERE, A, CALL, change)
    assert seen == [(HERE.row, Version(0, 5)), (None, Version(0, 1))]


@pytest.mark.parametrize(("size", "kept"), [(MAX_ANSWER_BYTES, True), (MAX_ANSWER_BYTES + 1, False)])
def test_an_answer_is_kept_up_to_its_limit(size: int, kept: bool) -> None:
    decided = decide_write(HERE, A, CALL, leaving(Resource(b"x" * size, live=True, schema_version=1)))
    assert isinstance(decided, Changed)
    assert len(decided.answer) == size
    assert (decided.served.answer is not None) is kept


def test_a_record_larger_than_an_event_may_be_is_refused() -> None:
    def write(size: int) -> object:
        return decide_write(HERE, A, CALL, leaving(Resource(b"x" * size, live=True, schema_version=1)))

    assert isinstance(write(MAX_PAYLOAD_BYTES), Changed)
    with pytest.raises(RecordTooLarge):
        write(MAX_PAYLOAD_BYTES + 1)


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(
    ("found", "release"),
    [
        pytest.param(
            HERE, Release(Outcome.RELEASE, Row(KEY, Version(0, 5), B, Version(0, 4), True, b"old", 1)), id="owned here"
        ),
        pytest.param(
            replace(HERE, row=TOMBSTONE),
            Release(Outcome.RELEASE, Row(KEY, Version(0, 5), B, Version(0, 4), False, b"old", 1)),
            id="a tombstone",
        ),
        pytest.param(
            replace(HERE, row=replace(STUB, owner=A)),
            Release(Outcome.RELEASE, replace(STUB, version=Version(0, 2))),
            id="a stub on its way back",
        ),
        pytest.param(ELSEWHERE, Release(Outcome.RELEASED, ELSEWHERE.row), id="given up before: as it is"),
        pytest.param(replace(HERE, row=STUB), Release(Outcome.RELEASED, STUB), id="a stub given up before"),
        pytest.param(ABSENT_ELSEWHERE, Release(Outcome.NOT_OWNED, None), id="absent, bucket owner owned elsewhere"),
    ],
)
def test_what_giving_up_does(found: Found, release: Release, create: bool) -> None:
    assert decide_release(found, A, B, create=create) == release


def test_giving_up_what_is_absent_leaves_a_stub_only_when_it_was_asked_for() -> None:
    assert decide_release(ABSENT_HERE, A, B, create=False) == Release(Outcome.ABSENT, None)
    assert decide_release(ABSENT_HERE, A, B, create=True) == Release(Outcome.RELEASE, STUB)
    later = Found(KEY, None, bucket_owner(A, term=4))
    stub = decide_release(later, A, B, create=True).row
    assert stub is not None and stub.version == Version(4, 1)


def test_a_record_that_is_too_large_for_an_event_stays_where_it_is() -> None:
    def release(size: int) -> Outcome:
        found = replace(HERE, row=row(A, payload=b"x" * size))
        return decide_release(found, A, B, create=False).outcome

    assert release(MAX_PAYLOAD_BYTES) is Outcome.RELEASE
    assert release(MAX_PAYLOAD_BYTES + 1) is Outcome.TOO_LARGE


def test_a_handoff_keeps_the_etag_of_the_write() -> None:
    released = decide_release(HERE, A, B, create=False).row
    assert released is not None
    assert released.write_version.etag == row(A).write_version.etag == '"0-4"'


def test_a_store_cannot_release_to_itself() -> None:
    with pytest.raises(ValueError, match="store A cannot release to itself"):
        decide_release(HERE, A, A, create=False)


@pytest.mark.parametrize(
    ("version", "here", "newer"),
    [
        ((0, 1), None, True),
        ((0, 5), (0, 4), True),
        ((0, 4), (0, 4), False),
        ((0, 3), (0, 4), False),
        ((1, 1), (0, 9), True),
        ((0, 9), (1, 1), False),
    ],
)
def test_apply_keeps_the_higher_version_by_term_then_by_revision(
    version: tuple[int, int], here: tuple[int, int] | None, newer: bool
) -> None:
    record = Record(row(B, term=version[0], revision=version[1]), (), B, 0.0)
    there = None if here is None else row(A, term=here[0], revision=here[1])
    assert is_newer(record, there) is newer


@pytest.mark.parametrize(
    ("key", "principal", "request_id", "field"),
    [
        ("", "anonymous", "r", "key"),
        ("k" * 257, "anonymous", "r", "key"),
        ("k", "p" * 129, "r", "principal"),
        ("k", "anonymous", "", "request_id"),
        ("k", "anonymous", "é" * 19, "request_id"),
    ],
)
def test_a_call_of_which_too_much_would_have_to_be_remembered_is_refused(
    key: str, principal: str, request_id: str, field: str
) -> None:
    with pytest.raises(InvalidField) as refused:
        Call(key, principal, request_id, b"h" * 16)
    assert refused.value.field == field


def test_a_bulk_release_is_of_own_records_that_can_leave() -> None:
    row = Row("k", Version(0, 4), Store.A, Version(0, 3), True, b"w", 1)
    heads = decide_bulk_release(row, Store.A, Store.B)
    released = replace(row, version=Version(0, 5), owner=Store.B)
    assert heads == (row.head, released.head)
    large = replace(row, payload=b"x" * (MAX_PAYLOAD_BYTES + 1))
    exhausted = replace(row, version=Version(0, MAX_REVISION))
    for one in (replace(row, owner=Store.B), large, exhausted):
        assert decide_bulk_release(one, Store.A, Store.B) is None
    assert decide_bulk_release(row, Store.A, Store.A) is None


def test_an_entry_is_taken_on_exactly_the_row_that_was_released() -> None:
    row = Row("k", Version(2, 4), Store.A, Version(2, 3), True, b"w", 1)
    served = Served("ann", "r1", b"h", Version(2, 3), None)
    entry = bulk_entry(*row.released(Store.B), (served,))
    bucket = BucketOwner(0, 2, 1, Store.B)
    known = {served.name}
    assert decide_take(entry, row.head, bucket, Store.B, known) is Take.TAKE
    assert decide_take(entry, row.head, bucket, Store.B, ()) is Take.FETCH
    assert decide_take(entry, None, bucket, Store.B, known) is Take.FETCH
    assert decide_take(entry, replace(row, payload=b"v").head, bucket, Store.B, known) is Take.FETCH
    for version in (Version(2, 3), Version(1, 4)):
        assert decide_take(entry, replace(row, version=version).head, bucket, Store.B, known) is Take.FETCH
    for version in (Version(2, 5), Version(3, 1)):
        assert decide_take(entry, replace(row, version=version).head, bucket, Store.B, known) is Take.OLD
    assert decide_take(entry, row.head, replace(bucket, term=3), Store.B, known) is Take.OLD
    assert decide_take(entry, row.head, replace(bucket, term=1), Store.B, known) is Take.FETCH


def test_the_name_of_a_request_depends_on_all_that_a_retry_needs() -> None:
    served = Served("ann", "r1", b"h", Version(0, 3), b"answer")
    others = (
        replace(served, principal="bob"),
        replace(served, request_id="r2"),
        replace(served, request_hash=b"i"),
        replace(served, version=Version(0, 4)),
    )
    assert replace(served, answer=None).name == served.name
    assert len({one.name for one in (served, *others)}) == 5
