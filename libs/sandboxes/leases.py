"""Leases that clients hold on sandboxes.

* A lease is a field of the sandbox, so it is handed over, copied and compared with it. Acquire, renew and release are
  writes like any other: each makes a version, an event and a served request.
* The token is the version of the grant. Versions of a record only grow, at either store and after any restart of a lock
  server, so tokens only grow. A renewal keeps the token.
* A lease expires once the owning store has known the grant or the last renewal for its TTL. Each store counts its own
  ticks, from when it made or learned it. So a lease never expires early; a handoff or an outage restarts its TTL.
  Expiry does not use the wall clock.
* Only one holder has the lease. If the same holder acquires again, it gets a new token: a restarted process must not
  share the token of its predecessor, which may only be paused.
* A write with a token is refused unless that lease is held, even if no other client acquired it since. A write without
  a token ignores leases: older clients have none, and etags guard them.
* A delete keeps the lease, so that its holder may undelete. A new sandbox of the same name has none.
"""

from __future__ import annotations

import re

from libs.errors import InvalidField
from libs.ownership.limits import LONGEST_TICK_SECONDS
from libs.ownership.model import Answered, Row, Version
from libs.ownership.rules import Change, Resource
from libs.pb.sandbox.v1.sandbox_pb2 import Lease, Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import AcquireLeaseRequest, ReleaseLeaseRequest, RenewLeaseRequest
from libs.sandboxes.changes import Target, set_time, written
from libs.sandboxes.errors import LeaseHeld, LeaseLost, SandboxNotFound
from libs.sandboxes.validation import check_name

MAX_HOLDER_CHARACTERS = 128
MIN_TTL_SECONDS = 1
MAX_TTL_SECONDS = 24 * 3600
LONGEST_RETRY_SECONDS = 5.0
"""Longest retry delay after LeaseHeld: a holder may release its lease early."""

_TOKEN_PATTERN = re.compile(r"[0-9]{1,19}\.[0-9]{1,19}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def token_of(version: Version) -> str:
    return f"{version.term}.{version.revision}"


def mark_of(sandbox: Sandbox) -> str:
    """Id of a grant or renewal; "" without a lease. A store restarts its count when the mark changes."""
    return f"{sandbox.lease.token}/{sandbox.lease.renewals}" if sandbox.HasField("lease") else ""


def remaining_seconds(row: Row, lease: Lease) -> float:
    """Upper bound of the time left; 0 if the lease has ended. One tick is added, since a grant is seen at the next
    tick."""
    ttl_seconds = lease.ttl.seconds + lease.ttl.nanos / 1e9
    return max(0.0, ttl_seconds + LONGEST_TICK_SECONDS - row.lease_seconds)


def guarded(change: Change, target: Target, token: str) -> Change:
    """Make the change depend on the lease of this token. "" checks no lease. Raises LeaseLost."""
    if not token:
        return change

    def check(row: Row | None, version: Version) -> Resource | Answered:
        after = change(row, version)
        _check_held(row, target, token)
        return after

    return check


def acquire(target: Target, request: AcquireLeaseRequest) -> Change:

    def change(row: Row | None, version: Version) -> Resource:
        row, sandbox = _found(row, target)
        lease = sandbox.lease
        if lease.token and lease.holder != request.holder and (left := remaining_seconds(row, lease)):
            raise LeaseHeld(target.name, lease.holder, min(left, LONGEST_RETRY_SECONDS))
        sandbox.lease.CopyFrom(Lease(holder=request.holder, ttl=request.ttl, token=token_of(version)))
        set_time(sandbox.lease.acquire_time, target.now_seconds)
        return written(sandbox, target, version, live=True)

    return change


def check_late(target: Target, row: Row, version: Version) -> None:
    """Check that the record still shows the grant of this AcquireLease, whose stored answer is gone. Raises LeaseLost.

    A later AcquireLease, maybe under the same name, has another token, which must not be returned for this one.
    """
    token, current = token_of(version), target.model_of(row).lease.token
    if token != current:
        raise LeaseLost(token, current)


def renew(target: Target, request: RenewLeaseRequest) -> Change:

    def change(row: Row | None, version: Version) -> Resource:
        row, sandbox = _found(row, target)
        _check_held(row, target, request.token)
        sandbox.lease.renewals += 1
        if request.HasField("ttl"):
            sandbox.lease.ttl.CopyFrom(request.ttl)
        set_time(sandbox.lease.renew_time, target.now_seconds)
        return written(sandbox, target, version, live=True)

    return change


def release(target: Target, request: ReleaseLeaseRequest) -> Change:

    def change(row: Row | None, version: Version) -> Resource:
        row, sandbox = _found(row, target)
        _check_held(row, target, request.token)
        sandbox.ClearField("lease")
        return written(sandbox, target, version, live=True)

    return change


def _found(row: Row | None, target: Target) -> tuple[Row, Sandbox]:
    if row is None or not row.live:
        raise SandboxNotFound(target.name)
    return row, target.model_of(row)


def _check_held(row: Row | None, target: Target, token: str) -> None:
    lease = target.model_of(row).lease if row is not None and row.payload else Lease()
    if row is None or lease.token != token or not remaining_seconds(row, lease):
        raise LeaseLost(token, lease.token)


def check_request(request: AcquireLeaseRequest | RenewLeaseRequest | ReleaseLeaseRequest) -> None:
    """Check all fields but the request id. Raises InvalidField."""
    check_name(request.name)
    if isinstance(request, AcquireLeaseRequest):
        _check_holder(request.holder)
    else:
        check_token(request.token, "token")
        if not request.token:
            raise InvalidField("token", "", "give the token that AcquireLease returned")
    if isinstance(request, AcquireLeaseRequest) or (isinstance(request, RenewLeaseRequest) and request.HasField("ttl")):
        _check_ttl(request)


def check_token(value: str, field: str) -> None:
    """Check the form of a token. An empty one is valid: it asks for no lease."""
    if value and _TOKEN_PATTERN.fullmatch(value) is None:
        raise InvalidField(field, value, 'give the token of the lease as it was, such as "0.7"')


def _check_holder(value: str) -> None:
    if not 0 < len(value) <= MAX_HOLDER_CHARACTERS or _CONTROL.search(value):
        expected = f"required: 1 to {MAX_HOLDER_CHARACTERS} characters, no control characters"
        raise InvalidField("holder", value, expected)


def _check_ttl(request: AcquireLeaseRequest | RenewLeaseRequest) -> None:
    ttl = request.ttl
    seconds = ttl.seconds + ttl.nanos / 1e9
    if not (0 <= ttl.nanos < 10**9 and MIN_TTL_SECONDS <= seconds <= MAX_TTL_SECONDS):
        value = f"{ttl.seconds} s {ttl.nanos} ns"
        raise InvalidField("ttl", value, f"{MIN_TTL_SECONDS} to {MAX_TTL_SECONDS} seconds, nanos below 10^9")
