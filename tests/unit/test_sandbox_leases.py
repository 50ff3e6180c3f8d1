"""Leases on one record: holder, expiry, and the use of its token."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from libs.errors import InvalidField
from libs.ownership.limits import LONGEST_TICK_SECONDS
from libs.ownership.model import Version
from libs.pb.sandbox.v1.sandbox_pb2 import Lease, Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import (
    AcquireLeaseRequest,
    CreateSandboxRequest,
    DeleteSandboxRequest,
    ReleaseLeaseRequest,
    RenewLeaseRequest,
    UndeleteSandboxRequest,
    UpdateSandboxRequest,
)
from libs.sandboxes.columns import sandbox_columns
from libs.sandboxes.errors import LeaseHeld, LeaseLost, SandboxNotFound
from libs.sandboxes.leases import LONGEST_RETRY_SECONDS, MAX_TTL_SECONDS
from tests.unit.sandboxes import NAME, OneRecord, a_sandbox, parse_write

TTL = 10
ENDED = TTL + LONGEST_TICK_SECONDS


@pytest.fixture
def record() -> OneRecord:
    """A live sandbox without a lease."""
    one = OneRecord()
    one.call("CreateSandbox", CreateSandboxRequest(sandbox=a_sandbox(), sandbox_id="one"))
    return one


def acquire(holder: str = "ann", seconds: float = TTL) -> AcquireLeaseRequest:
    whole = int(seconds)
    ttl = Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))
    return AcquireLeaseRequest(name=NAME, holder=holder, ttl=ttl)


def renew(token: str, seconds: int = 0) -> RenewLeaseRequest:
    return RenewLeaseRequest(name=NAME, token=token, ttl=Duration(seconds=seconds) if seconds else None)


def release(token: str) -> ReleaseLeaseRequest:
    return ReleaseLeaseRequest(name=NAME, token=token)


def update(token: str) -> UpdateSandboxRequest:
    return UpdateSandboxRequest(sandbox=Sandbox(name=NAME, labels={"n": "1"}), lease_token=token)


def known_for(record: OneRecord, seconds: float) -> None:
    """The store has known the lease for so long."""
    assert record.row is not None
    record.row = replace(record.row, lease_seconds=seconds)


def test_a_lease_has_its_holder_its_time_and_the_version_of_the_grant(record: OneRecord) -> None:
    held = record.call("AcquireLease", acquire())
    assert (held.lease.holder, held.lease.ttl.seconds, held.lease.token, held.revision) == ("ann", TTL, "0.2", 2)
    assert held.lease.acquire_time == held.update_time


def test_what_another_one_holds_is_refused_with_holder_and_a_time_to_wait(record: OneRecord) -> None:
    record.call("AcquireLease", acquire())
    known_for(record, 8.0)
    before = record.row
    with pytest.raises(LeaseHeld) as caught:
        record.call("AcquireLease", acquire("ben"))
    assert (caught.value.metadata["holder"], caught.value.retry_seconds) == ("ann", 4.0)
    assert record.row == before
    known_for(record, 0.0)
    with pytest.raises(LeaseHeld) as caught:
        record.call("AcquireLease", acquire("ben"))
    assert caught.value.retry_seconds == LONGEST_RETRY_SECONDS


def test_the_same_holder_gets_a_new_token_and_the_old_one_is_void(record: OneRecord) -> None:
    first = record.call("AcquireLease", acquire()).lease.token
    second = record.call("AcquireLease", acquire()).lease.token
    assert (first, second) == ("0.2", "0.3")
    with pytest.raises(LeaseLost):
        record.call("UpdateSandbox", update(first))
    assert record.call("UpdateSandbox", update(second)).revision == 4


def test_a_lease_ends_after_its_time_and_no_earlier(record: OneRecord) -> None:
    token = record.call("AcquireLease", acquire()).lease.token
    known_for(record, ENDED - 0.001)
    with pytest.raises(LeaseHeld):
        record.call("AcquireLease", acquire("ben"))
    known_for(record, ENDED)
    for method, request in (
        ("UpdateSandbox", update(token)),
        ("RenewLease", renew(token)),
        ("ReleaseLease", release(token)),
    ):
        with pytest.raises(LeaseLost):
            record.call(method, request)
    assert record.call("AcquireLease", acquire("ben")).lease.holder == "ben"


def test_a_renewal_keeps_the_token_and_begins_the_time_anew(record: OneRecord) -> None:
    token = record.call("AcquireLease", acquire()).lease.token
    assert record.row is not None
    before = sandbox_columns(record.row).lease
    again = record.call("RenewLease", renew(token)).lease
    assert (again.token, again.ttl.seconds, again.renewals) == (token, TTL, 1)
    # By this the store sees that its count begins anew, whatever any clock says.
    assert sandbox_columns(record.row).lease not in ("", before)
    assert record.call("RenewLease", renew(token, 30)).lease.ttl.seconds == 30


def test_a_lease_lasts_for_the_nanoseconds_of_its_time_too(record: OneRecord) -> None:
    record.call("AcquireLease", acquire(seconds=1.5))
    known_for(record, 1.5 + LONGEST_TICK_SECONDS - 0.001)
    with pytest.raises(LeaseHeld):
        record.call("AcquireLease", acquire("ben"))


def test_a_new_grant_begins_the_time_anew(record: OneRecord) -> None:
    """A store counts from when it sees the mark change. With the mark of the grant before, it would end too early."""
    marks = set()
    for holder in ("ann", "ann", "ben"):
        record.call("AcquireLease", acquire(holder))
        assert record.row is not None
        marks.add(sandbox_columns(record.row).lease)
        known_for(record, ENDED)
    assert len(marks) == 3 and "" not in marks


def test_a_late_answer_of_a_grant_gives_nobody_the_token_of_a_later_one(record: OneRecord) -> None:
    """The answer was not kept, and the same holder has acquired the lease again since."""
    write = parse_write("AcquireLease", acquire())
    for _ in range(2):
        record.call("AcquireLease", acquire())
    assert record.row is not None
    write.check_late(record.row, Version(0, 3))
    with pytest.raises(LeaseLost):
        write.check_late(record.row, Version(0, 2))


def test_a_lease_that_was_given_back_is_anybodys(record: OneRecord) -> None:
    token = record.call("AcquireLease", acquire()).lease.token
    assert not record.call("ReleaseLease", release(token)).HasField("lease")
    assert record.row is not None and sandbox_columns(record.row).lease == ""
    with pytest.raises(LeaseLost):
        record.call("RenewLease", renew(token))
    assert record.call("AcquireLease", acquire("ben")).lease.token == "0.4"


@pytest.mark.parametrize(
    ("method", "request_of"),
    [
        ("UpdateSandbox", update),
        ("DeleteSandbox", lambda token: DeleteSandboxRequest(name=NAME, lease_token=token)),
        ("RenewLease", renew),
        ("ReleaseLease", release),
    ],
)
def test_a_write_with_a_token_that_is_not_the_leases_changes_nothing(
    record: OneRecord, method: str, request_of: type[Message]
) -> None:
    record.call("AcquireLease", acquire())
    before = record.row
    for token in ("0.1", "0.3", "1.2"):
        with pytest.raises(LeaseLost):
            record.call(method, request_of(token))
    assert record.row == before


def test_a_write_without_a_token_does_not_look_at_leases(record: OneRecord) -> None:
    token = record.call("AcquireLease", acquire()).lease.token
    assert record.call("UpdateSandbox", update("")).lease.token == token
    record.call("DeleteSandbox", DeleteSandboxRequest(name=NAME))


def test_whoever_deleted_it_under_a_lease_may_undelete_it_under_the_same_one(record: OneRecord) -> None:
    token = record.call("AcquireLease", acquire()).lease.token
    record.call("DeleteSandbox", DeleteSandboxRequest(name=NAME, lease_token=token))
    with pytest.raises(SandboxNotFound):
        record.call("RenewLease", renew(token))
    with pytest.raises(LeaseLost):
        record.call("UndeleteSandbox", UndeleteSandboxRequest(name=NAME, lease_token="0.1"))
    back = record.call("UndeleteSandbox", UndeleteSandboxRequest(name=NAME, lease_token=token))
    assert back.lease.token == token


def test_a_new_sandbox_of_the_name_begins_without_a_lease_and_its_tokens_go_on(record: OneRecord) -> None:
    token = record.call("AcquireLease", acquire()).lease.token
    record.call("DeleteSandbox", DeleteSandboxRequest(name=NAME))
    wanted = a_sandbox(lease=Lease(holder="eve", token="9.9", ttl=Duration(seconds=TTL)))
    made = record.call("CreateSandbox", CreateSandboxRequest(sandbox=wanted, sandbox_id="one"))
    assert not made.HasField("lease")
    with pytest.raises(LeaseLost):
        record.call("UpdateSandbox", update(token))
    assert record.call("AcquireLease", acquire("ben")).lease.token == "0.5"


def test_an_update_takes_no_lease_from_its_request(record: OneRecord) -> None:
    request = UpdateSandboxRequest(sandbox=Sandbox(name=NAME, lease=Lease(holder="eve", token="9.9")))
    assert not record.call("UpdateSandbox", request).HasField("lease")
    request.update_mask.paths.append("lease")
    with pytest.raises(InvalidField, match="AcquireLease"):
        parse_write("UpdateSandbox", request)


def test_there_is_no_lease_on_what_does_not_exist() -> None:
    for method, request in (
        ("AcquireLease", acquire()),
        ("RenewLease", renew("0.1")),
        ("ReleaseLease", release("0.1")),
    ):
        with pytest.raises(SandboxNotFound):
            OneRecord().call(method, request)
    missing = update("0.1")
    missing.allow_missing = True
    missing.sandbox.MergeFrom(a_sandbox())
    with pytest.raises(LeaseLost):
        OneRecord().call("UpdateSandbox", missing)


def test_a_dry_run_refuses_a_lost_token_too(record: OneRecord) -> None:
    request = update("0.9")
    request.validate_only = True
    with pytest.raises(LeaseLost):
        record.call("UpdateSandbox", request)


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("AcquireLease", acquire(holder=""), "holder"),
        ("AcquireLease", acquire(holder="x" * 129), "holder"),
        ("AcquireLease", acquire(holder="a\nb"), "holder"),
        ("AcquireLease", acquire(seconds=0.9), "ttl"),
        ("AcquireLease", acquire(seconds=MAX_TTL_SECONDS + 1), "ttl"),
        ("AcquireLease", AcquireLeaseRequest(name=NAME, holder="ann"), "ttl"),
        ("AcquireLease", AcquireLeaseRequest(name=NAME, holder="a", ttl=Duration(seconds=2, nanos=-1)), "ttl"),
        ("AcquireLease", AcquireLeaseRequest(name="x", holder="ann"), "name"),
        ("RenewLease", RenewLeaseRequest(name=NAME), "token"),
        ("RenewLease", RenewLeaseRequest(name=NAME, token="2"), "token"),
        ("RenewLease", RenewLeaseRequest(name=NAME, token="0.2", ttl=Duration()), "ttl"),
        ("ReleaseLease", ReleaseLeaseRequest(name=NAME, token='"0-2"'), "token"),
        ("ReleaseLease", ReleaseLeaseRequest(name=NAME, token="0.2", request_id="1"), "request_id"),
        ("UpdateSandbox", update("two"), "lease_token"),
        ("DeleteSandbox", DeleteSandboxRequest(name=NAME, lease_token="0-2"), "lease_token"),
        ("UndeleteSandbox", UndeleteSandboxRequest(name=NAME, lease_token="."), "lease_token"),
    ],
)
def test_bad_requests_name_the_field(method: str, request_: Message, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_write(method, request_)
    assert caught.value.field == field


def test_lease_operations_are_made_under_the_lock_and_nothing_else_is() -> None:
    for method, request in (
        ("AcquireLease", acquire()),
        ("RenewLease", renew("0.1")),
        ("ReleaseLease", release("0.1")),
    ):
        assert parse_write(method, request).under_lock
    assert not parse_write("UpdateSandbox", update("0.1")).under_lock
    assert not parse_write("UndeleteSandbox", UndeleteSandboxRequest(name=NAME)).under_lock


def test_a_token_is_the_version_of_its_grant_in_a_later_term_too(record: OneRecord) -> None:
    assert record.row is not None
    record.row = replace(record.row, version=Version(3, 7))
    assert record.call("AcquireLease", acquire()).lease.token == "3.8"
