"""The old program's flat table: converts its rows to sandboxes once, and writes later changes to its columns.

The old program had one table and no schema version. A value that cannot be read does not stop the migration. The
annotation `baton.dev/raw-<column>` of the sandbox keeps its text, and the field takes the part that could be read, if
any. NUL characters in text become U+FFFD, because not every database can store them. A row whose id cannot be part of a
name (none, empty, too long, not text, not UTF-8, or with a NUL) is named `row-<rowid>`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from libs.contract.schemas import SchemaUnknown
from libs.errors import InvalidField
from libs.ownership.limits import MAX_KEY_BYTES
from libs.ownership.model import Row, Store, Version
from libs.pb.sandbox.v1 import sandbox_pb2 as pb
from libs.sandboxes.audit import RAW
from libs.sandboxes.columns import sandbox_columns, state_name
from libs.sandboxes.leases import mark_of
from libs.sandboxes.schema import FLAT, SCHEMAS
from libs.store.sqlite_old import OldTable
from libs.store.sqlite_schema import Layout, Value, labels_text

PREFIX = "sandboxes/"
SCHEMA_VERSION = FLAT.version
FIRST = Version(0, 1)
"""Version of every record that the old program wrote; `SCHEMA_VERSION` is its schema."""

OLD_TABLE = (
    "CREATE TABLE sandboxes (id TEXT PRIMARY KEY, account TEXT NOT NULL, state TEXT NOT NULL, image TEXT NOT NULL,"
    " command TEXT, env TEXT, cpu REAL, memory_mb INTEGER, timeout_s INTEGER, metadata TEXT, created_at REAL,"
    " updated_at REAL)"
)
COLUMNS = (
    "id",
    "account",
    "state",
    "image",
    "command",
    "env",
    "cpu",
    "memory_mb",
    "timeout_s",
    "metadata",
    "created_at",
    "updated_at",
)

_STATES = {state_name(number): number for number in pb.Sandbox.State.values()}
_MAX_NUMBER = 2**31 - 1
"""Maximum of CPU millis, mebibytes and seconds. A larger number counts as unreadable."""


class _Malformed(ValueError):
    """The value is malformed. `partly`: the part that could be read."""

    def __init__(self, partly: Any = None) -> None:
        self.partly = partly


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Malformed(None if value is None else str(value))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Malformed(_without_zero(value.encode(errors="replace").decode())) from None
    if "\0" in value:
        raise _Malformed(_without_zero(value))
    return value


def _without_zero(text: str) -> str:
    return text.replace("\0", "\ufffd")


def _state(value: object) -> int:
    text = str(value)
    number = _STATES.get(text.strip().upper(), pb.Sandbox.STATE_UNSPECIFIED)
    if text != state_name(number):
        raise _Malformed(number)
    return number


def _number(scale: int) -> Callable[[object], int]:
    def number(value: object) -> int:
        if not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value * scale <= _MAX_NUMBER:
            raise _Malformed
        whole = round(value * scale)
        if whole != value * scale and scale == 1:
            raise _Malformed(whole)
        return whole

    return number


def _json(value: object) -> Any:
    try:
        return json.loads(_text(value))
    except (ValueError, RecursionError):
        raise _Malformed from None


def _word(value: object) -> str:
    """A JSON scalar as text. Numbers and booleans as in JSON. Raises _Malformed for text that is not valid Unicode."""
    word = value if isinstance(value, str) else json.dumps(value)
    try:
        word.encode()
    except UnicodeEncodeError:
        raise _Malformed from None
    return _without_zero(word)


def _words(value: object) -> list[str]:
    found = _json(value)
    if not isinstance(found, list) or any(isinstance(word, (dict, list)) for word in found):
        raise _Malformed
    words = [_word(word) for word in found]
    if words != found:
        raise _Malformed(words)
    return words


def _pairs(value: object) -> dict[str, str]:
    found = _json(value)
    if not isinstance(found, dict) or any(isinstance(word, (dict, list)) for word in found.values()):
        raise _Malformed
    pairs = {_word(name): _word(word) for name, word in found.items()}
    if pairs != found:
        raise _Malformed(pairs)
    return pairs


def _time(value: object) -> Timestamp:
    time = Timestamp()
    try:
        if not isinstance(value, (int, float)):
            raise _Malformed
        time.FromNanoseconds(round(value * 1e9))
    except (ValueError, OverflowError):
        raise _Malformed from None
    return time


_READERS: Mapping[str, Callable[[object], Any]] = {
    "account": _text,
    "state": _state,
    "image": _text,
    "command": _words,
    "env": _pairs,
    "cpu": _number(1000),
    "memory_mb": _number(1),
    "timeout_s": _number(1),
    "metadata": _pairs,
    "created_at": _time,
    "updated_at": _time,
}


def _raw(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text.encode(errors="replace").decode()


def is_clean(value: object) -> bool:
    """Whether an id can be part of its record's key as it is."""
    return (
        isinstance(value, str)
        and value != ""
        and "\ufffd" not in value
        and "\0" not in value
        and len(value.encode()) <= MAX_KEY_BYTES - len(PREFIX)
    )


def old_key(value: object, number: int, is_id: Callable[[str], bool]) -> str:
    """Key of the record for an old row, from its id, else from its rowid."""
    if is_clean(value):
        return f"{PREFIX}{value}"
    made = f"row-{number}"
    while is_id(made):
        made += "-"
    return PREFIX + made


def old_row(key: str, flat: Mapping[str, object]) -> tuple[Row, tuple[Value, ...]]:
    """Convert an old row to a record of version (0, 1), owned by A, and return it with its columns.

    The columns keep the old program's values wherever they are readable. So the record can be rebuilt from them, and
    the old program can read them.
    """
    sandbox, odd = _sandbox(key, flat)
    written = _columns(key, sandbox, state_name(sandbox.state))
    own: tuple[Any, ...] = tuple(
        right if name in odd else flat[name] for name, right in zip(COLUMNS, written, strict=True)
    )
    payload = SCHEMAS.write(sandbox, SCHEMA_VERSION)
    return Row(key, FIRST, Store.A, FIRST, live=True, payload=payload, schema_version=SCHEMA_VERSION), own


def as_written(key: str, own: Sequence[Value]) -> tuple[Value, ...]:
    """Return the columns of a row of the old program in the form in which this store writes them."""
    sandbox, _ = _sandbox(key, dict(zip(COLUMNS, own, strict=True)))
    return _columns(key, sandbox, state_name(sandbox.state))


def _sandbox(key: str, flat: Mapping[str, object]) -> tuple[pb.Sandbox, set[str]]:
    """Return the sandbox of an old row and the columns to rewrite: with their old values, lists would miss it."""
    sandbox = pb.Sandbox(name=key, uid=str(uuid5(NAMESPACE_URL, key)), revision=1, etag=FIRST.etag)
    values: dict[str, Any] = {}
    odd: set[str] = set()
    if key != f"{PREFIX}{flat['id']}":
        sandbox.annotations[RAW + "id"] = _raw(flat["id"])
        odd.add("id")
    for column, read in _READERS.items():
        if flat[column] is None:
            if column in LAYOUT.filters:
                odd.add(column)
            continue
        if column == LAYOUT.labels:
            # With a duplicate key in the JSON, a filter would match either value.
            odd.add(column)
        try:
            values[column] = read(flat[column])
        except _Malformed as found:
            sandbox.annotations[RAW + column] = _raw(flat[column])
            odd.add(column)
            if found.partly is not None:
                values[column] = found.partly
    _fill(sandbox, values)
    return sandbox, odd


def _fill(sandbox: pb.Sandbox, values: Mapping[str, Any]) -> None:
    sandbox.account = values.get("account", "")
    sandbox.state = values.get("state", pb.Sandbox.STATE_UNSPECIFIED)
    sandbox.labels.update(values.get("metadata", {}))
    sandbox.spec.image = values.get("image", "")
    sandbox.spec.command.extend(values.get("command", ()))
    sandbox.spec.env.update(values.get("env", {}))
    sandbox.spec.cpu_millis = values.get("cpu", 0)
    sandbox.spec.memory_mib = values.get("memory_mb", 0)
    if "timeout_s" in values:
        sandbox.spec.timeout.FromSeconds(values["timeout_s"])
    if "created_at" in values:
        sandbox.create_time.CopyFrom(values["created_at"])
    if "updated_at" in values:
        sandbox.update_time.CopyFrom(values["updated_at"])


def _seconds(sandbox: pb.Sandbox, name: str) -> float | None:
    if not sandbox.HasField(name):  # type: ignore[arg-type]
        return None
    time: Timestamp = getattr(sandbox, name)
    return time.ToNanoseconds() / 1e9


def project(row: Row) -> tuple[Value, ...]:
    """The flat columns of a record, in the order of COLUMNS, and the lease's mark. Empty if the payload cannot be
    read."""
    try:
        sandbox = SCHEMAS.model_of(row)
    except (DecodeError, SchemaUnknown, InvalidField):
        sandbox = pb.Sandbox()
    return (*_columns(row.key, sandbox, state_name(sandbox.state) if row.payload else ""), mark_of(sandbox))


_encode = json.JSONEncoder(ensure_ascii=False).encode
"""Made once, because `json.dumps` makes one for each call."""


def _columns(key: str, sandbox: pb.Sandbox, state: str) -> tuple[Value, ...]:
    spec = sandbox.spec
    return (
        key.removeprefix(PREFIX),
        sandbox.account,
        state,
        spec.image,
        _encode(list(spec.command)),
        labels_text(spec.env),
        spec.cpu_millis / 1000,
        spec.memory_mib,
        spec.timeout.seconds if spec.HasField("timeout") else None,
        labels_text(sandbox.labels),
        _seconds(sandbox, "create_time"),
        _seconds(sandbox, "update_time"),
    )


LAYOUT = Layout(
    table="sandboxes",
    columns=COLUMNS,
    project=project,
    filters={"state": "state", "account": "account"},
    labels="metadata",
    as_written=as_written,
)

_KNOWN_STATES = ", ".join(f"'{name}'" for name in sorted(_STATES))

OLD = OldTable(
    name="sandboxes_old",
    id="id",
    columns=COLUMNS,
    prefix=PREFIX,
    is_clean=is_clean,
    key=old_key,
    made=re.compile(r"row-([0-9]{1,18})-*"),
    row=old_row,
    columns_of=sandbox_columns,
    odd={"state": f"o.state NOT IN ({_KNOWN_STATES})", "account": "typeof(o.account) <> 'text'"},
)
