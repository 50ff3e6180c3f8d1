"""The methods of `sandbox.v1.SandboxService` as a backend runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b

from libs.contract.operations import CallContext, List, Read, Write
from libs.contract.requests import parse_request
from libs.ownership.limits import REQUEST_HASH_BYTES
from libs.ownership.model import Row
from libs.ownership.rules import Change
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.sandboxes import changes, leases
from libs.sandboxes.changes import Target
from libs.sandboxes.errors import SandboxNotFound
from libs.sandboxes.leases import check_token
from libs.sandboxes.lists import page_of
from libs.sandboxes.masks import select
from libs.sandboxes.validation import (
    COLLECTION,
    canonical_request_id,
    check_etag,
    check_fields,
    check_id,
    check_name,
    check_new,
)

WriteRequest = pb.CreateSandboxRequest | pb.UpdateSandboxRequest | pb.DeleteSandboxRequest | pb.UndeleteSandboxRequest
LeaseRequest = pb.AcquireLeaseRequest | pb.RenewLeaseRequest | pb.ReleaseLeaseRequest


class SandboxOperations:
    """`libs.contract.operations.Operations` of sandboxes. Has no state; the key of a sandbox is its name."""

    service = "sandbox.v1.SandboxService"

    def __init__(self) -> None:
        self._parsers: Mapping[str, Callable[[bytes, CallContext], Read | Write | List]] = {
            "CreateSandbox": _create,
            "GetSandbox": _get,
            "ListSandboxes": _list,
            "UpdateSandbox": _update,
            "DeleteSandbox": _delete,
            "UndeleteSandbox": _undelete,
            "AcquireLease": _acquire_lease,
            "RenewLease": _renew_lease,
            "ReleaseLease": _release_lease,
        }
        self.methods: Sequence[str] = tuple(self._parsers)

    def parse(self, method: str, request: bytes, context: CallContext) -> Read | Write | List:
        """Raises InvalidField. What depends on the record is checked by the change, or by the answer."""
        parser = self._parsers.get(method)
        if parser is None:
            raise ValueError(f"method {method!r} is not one of {', '.join(self.methods)}")
        return parser(request, context)


def _get(request: bytes, context: CallContext) -> Read:
    name = parse_request(pb.GetSandboxRequest, request).name
    check_name(name)
    return Read(name, partial(_answer, name))


def _answer(name: str, row: Row | None) -> bytes:
    if row is None or not row.live:
        raise SandboxNotFound(name)
    return row.payload


def _list(request: bytes, context: CallContext) -> List:
    return page_of(parse_request(pb.ListSandboxesRequest, request))


def _create(request: bytes, context: CallContext) -> Write:
    message = parse_request(pb.CreateSandboxRequest, request)
    made_id = message.sandbox_id or context.made_id
    check_id(made_id)
    check_new(message.sandbox)
    target = Target(COLLECTION + made_id, context.now_seconds)
    return _write("CreateSandbox", message, context, target, changes.create(target, message.sandbox))


def _update(request: bytes, context: CallContext) -> Write:
    message = parse_request(pb.UpdateSandboxRequest, request)
    sandbox = message.sandbox
    check_name(sandbox.name, "sandbox.name")
    check_etag(sandbox.etag, "sandbox.etag")
    selection = select(message.update_mask.paths, sandbox)
    check_fields(sandbox, selection.fields, selection.spec_fields)
    target = Target(sandbox.name, context.now_seconds, sandbox.etag)
    check_token(message.lease_token, "lease_token")
    change = changes.update(target, sandbox, selection, allow_missing=message.allow_missing)
    change = leases.guarded(change, message.lease_token)
    return _write("UpdateSandbox", message, context, target, change)


def _delete(request: bytes, context: CallContext) -> Write:
    message = parse_request(pb.DeleteSandboxRequest, request)
    target = _named(message, context)
    change = leases.guarded(changes.delete(target, allow_missing=message.allow_missing), message.lease_token)
    return _write("DeleteSandbox", message, context, target, change)


def _undelete(request: bytes, context: CallContext) -> Write:
    message = parse_request(pb.UndeleteSandboxRequest, request)
    target = _named(message, context)
    change = leases.guarded(changes.undelete(target), message.lease_token)
    return _write("UndeleteSandbox", message, context, target, change)


def _acquire_lease(request: bytes, context: CallContext) -> Write:
    message = parse_request(pb.AcquireLeaseRequest, request)
    return _lease_write("AcquireLease", message, context, partial(leases.acquire, request=message))


def _renew_lease(request: bytes, context: CallContext) -> Write:
    message = parse_request(pb.RenewLeaseRequest, request)
    return _lease_write("RenewLease", message, context, partial(leases.renew, request=message))


def _release_lease(request: bytes, context: CallContext) -> Write:
    message = parse_request(pb.ReleaseLeaseRequest, request)
    return _lease_write("ReleaseLease", message, context, partial(leases.release, request=message))


def _lease_write(method: str, message: LeaseRequest, context: CallContext, change: Callable[[Target], Change]) -> Write:
    leases.check_request(message)
    request_id = canonical_request_id(message.request_id or context.request_id)
    target = Target(message.name, context.now_seconds)
    return Write(message.name, request_id, _request_hash(method, message), change(target), under_lock=True)


def _named(message: pb.DeleteSandboxRequest | pb.UndeleteSandboxRequest, context: CallContext) -> Target:
    check_name(message.name)
    check_etag(message.etag, "etag")
    check_token(message.lease_token, "lease_token")
    return Target(message.name, context.now_seconds, message.etag)


def _write(method: str, message: WriteRequest, context: CallContext, target: Target, change: Change) -> Write:
    request_id = canonical_request_id(message.request_id or context.request_id)
    if message.validate_only:
        change = changes.only_checked(change)
    return Write(target.name, request_id, _request_hash(method, message), change)


def _request_hash(method: str, message: WriteRequest | LeaseRequest) -> bytes:
    """Of what is asked: the same whatever the order of map entries and the spelling of the request's id."""
    request_id = message.request_id
    message.ClearField("request_id")
    data = message.SerializeToString(deterministic=True)
    message.request_id = request_id
    return blake2b(method.encode() + b"\0" + data, digest_size=REQUEST_HASH_BYTES).digest()
