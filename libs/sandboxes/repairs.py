"""Repair of a record whose content cannot be read."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from libs.errors import InvalidField
from libs.ownership.model import NEVER, Row, Store, Version
from libs.ownership.rules import Change, Resource
from libs.sandboxes.changes import Target, make_uid, set_time, written
from libs.sandboxes.schema import Schemas
from libs.sandboxes.transitions import INITIAL
from libs.sandboxes.validation import check_name, check_new


def replaced(key: str, content: Resource, now_seconds: float, schemas: Schemas, *, as_kept: bool) -> Change:
    """Replace the record by this content, which keeps its uid and times but no lease.

    Raises InvalidField for a name that no call accepts, for content that is not a sandbox of that name, and, unless it
    comes from a store (`as_kept`), for values that a client could not write. Raises SchemaUnknown.
    """
    check_name(key, "key")
    try:
        sandbox = schemas.model_of(
            Row(key, NEVER, Store.A, NEVER, content.live, content.payload, content.schema_version)
        )
    except DecodeError as error:
        raise InvalidField("content", f"{len(content.payload)} bytes", f"a sandbox ({error})") from None
    if sandbox.name not in ("", key):
        raise InvalidField("content.name", sandbox.name, f"{key!r}, or leave it out")
    if not as_kept:
        check_new(sandbox)
    target = Target(key, now_seconds, schema_version=sandbox.schema_version, schemas=schemas)

    def change(row: Row | None, version: Version) -> Resource:
        new = type(sandbox)()
        new.CopyFrom(sandbox)
        new.name = key
        new.uid = sandbox.uid or make_uid(key, version)
        new.state = sandbox.state or INITIAL  # type: ignore[assignment]
        new.ClearField("lease")
        if not new.HasField("create_time"):
            set_time(new.create_time, now_seconds)
        if content.live:
            new.ClearField("delete_time")
        return written(new, target, version, live=content.live)

    return change
