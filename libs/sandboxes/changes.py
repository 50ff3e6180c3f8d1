"""Writes of sandboxes: each maps the current row and the write's version to a new payload.

A write makes a new version even if it leaves every field as it was, so that each request has a revision of its own. The
same row, version and request give the same bytes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from libs.contract.schemas import RecordCorrupt
from libs.errors import InvalidField
from libs.ownership.limits import MAX_PAYLOAD_BYTES
from libs.ownership.model import Answered, Row, Version
from libs.ownership.rules import Change, Resource
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.sandboxes.errors import EtagMismatch, SandboxAlreadyExists, SandboxNotFound
from libs.sandboxes.masks import Selection, apply
from libs.sandboxes.schema import NEWEST, SCHEMAS, Schemas
from libs.sandboxes.transitions import INITIAL, UNSPECIFIED, check_transition
from libs.sandboxes.validation import check_new, check_new_name

_UIDS = uuid.uuid5(uuid.NAMESPACE_URL, "sandbox.v1.Sandbox/uid")


@dataclass(frozen=True, slots=True)
class Target:
    """The sandbox that a write changes, with the write's condition and time."""

    name: str
    now_seconds: float
    etag: str = ""
    """Etag that the last write must have. Empty: unconditional."""
    schema_version: int = NEWEST
    """Schema version of the caller."""
    schemas: Schemas = SCHEMAS

    def model_of(self, row: Row) -> Sandbox:
        """The row's sandbox, to be changed and passed to `written`. Raises SchemaUnknown, RecordCorrupt."""
        try:
            return self.schemas.model_of(row)
        except (DecodeError, InvalidField):
            raise RecordCorrupt(row.key) from None


def create(target: Target, sandbox: Sandbox) -> Change:
    """Create a sandbox. If a deleted one has the name, its revision continues and all else is new.

    Fields that a client cannot set are made here. Raises SandboxAlreadyExists, IllegalStateTransition.
    """

    def change(row: Row | None, version: Version) -> Resource:
        if row is not None and row.live:
            raise SandboxAlreadyExists(target.name, "choose another sandbox_id, or update it")
        if row is not None:
            # The deleted sandbox must be of a known schema version.
            target.schemas.form(row.schema_version, row.key)
        state = sandbox.state or INITIAL
        check_transition(UNSPECIFIED, state)
        new = Sandbox()
        new.CopyFrom(sandbox)
        new.name = target.name
        new.uid = make_uid(target.name, version)
        new.state = state  # type: ignore[assignment]
        new.ClearField("schema_version")
        new.ClearField("delete_time")
        new.ClearField("lease")
        set_time(new.create_time, target.now_seconds)
        return written(new, target, version, live=True)

    return change


def update(target: Target, sandbox: Sandbox, selection: Selection, *, allow_missing: bool) -> Change:
    """Change the selected fields to those of `sandbox`. If there is no sandbox and `allow_missing`, create one.

    Raises SandboxNotFound, EtagMismatch, IllegalStateTransition, and InvalidField for another account or for a field
    that a new sandbox lacks.
    """
    create_it = create(target, sandbox)

    def change(row: Row | None, version: Version) -> Resource | Answered:
        if row is None or not row.live:
            if not allow_missing:
                raise SandboxNotFound(target.name)
            if target.etag:
                raise EtagMismatch(target.etag, "")
            check_new_name(target.name, "sandbox.name")
            check_new(sandbox)
            return create_it(row, version)
        _check_etag(target, row)
        new = target.model_of(row)
        # A mask that does not name the account ignores it. An update of all fields must not drop another account
        # silently.
        if selection.whole and sandbox.account not in ("", new.account):
            expected = f"leave it empty or {new.account!r}: a sandbox keeps its account"
            raise InvalidField("sandbox.account", sandbox.account, expected)
        before = new.state
        apply(selection, new, target.schemas.exactly(sandbox, new, target.schema_version))
        check_transition(before, new.state)
        return written(new, target, version, live=True)

    return change


def delete(target: Target, *, allow_missing: bool) -> Change:
    """Leave a tombstone that keeps the sandbox's content. Raises SandboxNotFound, EtagMismatch.

    A sandbox that exceeds the size limit loses spec, labels and annotations. With `allow_missing` the deletion of a
    missing sandbox is a write too, so that its request is remembered.
    """

    def change(row: Row | None, version: Version) -> Resource | Answered:
        if row is None or not row.live:
            if not allow_missing:
                raise SandboxNotFound(target.name)
            if row is None or not row.payload:
                check_new_name(target.name)
                return Resource(b"", False, target.schemas.form(target.schema_version).version, answer=b"")
            return replace(written(target.model_of(row), target, version, live=False), answer=b"")
        _check_etag(target, row)
        new = target.model_of(row)
        set_time(new.delete_time, target.now_seconds)
        after = written(new, target, version, live=False)
        if len(after.payload) <= MAX_PAYLOAD_BYTES:
            return after
        # Only an old program can have left it so large. No event can carry it, so the tombstone keeps only its
        # identity.
        small = target.model_of(row)
        for name in ("spec", "labels", "annotations"):
            small.ClearField(name)
        small.DiscardUnknownFields()
        set_time(small.delete_time, target.now_seconds)
        return written(small, target, version, live=False)

    return change


def undelete(target: Target) -> Change:
    """Restore the sandbox as it was at its deletion. Raises SandboxNotFound, SandboxAlreadyExists, EtagMismatch."""

    def change(row: Row | None, version: Version) -> Resource:
        if row is None or not row.payload:
            raise SandboxNotFound(target.name, "the name of a sandbox that was deleted")
        if row.live:
            raise SandboxAlreadyExists(target.name, "only a deleted one can be undeleted")
        _check_etag(target, row)
        new = target.model_of(row)
        new.ClearField("delete_time")
        return written(new, target, version, live=True)

    return change


def make_uid(name: str, version: Version) -> str:
    """Uid of the sandbox that begins with this version."""
    return str(uuid.uuid5(_UIDS, f"{name} {version.etag}"))


def _check_etag(target: Target, row: Row) -> None:
    current = row.write_version.etag
    if target.etag and target.etag != current:
        raise EtagMismatch(target.etag, current)


def written(sandbox: Sandbox, target: Target, version: Version, *, live: bool) -> Resource:
    """The new content, with the fields that every write sets. The caller must not use `sandbox` afterwards.

    The content is kept in the newest schema version of its writers, so clients of that version need no conversion.
    """
    form = target.schemas.form(max(sandbox.schema_version, target.schemas.form(target.schema_version).version))
    sandbox.revision = version.revision
    sandbox.etag = version.etag
    set_time(sandbox.update_time, target.now_seconds)
    return Resource(target.schemas.write(sandbox, form.version), live, form.version)


def set_time(field: Timestamp, seconds: float) -> None:
    """Set a time, to the microsecond."""
    field.seconds, microseconds = divmod(int(seconds * 1_000_000), 1_000_000)
    field.nanos = microseconds * 1_000
