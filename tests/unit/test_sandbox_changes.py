"""Create, update, delete and undelete, on one record."""

import uuid
from dataclasses import replace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from libs.contract.schemas import SchemaUnknown
from libs.errors import BatonError, InvalidField
from libs.ownership.errors import RecordTooLarge
from libs.ownership.limits import MAX_PAYLOAD_BYTES
from libs.ownership.model import NEVER, Answered, Row, Store, Version
from libs.ownership.rules import Resource
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import (
    CreateSandboxRequest,
    DeleteSandboxRequest,
    GetSandboxRequest,
    UndeleteSandboxRequest,
    UpdateSandboxRequest,
)
from libs.sandboxes.errors import EtagMismatch, IllegalStateTransition, SandboxAlreadyExists, SandboxNotFound
from libs.sandboxes.schema import SCHEMAS
from libs.sandboxes.transitions import NAMES, NUMBERS, TRANSITIONS
from tests.unit.sandboxes import NAME, REQUEST_ID, OneRecord, a_sandbox, parse_write, with_newer_field

CREATE = CreateSandboxRequest(sandbox=a_sandbox(), sandbox_id="one")
GET = GetSandboxRequest(name=NAME)
DELETE = DeleteSandboxRequest(name=NAME)
UNDELETE = UndeleteSandboxRequest(name=NAME)
STUB = Row(NAME, Version(0, 1), Store.A, NEVER, live=False, payload=b"", schema_version=0)


def update(*paths: str, allow_missing: bool = False, **fields: object) -> UpdateSandboxRequest:
    request = UpdateSandboxRequest(sandbox=Sandbox(name=NAME, **fields), allow_missing=allow_missing)  # type: ignore[arg-type]
    request.update_mask.paths.extend(paths)
    return request


@pytest.fixture
def record() -> OneRecord:
    """A live sandbox, PENDING."""
    one = OneRecord()
    one.call("CreateSandbox", CREATE)
    return one


@pytest.fixture
def deleted(record: OneRecord) -> OneRecord:
    record.call("DeleteSandbox", DELETE)
    return record


def test_a_new_sandbox_has_what_the_client_gave_and_what_the_service_makes() -> None:
    record = OneRecord(now_seconds=1_700_000_000.25)
    request = CreateSandboxRequest(sandbox=a_sandbox(), sandbox_id="one")
    # Nothing of this is for a client to say.
    request.sandbox.MergeFrom(
        Sandbox(name="x", uid="x", schema_version=9, revision=9, etag="x", delete_time=Timestamp(seconds=1))
    )
    made = record.call("CreateSandbox", request)
    now = Timestamp(seconds=1_700_000_001, nanos=250_000_000)
    expected = a_sandbox(name=NAME, state=Sandbox.STATE_PENDING, schema_version=2, revision=1, etag='"0-1"')
    expected.MergeFrom(Sandbox(uid=made.uid, create_time=now, update_time=now))
    assert made == expected
    assert uuid.UUID(made.uid).version == 5
    assert record.row is not None
    assert record.row.schema_version == 2
    assert record.row.live


def test_a_sandbox_without_an_id_gets_the_made_one() -> None:
    assert parse_write("CreateSandbox", CreateSandboxRequest(sandbox=a_sandbox())).key == f"sandboxes/{REQUEST_ID}"


def test_the_stored_payload_is_the_answer(record: OneRecord) -> None:
    assert record.row is not None
    assert record.row.payload == record.answers[-1]
    assert record.call("GetSandbox", GET) == Sandbox.FromString(record.answers[-1])


def test_a_live_sandbox_is_not_created_again(record: OneRecord) -> None:
    with pytest.raises(SandboxAlreadyExists, match=r"name: sandbox 'sandboxes/one' exists.*choose another sandbox_id"):
        record.call("CreateSandbox", CREATE)


def test_a_create_over_a_deleted_one_is_another_sandbox_whose_revision_goes_on(deleted: OneRecord) -> None:
    assert deleted.row is not None
    before = Sandbox.FromString(deleted.row.payload)
    after = deleted.call("CreateSandbox", CREATE)
    assert after.uid != before.uid
    assert after.create_time.seconds > before.create_time.seconds
    assert not after.HasField("delete_time")
    assert after.revision == before.revision + 1 == 3


def test_a_create_over_a_stub_goes_on_with_its_revision() -> None:
    assert OneRecord(STUB).call("CreateSandbox", CREATE).revision == 2


@pytest.mark.parametrize(
    ("method", "request_", "live"),
    [
        ("CreateSandbox", CREATE, False),
        ("UpdateSandbox", update("labels"), True),
        ("DeleteSandbox", DELETE, True),
        ("DeleteSandbox", DeleteSandboxRequest(name=NAME, allow_missing=True), False),
        ("UndeleteSandbox", UNDELETE, False),
    ],
)
def test_a_record_of_a_schema_that_is_not_known_is_not_written(
    method: str, request_: GetSandboxRequest, live: bool
) -> None:
    row = Row(NAME, Version(0, 1), Store.A, Version(0, 1), live, a_sandbox(name=NAME).SerializeToString(), 3)
    record = OneRecord(row)
    with pytest.raises(SchemaUnknown):
        record.call(method, request_)
    assert record.row is row


@pytest.mark.parametrize("row", [None, STUB], ids=["absent", "stub"])
@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetSandbox", GET),
        ("UpdateSandbox", update("state", state=Sandbox.STATE_RUNNING)),
        ("DeleteSandbox", DELETE),
        ("UndeleteSandbox", UNDELETE),
    ],
)
def test_what_never_existed_is_not_found(row: Row | None, method: str, request_: GetSandboxRequest) -> None:
    with pytest.raises(SandboxNotFound, match="name: there is no sandbox 'sandboxes/one': give the name") as caught:
        OneRecord(row).call(method, request_)
    assert caught.value.metadata == {"field": "name", "name": NAME}


@pytest.mark.parametrize(
    ("method", "request_"), [("GetSandbox", GET), ("UpdateSandbox", update()), ("DeleteSandbox", DELETE)]
)
def test_what_was_deleted_is_not_found(deleted: OneRecord, method: str, request_: GetSandboxRequest) -> None:
    with pytest.raises(SandboxNotFound):
        deleted.call(method, request_)


def test_a_sandbox_that_is_larger_than_a_write_may_make_it_can_be_made_smaller_or_deleted(record: OneRecord) -> None:
    """An old program has left it: no event can carry it, so it moves only after this."""
    assert record.row is not None
    large = Sandbox.FromString(record.row.payload)
    large.annotations["old"] = "x" * MAX_PAYLOAD_BYTES
    with_newer_field(large)
    record.row = before = replace(record.row, payload=large.SerializeToString())
    with pytest.raises(RecordTooLarge):
        record.call("UpdateSandbox", update("labels", labels={"k": "v"}))
    assert record.call("UpdateSandbox", update("annotations")).annotations == {}
    record.row = before
    gone = record.call("DeleteSandbox", DELETE)
    assert (gone.name, gone.uid, gone.account, gone.state) == (NAME, large.uid, large.account, large.state)
    assert gone.HasField("delete_time") and not gone.annotations
    assert record.row is not None and not record.row.live and len(record.row.payload) < 1000


def test_a_delete_leaves_a_tombstone_that_knows_when(record: OneRecord) -> None:
    before = record.call("GetSandbox", GET)
    answer = record.call("DeleteSandbox", DELETE)
    assert record.row is not None
    assert not record.row.live
    assert answer.delete_time == answer.update_time != before.update_time
    assert (answer.revision, answer.etag) == (2, '"0-2"')
    before.MergeFrom(Sandbox(revision=2, etag='"0-2"', update_time=answer.update_time, delete_time=answer.delete_time))
    assert answer == before


@pytest.mark.parametrize("absent", [None, STUB])
def test_a_delete_that_finds_nothing_answers_nothing_and_is_a_write_all_the_same(
    absent: Row | None, deleted: OneRecord
) -> None:
    """Else its retry, answered, would not be known to an earlier attempt that comes late."""
    write = parse_write("DeleteSandbox", DeleteSandboxRequest(name=NAME, allow_missing=True))
    assert write.change(absent, Version(0, 9)) == Resource(b"", False, SCHEMAS.newest, answer=b"")
    assert deleted.row is not None
    again = write.change(deleted.row, Version(0, 9))
    assert isinstance(again, Resource)
    assert (again.live, again.answer) == (False, b"")
    before, after = Sandbox.FromString(deleted.row.payload), Sandbox.FromString(again.payload)
    before.MergeFrom(Sandbox(revision=9, etag='"0-9"', update_time=after.update_time))
    assert after == before, "when it was deleted stays as it was"


def test_an_undelete_brings_back_what_was_there(record: OneRecord) -> None:
    before = record.call("GetSandbox", GET)
    record.call("DeleteSandbox", DELETE)
    after = record.call("UndeleteSandbox", UNDELETE)
    before.MergeFrom(Sandbox(revision=3, etag='"0-3"', update_time=after.update_time))
    assert after == before == record.call("GetSandbox", GET)


def test_a_live_sandbox_is_not_undeleted(record: OneRecord) -> None:
    with pytest.raises(SandboxAlreadyExists, match="only a deleted one"):
        record.call("UndeleteSandbox", UNDELETE)


def test_a_right_etag_lets_the_write_through(record: OneRecord) -> None:
    assert record.call("UpdateSandbox", update("labels", etag='"0-1"')).revision == 2
    assert record.call("DeleteSandbox", DeleteSandboxRequest(name=NAME, etag='"0-2"')).revision == 3
    assert record.call("UndeleteSandbox", UndeleteSandboxRequest(name=NAME, etag='"0-3"')).revision == 4


def test_an_etag_of_another_write_is_refused(record: OneRecord) -> None:
    with pytest.raises(EtagMismatch, match='etag: "0-7" does not name the last write, the sandbox has "0-1" now'):
        record.call("UpdateSandbox", update("labels", etag='"0-7"'))
    with pytest.raises(EtagMismatch):
        record.call("DeleteSandbox", DeleteSandboxRequest(name=NAME, etag='"1-1"'))
    record.call("DeleteSandbox", DELETE)
    with pytest.raises(EtagMismatch):
        record.call("UndeleteSandbox", UndeleteSandboxRequest(name=NAME, etag='"0-1"'))


def test_an_etag_outlives_a_handoff(record: OneRecord) -> None:
    row = record.row
    assert row is not None
    moved = Row(NAME, Version(0, 5), Store.A, row.write_version, live=True, payload=row.payload, schema_version=2)
    assert OneRecord(moved).call("UpdateSandbox", update("labels", etag='"0-1"')).etag == '"0-6"'


def test_an_update_without_a_change_still_is_a_write(record: OneRecord) -> None:
    before = record.call("GetSandbox", GET)
    after = record.call("UpdateSandbox", update())
    assert (after.revision, after.labels) == (2, before.labels)


@pytest.mark.parametrize("missing", ["absent", "stub", "deleted"])
def test_an_update_that_allows_a_missing_one_creates_it(missing: str, deleted: OneRecord) -> None:
    record = {"absent": OneRecord(), "stub": OneRecord(STUB), "deleted": deleted}[missing]
    request = UpdateSandboxRequest(sandbox=a_sandbox(name=NAME), allow_missing=True)
    request.update_mask.paths.append("labels")
    made = record.call("UpdateSandbox", request)
    assert (made.account, made.spec.image, made.state) == ("ann@example", "repo/image:1", Sandbox.STATE_PENDING)
    assert record.call("GetSandbox", GET) == made


def test_what_an_update_creates_must_be_whole() -> None:
    with pytest.raises(InvalidField, match=r"sandbox.account: '' is not valid: required"):
        OneRecord().call("UpdateSandbox", update("labels", allow_missing=True, labels={"a": "b"}))
    request = UpdateSandboxRequest(sandbox=a_sandbox(name=NAME, labels={"A": ""}), allow_missing=True)
    request.update_mask.paths.append("annotations")
    with pytest.raises(InvalidField, match=r"sandbox.labels key: 'A'"):
        OneRecord().call("UpdateSandbox", request)


def test_an_etag_never_names_what_is_missing() -> None:
    request = UpdateSandboxRequest(sandbox=a_sandbox(name=NAME, etag='"0-1"'), allow_missing=True)
    with pytest.raises(EtagMismatch, match="the sandbox does not exist"):
        OneRecord().call("UpdateSandbox", request)


def test_the_account_stays(record: OneRecord) -> None:
    expected = r"sandbox.account: 'bob' is not valid: leave it empty or 'ann@example': a sandbox keeps its account"
    with pytest.raises(InvalidField, match=expected):
        record.call("UpdateSandbox", update(account="bob"))
    whole = UpdateSandboxRequest(sandbox=a_sandbox(name=NAME, account="bob", state=Sandbox.STATE_RUNNING))
    whole.update_mask.paths.append("*")
    with pytest.raises(InvalidField, match=expected):
        record.call("UpdateSandbox", whole)
    assert record.call("UpdateSandbox", update(account="ann@example")).account == "ann@example"


@pytest.mark.parametrize("after", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("before", NUMBERS.values(), ids=NUMBERS)
def test_a_state_moves_only_as_the_table_says(record: OneRecord, before: int, after: int) -> None:
    assert record.row is not None
    stored = Sandbox.FromString(record.row.payload)
    stored.state = before  # type: ignore[assignment]
    row = Row(NAME, Version(0, 1), Store.A, Version(0, 1), True, stored.SerializeToString(), 2)
    there = OneRecord(row)
    request = update("state", state=after)
    if after == before or after in TRANSITIONS[before]:
        assert there.call("UpdateSandbox", request).state == after
        return
    with pytest.raises(
        IllegalStateTransition, match=f"sandbox.state: a sandbox cannot change from {NAMES[before]} to {NAMES[after]}"
    ):
        there.call("UpdateSandbox", request)
    assert there.row is row


@pytest.mark.parametrize(("state", "starts"), [("PENDING", True), ("RUNNING", True), ("STOPPED", False)])
def test_a_sandbox_starts_pending_or_running(state: str, starts: bool) -> None:
    request = CreateSandboxRequest(sandbox=a_sandbox(state=NUMBERS[state]), sandbox_id="one")
    if starts:
        assert OneRecord().call("CreateSandbox", request).state == NUMBERS[state]
        return
    with pytest.raises(IllegalStateTransition, match=r"from UNSPECIFIED to STOPPED.*goes to PENDING or RUNNING"):
        OneRecord().call("CreateSandbox", request)


def test_an_update_of_other_fields_leaves_a_state_that_this_version_does_not_know() -> None:
    stored = a_sandbox(name=NAME, state=42)
    row = Row(NAME, Version(0, 1), Store.A, Version(0, 1), True, stored.SerializeToString(), 2)
    assert OneRecord(row).call("UpdateSandbox", update("labels")).state == 42
    with pytest.raises(IllegalStateTransition, match="from 42 it goes to no state that this version knows"):
        OneRecord(row).call("UpdateSandbox", update("state", state=Sandbox.STATE_RUNNING))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("CreateSandbox", CreateSandboxRequest(sandbox=a_sandbox(), sandbox_id="one", validate_only=True)),
        ("UpdateSandbox", UpdateSandboxRequest(sandbox=a_sandbox(name=NAME), validate_only=True, allow_missing=True)),
    ],
)
def test_a_check_answers_with_what_would_be_and_changes_nothing(method: str, request_: CreateSandboxRequest) -> None:
    record = OneRecord()
    assert record.call(method, request_).etag == '"0-1"'
    assert record.row is None


def test_a_check_of_a_delete_and_an_undelete_changes_nothing(record: OneRecord) -> None:
    row = record.row
    checked = record.call("DeleteSandbox", DeleteSandboxRequest(name=NAME, validate_only=True))
    assert checked.HasField("delete_time")
    assert record.row is row
    record.call("DeleteSandbox", DELETE)
    row = record.row
    checked = record.call("UndeleteSandbox", UndeleteSandboxRequest(name=NAME, validate_only=True))
    assert not checked.HasField("delete_time")
    assert record.row is row


def test_a_check_finds_what_the_write_would_find(record: OneRecord) -> None:
    with pytest.raises(SandboxAlreadyExists):
        record.call("CreateSandbox", CreateSandboxRequest(sandbox=a_sandbox(), sandbox_id="one", validate_only=True))
    large = a_sandbox(annotations={"a": "x" * 200_000})
    large.spec.env.update({f"E{n}": "x" * 32_000 for n in range(10)})
    for check_only in (True, False):
        request = CreateSandboxRequest(sandbox=large, sandbox_id="two", validate_only=check_only)
        with pytest.raises(RecordTooLarge, match="the record would have 52"):
            OneRecord().call("CreateSandbox", request)


def test_fields_of_a_newer_contract_live_through_every_write() -> None:
    record = OneRecord()
    request = CreateSandboxRequest(sandbox=a_sandbox(), sandbox_id="one")
    with_newer_field(request.sandbox)
    with_newer_field(request.sandbox.spec)
    record.call("CreateSandbox", request)
    for method, write in [
        ("UpdateSandbox", update("state", state=Sandbox.STATE_RUNNING)),
        ("UpdateSandbox", update("spec", spec=a_sandbox().spec)),
        ("UpdateSandbox", update("*", spec=a_sandbox().spec, state=Sandbox.STATE_RUNNING)),
        ("DeleteSandbox", DELETE),
        ("UndeleteSandbox", UNDELETE),
    ]:
        answer = record.call(method, write).SerializeToString()
        assert answer.count(b"newer") == 2, method


def test_the_same_write_gives_the_same_bytes() -> None:
    for version in (Version(0, 1), Version(2, 7)):
        results = {_payload(parse_write("CreateSandbox", CREATE).change(None, version)) for _ in range(3)}
        assert len(results) == 1


def test_a_request_id_is_remembered_in_lower_case_and_does_not_count_as_what_is_asked() -> None:
    lower = parse_write("DeleteSandbox", DeleteSandboxRequest(name=NAME, request_id=REQUEST_ID))
    upper = parse_write("DeleteSandbox", DeleteSandboxRequest(name=NAME, request_id=REQUEST_ID.upper()))
    absent = parse_write("DeleteSandbox", DELETE)
    assert lower.request_id == upper.request_id == absent.request_id == REQUEST_ID
    assert lower.request_hash == upper.request_hash == absent.request_hash


def test_the_hash_of_a_request_tells_different_requests_apart_but_not_the_order_of_its_maps() -> None:
    def hash_of(method: str, request: DeleteSandboxRequest | CreateSandboxRequest | UndeleteSandboxRequest) -> bytes:
        return parse_write(method, request).request_hash

    labels = {f"k{number}": "v" for number in range(60)}
    one = CreateSandboxRequest(sandbox=a_sandbox(labels=labels), sandbox_id="one")
    other = CreateSandboxRequest(sandbox=a_sandbox(labels=dict(reversed(labels.items()))), sandbox_id="one")
    assert hash_of("CreateSandbox", one) == hash_of("CreateSandbox", other)
    assert hash_of("DeleteSandbox", DELETE) != hash_of("UndeleteSandbox", UNDELETE)
    assert hash_of("DeleteSandbox", DELETE) != hash_of("DeleteSandbox", DeleteSandboxRequest(name=NAME, etag='"0-1"'))
    assert len(hash_of("DeleteSandbox", DELETE)) == 16


def test_every_refusal_has_its_code_and_reason() -> None:
    table: list[tuple[type[BatonError], str, str]] = [
        (SandboxNotFound, "NOT_FOUND", "SANDBOX_NOT_FOUND"),
        (SandboxAlreadyExists, "ALREADY_EXISTS", "SANDBOX_ALREADY_EXISTS"),
        (EtagMismatch, "ABORTED", "ETAG_MISMATCH"),
        (IllegalStateTransition, "FAILED_PRECONDITION", "ILLEGAL_STATE_TRANSITION"),
    ]
    assert [(kind, kind.code, kind.reason) for kind, _, _ in table] == table


def _payload(outcome: Resource | Answered) -> bytes:
    assert isinstance(outcome, Resource)
    return outcome.payload


@pytest.mark.parametrize("name", ["sandboxes/Box1", "sandboxes/user@host", "sandboxes/a/b", "sandboxes/.."])
def test_a_sandbox_with_an_old_name_is_served(name: str) -> None:
    old = Sandbox(name=name, account="acme", state=Sandbox.STATE_RUNNING)
    first = Version(0, 1)
    record = OneRecord(Row(name, first, Store.A, first, live=True, payload=SCHEMAS.write(old, 1), schema_version=1))
    request = UpdateSandboxRequest(sandbox=Sandbox(name=name, labels={"team": "red"}))
    request.update_mask.paths.append("labels")
    assert record.call("UpdateSandbox", request).labels["team"] == "red"
    record.call("DeleteSandbox", DeleteSandboxRequest(name=name))
    assert record.call("UndeleteSandbox", UndeleteSandboxRequest(name=name)).name == name


@pytest.mark.parametrize("name", ["sandboxes/Box1", "sandboxes/a/b"])
def test_no_write_creates_a_sandbox_with_an_old_name(name: str) -> None:
    missing = UpdateSandboxRequest(sandbox=a_sandbox(name=name), allow_missing=True)
    with pytest.raises(InvalidField, match=r"sandbox\.name: .*an id has 1 to 63"):
        OneRecord().call("UpdateSandbox", missing)
    with pytest.raises(InvalidField, match=r"name: .*an id has 1 to 63"):
        OneRecord().call("DeleteSandbox", DeleteSandboxRequest(name=name, allow_missing=True))
