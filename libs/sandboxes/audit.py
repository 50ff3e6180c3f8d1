"""Findings about single sandboxes: invalid data left behind by years of use and by other programs.

There are two ranks. An acceptable finding moves as it is and stays the same at the other store: an operator may clean
it up before, or accept it. Data with a finding that is not acceptable would be lost or changed by a move, so it must be
mended before anything moves.

When the old program's file was taken over, values that could not be interpreted were kept in annotations. Their names
begin with `RAW` and end with the name of the old column; the audit finds such values by them.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import replace

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from libs.contract.audits import Finding, Kind
from libs.contract.schemas import RecordCorrupt, SchemaUnknown
from libs.errors import InvalidField
from libs.ownership.limits import MAX_PAYLOAD_BYTES
from libs.ownership.model import Row, Version
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.sandboxes import validation as rules
from libs.sandboxes.schema import SCHEMAS, Schemas

RAW = "baton.dev/raw-"
"""Prefix of annotations that hold the original text of an old column that could not be converted."""

FUTURE_SECONDS = 300.0
"""Tolerance for times in the future: a clock may be set wrong by that much."""
ABANDONED_SECONDS = 86_400.0
"""Time after which an ended lease counts as abandoned, not just late."""

_JSON_COLUMNS = frozenset({"command", "env", "metadata"})

KINDS: Mapping[str, Kind] = {
    "bad-json": Kind("An old column holds text that is not JSON, or JSON of another shape; an annotation keeps it"),
    "odd-value": Kind("An old column holds a value of another type or range; an annotation keeps it"),
    "impossible-state": Kind("The state is not one that a sandbox can have"),
    "old-name": Kind(
        "A client could not create this name today. Every call reaches it; once deleted, it cannot return"
    ),
    "no-rest-path": Kind('A REST path cannot hold this name ("/", "." or ".."): clients reach it over gRPC and MCP'),
    "invalid-name": Kind("The old id could not be part of a name, or the record names itself otherwise"),
    "future-time": Kind("A time lies in the future"),
    "dangling-owner": Kind("The sandbox has no account"),
    "orphaned-lease": Kind("A lease that no client can hold any more: without holder, never granted, or long over"),
    "oversize": Kind("A value is larger than a client may make it"),
    "beyond-contract": Kind("A value that a client could not write today"),
    "too-large": Kind("The record is larger than an event may be: it could not be handed over", acceptable=False),
    "unreachable-name": Kind("No call accepts this name", acceptable=False),
    "unreadable": Kind("The record cannot be read", acceptable=False),
    "lossy-conversion": Kind("A conversion to another schema version and back changes the record", acceptable=False),
}


class SandboxAudit:
    """`RecordAudit` of sandboxes."""

    kinds = KINDS

    def __init__(self, schemas: Schemas = SCHEMAS) -> None:
        self._schemas = schemas

    def findings(self, row: Row, now_seconds: float) -> list[Finding]:
        if len(row.payload) > MAX_PAYLOAD_BYTES:
            return [Finding("too-large", f"{len(row.payload)} bytes, at most {MAX_PAYLOAD_BYTES}")]
        if not row.payload:
            return []  # A stub: the sandbox was never created.
        try:
            sandbox = self._schemas.model_of(row)
        except (DecodeError, SchemaUnknown, InvalidField, RecordCorrupt) as error:
            return [Finding("unreadable", str(error) or "not a sandbox")]
        found = [
            *_left_over(sandbox),
            *_name(row, sandbox),
            *_state(sandbox),
            *_owner(sandbox),
            *_times(sandbox, now_seconds),
            *_lease(row, sandbox, now_seconds),
            *_values(sandbox),
            *self._conversions(row),
        ]
        return list(dict.fromkeys(found))

    def views(self, row: Row) -> dict[int, bytes]:
        if not row.payload:
            return {}
        try:
            return {version: self._schemas.converted(row, version) for version in self._schemas.versions}
        except (DecodeError, SchemaUnknown, InvalidField, RecordCorrupt):
            return {}

    def folded(self, key: str) -> str:
        return unicodedata.normalize("NFKC", key).casefold()

    def _conversions(self, row: Row) -> Iterator[Finding]:
        """Convert to each other version and back, and expect the same message, unknown fields included."""
        before = _plain(self._schemas.model_of(row))
        for version in self._schemas.versions:
            if version == row.schema_version:
                continue
            try:
                there = replace(row, payload=self._schemas.converted(row, version), schema_version=version)
                back = replace(row, payload=self._schemas.converted(there, row.schema_version))
                if _plain(self._schemas.model_of(there)) == before == _plain(self._schemas.model_of(back)):
                    continue
                detail = f"by way of version {version}"
            except (DecodeError, InvalidField, RecordCorrupt) as error:
                detail = f"by way of version {version}: {error}"
            yield Finding("lossy-conversion", detail)


def _plain(sandbox: Sandbox) -> bytes:
    """Serialize without the schema version."""
    sandbox.schema_version = 0
    return sandbox.SerializeToString(deterministic=True)


def _left_over(sandbox: Sandbox) -> Iterator[Finding]:
    for name, text in sandbox.annotations.items():
        column = name.removeprefix(RAW)
        if column == name or column == "id":
            continue
        if column == "state":
            yield Finding("impossible-state", f"{column}: {text[:40]!r}")
        elif column in _JSON_COLUMNS:
            yield _json(column, text)
        else:
            yield Finding("odd-value", f"{column}: {len(text)} characters that were no such value")


def _json(column: str, text: str) -> Finding:
    """Classify the text without showing it: environments hold secrets."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return Finding("bad-json", f"{column}: {len(text)} characters that are no JSON")
    if isinstance(value, list if column == "command" else dict):
        return Finding("odd-value", f"{column}: not all of it is text")
    return Finding("bad-json", f"{column}: JSON of another shape")


def _name(row: Row, sandbox: Sandbox) -> Iterator[Finding]:
    if f"{RAW}id" in sandbox.annotations:
        yield Finding(
            "invalid-name", f"its old id could not be part of a name: {sandbox.annotations[f'{RAW}id'][:40]!r}"
        )
        return
    try:
        rules.check_name(row.key)
    except InvalidField as error:
        yield Finding("unreachable-name", error.expected)
        return
    try:
        rules.check_new_name(row.key)
    except InvalidField as error:
        made = row.key.removeprefix(rules.COLLECTION)
        rest = "/" not in made and made not in (".", "..")
        yield Finding("old-name" if rest else "no-rest-path", error.expected)
    if sandbox.name != row.key:
        yield Finding("invalid-name", f"its own name field is {sandbox.name[:80]!r}")


def _state(sandbox: Sandbox) -> Iterator[Finding]:
    if f"{RAW}state" in sandbox.annotations:
        return
    try:
        rules.check_state(sandbox)
    except InvalidField as error:
        yield Finding("impossible-state", f"{sandbox.state}: {error.expected}")


def _owner(sandbox: Sandbox) -> Iterator[Finding]:
    if not sandbox.account.strip():
        yield Finding("dangling-owner", "it has no account")
        return
    try:
        rules.check_account(sandbox.account)
    except InvalidField as error:
        yield Finding("beyond-contract", f"account: {error.expected}")


def _times(sandbox: Sandbox, now_seconds: float) -> Iterator[Finding]:
    for name in ("create_time", "update_time", "delete_time"):
        yield from _future(name, getattr(sandbox, name), now_seconds)
    for name in ("acquire_time", "renew_time"):
        yield from _future(f"lease.{name}", getattr(sandbox.lease, name), now_seconds)


def _future(name: str, time: Timestamp, now_seconds: float) -> Iterator[Finding]:
    if (ahead := _seconds(time) - now_seconds) > FUTURE_SECONDS:
        yield Finding("future-time", f"{name}: {ahead / 86_400:.1f} days ahead")


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos / 1e9


def _lease(row: Row, sandbox: Sandbox, now_seconds: float) -> Iterator[Finding]:
    if not sandbox.HasField("lease"):
        return
    lease = sandbox.lease
    granted = lease.token.split(".")
    if not lease.holder or not lease.token:
        yield Finding("orphaned-lease", "it has no holder or no token")
    elif len(granted) != 2 or not all(part.isascii() and part.isdigit() for part in granted):
        yield Finding("orphaned-lease", f"its token {lease.token[:40]!r} is none")
    elif Version(int(granted[0]), int(granted[1])) > row.write_version:
        yield Finding("orphaned-lease", f"its token {lease.token[:40]!r} was never granted")
    else:
        end = max(_seconds(lease.acquire_time), _seconds(lease.renew_time)) + lease.ttl.seconds
        if end and now_seconds - end > ABANDONED_SECONDS:
            yield Finding("orphaned-lease", f"it ended {(now_seconds - end) / 86_400:.1f} days ago")


def _values(sandbox: Sandbox) -> Iterator[Finding]:
    """Check sizes first, so that an oversized field is reported once."""
    large = set()
    for field, size, most, unit in _sizes(sandbox):
        if size > most:
            large.add(field)
            yield Finding("oversize", f"{field}: {size} {unit}, at most {most}")
    checks = {**{name: check for name, check in rules.FIELD_CHECKS.items() if name != "state"}, **rules.SPEC_CHECKS}
    for field, check in checks.items():
        # A raw annotation already explains why the image is empty.
        if field in large or (field == "image" and f"{RAW}image" in sandbox.annotations):
            continue
        try:
            check(sandbox)
        except InvalidField as error:
            yield Finding("beyond-contract", f"{field}: {error.expected}")


def _sizes(sandbox: Sandbox) -> Iterator[tuple[str, int, int, str]]:
    spec = sandbox.spec
    annotations = sum(len(key.encode()) + len(value.encode()) for key, value in sandbox.annotations.items())
    yield "image", len(spec.image), rules.MAX_IMAGE_CHARACTERS, "characters"
    yield "command", len(spec.command), rules.MAX_COMMAND_ITEMS, "items"
    yield "command", max((len(item.encode()) for item in spec.command), default=0), rules.MAX_COMMAND_BYTES, "bytes"
    yield "env", len(spec.env), rules.MAX_ENV, "entries"
    yield "env", max((len(v.encode()) for v in spec.env.values()), default=0), rules.MAX_ENV_VALUE_BYTES, "bytes"
    yield "labels", len(sandbox.labels), rules.MAX_LABELS, "entries"
    yield "annotations", annotations, rules.MAX_ANNOTATIONS_BYTES, "bytes"
