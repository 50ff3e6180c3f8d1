"""Methods of `sandbox.v1.SandboxService` as a backend runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

from google.protobuf.message import DecodeError

from libs.contract.operations import CallContext, List, Parsed, Read, Watch, Write
from libs.contract.requests import parse_request
from libs.contract.schemas import SchemaUnknown
from libs.errors import InvalidField
from libs.ownership.limits import REQUEST_HASH_BYTES
from libs.ownership.model import Answered, Row, Version
from libs.ownership.rules import Change, Resource
from libs.ownership.wire import UnreadableRecord
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.sandboxes import changes, leases
from libs.sandboxes.changes import Target
from libs.sandboxes.errors import SandboxNotFound
from libs.sandboxes.filter import parse_filter
from libs.sandboxes.leases import check_token
from libs.sandboxes.lists import page_of
from libs.sandboxes.masks import select
from libs.sandboxes.repairs import replaced
from libs.sandboxes.schema import SCHEMAS, Form, Schemas
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


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller's context and schema version."""

    context: CallContext
    schemas: Schemas
    form: Form

    def target(self, name: str, etag: str = "") -> Target:
        return Target(name, self.context.now_seconds, etag, self.form.version, self.schemas)

    def model_of(self, sandbox: Sandbox) -> Sandbox:
        """The request's sandbox in the newest schema version. Raises InvalidField."""
        try:
            return self.schemas.model_of_request(sandbox, self.form.version)
        except DecodeError as error:
            expected = f"a sandbox of schema version {self.form.version} with texts in UTF-8 ({error})"
            raise InvalidField("sandbox", f"{sandbox.ByteSize()} bytes", expected) from None

    def item(self, row: Row) -> bytes:
        """The record in the caller's schema version. Raises SchemaUnknown."""
        return self.schemas.converted(row, self.form.version)

    def reply(self, answer: bytes) -> bytes:
        """The stored answer in the caller's schema version. Raises SchemaUnknown."""
        return self.schemas.answer(answer, self.form.version)

    def write(self, method: str, message: WriteRequest | LeaseRequest, target: Target, change: Change) -> Write:
        """Make a Write. Its hash covers the request as it was received, in any schema version.

        Errors of the change name fields as the caller does.
        """
        request_id = canonical_request_id(message.request_id or self.context.request_id)
        form = self.form

        def in_own_names(row: Row | None, version: Version) -> Resource | Answered:
            with form.own_field_names():
                return change(row, version)

        change_it = change if form.paths is None else in_own_names
        return Write(target.name, request_id, _request_hash(method, message), change_it, reply=self.reply)


class SandboxOperations:
    """`Operations` of sandboxes. The key of a sandbox is its name."""

    service = "sandbox.v1.SandboxService"

    def __init__(self, schemas: Schemas = SCHEMAS) -> None:
        """`schemas`: the schema versions that this program understands."""
        self._schemas = schemas
        self._parsers: Mapping[str, Callable[[bytes, Caller], Parsed]] = {
            "CreateSandbox": _create,
            "GetSandbox": _get,
            "ListSandboxes": _list,
            "WatchSandboxes": _watch,
            "UpdateSandbox": _update,
            "DeleteSandbox": _delete,
            "UndeleteSandbox": _undelete,
            "AcquireLease": _acquire_lease,
            "RenewLease": _renew_lease,
            "ReleaseLease": _release_lease,
        }
        self.methods: Sequence[str] = tuple(self._parsers)

    def parse(self, method: str, request: bytes, context: CallContext) -> Parsed:
        """Raises InvalidField. Checks that depend on the record are made later, by the change or the answer."""
        parser = self._parsers.get(method)
        if parser is None:
            raise ValueError(f"method {method!r} is not one of {', '.join(self.methods)}")
        caller = Caller(context, self._schemas, self._schemas.form(context.schema_version))
        if caller.form.paths is None:
            return parser(request, caller)
        with caller.form.own_field_names():
            return parser(request, caller)

    def check_row(self, row: Row) -> None:
        """Raises UnreadableRecord.

        A tombstone without content may have any key: the deletion of a corrupt record leaves one, and the other store
        must accept it.
        """
        if not row.payload and not row.live:
            return
        if not row.key.startswith(COLLECTION) or row.key == COLLECTION:
            raise UnreadableRecord(f"key: {row.key!r} is not {COLLECTION} and an id", field="key")
        try:
            sandbox = self._schemas.model_of(row)
        except SchemaUnknown:
            return
        except (DecodeError, InvalidField) as error:
            raise UnreadableRecord(f"payload: it is not a sandbox: {error}", field="payload") from None
        if sandbox.name != row.key:
            raise UnreadableRecord(f"payload: its sandbox is named {sandbox.name!r}, not {row.key!r}", field="payload")

    def replaced(self, key: str, content: Resource, now_seconds: float, *, as_kept: bool) -> Change:
        return replaced(key, content, now_seconds, self._schemas, as_kept=as_kept)

    def written_seconds(self, row: Row) -> float | None:
        try:
            sandbox = self._schemas.model_of(row)
        except (DecodeError, InvalidField, SchemaUnknown):
            return None
        return sandbox.update_time.ToNanoseconds() / 1e9 if sandbox.HasField("update_time") else None


def _get(request: bytes, caller: Caller) -> Read:
    name = parse_request(pb.GetSandboxRequest, request).name
    check_name(name)
    return Read(name, partial(_answer, name, caller))


def _answer(name: str, caller: Caller, row: Row | None) -> bytes:
    if row is None or not row.live:
        raise SandboxNotFound(name)
    return caller.item(row)


def _list(request: bytes, caller: Caller) -> List:
    return replace(page_of(parse_request(pb.ListSandboxesRequest, request)), item=caller.item)


def _watch(request: bytes, caller: Caller) -> Watch:
    message = parse_request(pb.WatchSandboxesRequest, request)
    return Watch(parse_filter(message.filter, show_deleted=message.show_deleted), caller.item)


def _create(request: bytes, caller: Caller) -> Write:
    message = parse_request(pb.CreateSandboxRequest, request)
    made_id = message.sandbox_id or caller.context.made_id
    check_id(made_id)
    sandbox = caller.model_of(message.sandbox)
    check_new(sandbox)
    target = caller.target(COLLECTION + made_id)
    return _write("CreateSandbox", message, caller, target, changes.create(target, sandbox))


def _update(request: bytes, caller: Caller) -> Write:
    message = parse_request(pb.UpdateSandboxRequest, request)
    check_name(message.sandbox.name, "sandbox.name")
    check_etag(message.sandbox.etag, "sandbox.etag")
    sandbox = caller.model_of(message.sandbox)
    selection = select(message.update_mask.paths, sandbox, caller.form.paths)
    check_fields(sandbox, selection.fields, selection.spec_fields)
    target = caller.target(sandbox.name, sandbox.etag)
    check_token(message.lease_token, "lease_token")
    change = changes.update(target, sandbox, selection, allow_missing=message.allow_missing)
    change = leases.guarded(change, target, message.lease_token)
    return _write("UpdateSandbox", message, caller, target, change)


def _delete(request: bytes, caller: Caller) -> Write:
    message = parse_request(pb.DeleteSandboxRequest, request)
    target = _named(message, caller)
    change = leases.guarded(changes.delete(target, allow_missing=message.allow_missing), target, message.lease_token)
    return _write("DeleteSandbox", message, caller, target, change)


def _undelete(request: bytes, caller: Caller) -> Write:
    message = parse_request(pb.UndeleteSandboxRequest, request)
    target = _named(message, caller)
    change = leases.guarded(changes.undelete(target), target, message.lease_token)
    return _write("UndeleteSandbox", message, caller, target, change)


def _acquire_lease(request: bytes, caller: Caller) -> Write:
    message = parse_request(pb.AcquireLeaseRequest, request)
    write = _lease_write("AcquireLease", message, caller, partial(leases.acquire, request=message))
    return replace(write, check_late=partial(leases.check_late, caller.target(message.name)))


def _renew_lease(request: bytes, caller: Caller) -> Write:
    message = parse_request(pb.RenewLeaseRequest, request)
    return _lease_write("RenewLease", message, caller, partial(leases.renew, request=message))


def _release_lease(request: bytes, caller: Caller) -> Write:
    message = parse_request(pb.ReleaseLeaseRequest, request)
    return _lease_write("ReleaseLease", message, caller, partial(leases.release, request=message))


def _lease_write(method: str, message: LeaseRequest, caller: Caller, change: Callable[[Target], Change]) -> Write:
    leases.check_request(message)
    target = caller.target(message.name)
    return replace(caller.write(method, message, target, change(target)), under_lock=True)


def _named(message: pb.DeleteSandboxRequest | pb.UndeleteSandboxRequest, caller: Caller) -> Target:
    check_name(message.name)
    check_etag(message.etag, "etag")
    check_token(message.lease_token, "lease_token")
    return caller.target(message.name, message.etag)


def _write(method: str, message: WriteRequest, caller: Caller, target: Target, change: Change) -> Write:
    return replace(caller.write(method, message, target, change), only_checks=message.validate_only)


def _request_hash(method: str, message: WriteRequest | LeaseRequest) -> bytes:
    """Hash of the request without its id, so that neither the spelling of the id nor the order of map entries
    matters."""
    request_id = message.request_id
    message.ClearField("request_id")
    data = message.SerializeToString(deterministic=True)
    message.request_id = request_id
    return blake2b(method.encode() + b"\0" + data, digest_size=REQUEST_HASH_BYTES).digest()
