"""Conversions between the database's rows and the values of the protocol."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from libs.ownership.model import BucketOwner, Found, Head, Row, Served, Store, Version, bases_of, bases_text, visible
from libs.store.columns import Columns

Columnar = tuple[list[Any], ...]
"""Parameters of a statement with `unnest`: one list for each column."""

HEAD = "r.key, r.term, r.revision, r.owner, r.digest, r.bases"
ROW = "r.key, r.term, r.revision, r.owner, r.write_term, r.write_revision, r.live, r.payload, r.schema_version, r.bases"
BUCKET_OWNER = "b.bucket, b.term AS bucket_term, b.version AS bucket_version, b.owner AS bucket_owner"
SERVED = "s.principal, s.request_id, s.request_hash, s.term AS served_term, s.revision AS served_revision, s.answer"

RECORD_COLUMNS = (
    "key, bucket, term, revision, owner, write_term, write_revision, live, schema_version, bases, digest,"
    " payload, state, account, labels, lease"
)

VISIBLE = "r.term >= (SELECT b.term FROM bucket b WHERE b.bucket = r.bucket)"
"""Condition of a row that is not hidden: its term is not below that of its bucket."""

_SIGN = 1 << 63
_STORES = {store.value: store for store in Store}
"""A look-up here takes a tenth of the time of `Store(value)`."""


def signed(number: int) -> int:
    """Convert an unsigned 64-bit number to the database's signed bigint."""
    return number - 2 * _SIGN if number >= _SIGN else number


def unsigned(number: int) -> int:
    return number % (2 * _SIGN)


def row_of(columns: Mapping[str, Any], *, lease_seconds: float = 0.0) -> Row | None:
    """None if the join found no record."""
    if columns["revision"] is None:
        return None
    return Row(
        key=columns["key"],
        version=Version(columns["term"], columns["revision"]),
        owner=_STORES[columns["owner"]],
        write_version=Version(columns["write_term"], columns["write_revision"]),
        live=columns["live"],
        payload=columns["payload"],
        schema_version=columns["schema_version"],
        bases=bases_of(columns["bases"]),
        lease_seconds=lease_seconds,
    )


def head_of(key: str, term: int, revision: int, owner: str, digest: int, bases: str) -> Head:
    return Head(key, Version(term, revision), Store(owner), unsigned(digest), bases_of(bases))


def bucket_owner_of(columns: Mapping[str, Any]) -> BucketOwner:
    return BucketOwner(
        columns["bucket"], columns["bucket_term"], columns["bucket_version"], _STORES[columns["bucket_owner"]]
    )


def served_of(columns: Mapping[str, Any]) -> Served | None:
    """None if the join found no served request."""
    if columns["request_hash"] is None:
        return None
    return Served(
        columns["principal"],
        columns["request_id"],
        columns["request_hash"],
        Version(columns["served_term"], columns["served_revision"]),
        columns["answer"],
    )


def found_of(key: str, columns: Mapping[str, Any]) -> Found:
    bucket_owner = bucket_owner_of(columns)
    return Found(key, visible(row_of(columns), bucket_owner), bucket_owner)


def found_for_write(key: str, lines: Sequence[Mapping[str, Any]]) -> Found:
    """Include the served requests, one in each line, and the age of the row's lease if it has one."""
    columns = lines[0]
    row = row_of(columns, lease_seconds=(columns["lease_age"] or 0) / 1000)
    bucket_owner = bucket_owner_of(columns)
    served = tuple(one for line in lines if (one := served_of(line)) is not None)
    return Found(key, visible(row, bucket_owner), bucket_owner, served)


def record_values(row: Row, bucket: int, columns: Columns) -> tuple[Any, ...]:
    """Return the values in the order of RECORD_COLUMNS."""
    return (
        row.key,
        bucket,
        *row.version,
        row.owner.value,
        *row.write_version,
        row.live,
        row.schema_version,
        bases_text(row.bases),
        signed(row.digest),
        row.payload,
        columns.equals.get("state"),
        columns.equals.get("account"),
        json.dumps(dict(columns.labels)),
        columns.lease,
    )


def is_projected(row: Row, right: Columns, kept: Mapping[str, Any]) -> bool:
    """Whether the projected columns match the payload. True for a payload that only a newer program can read: that
    program wrote the columns."""
    if row.payload and right == Columns():
        return True
    shown = (kept["state"], kept["account"], json.loads(kept["labels"]), kept["lease"])
    return shown == (right.equals.get("state"), right.equals.get("account"), dict(right.labels), right.lease)


def served_values(served: Served) -> tuple[Any, ...]:
    return (served.principal, served.request_id, served.request_hash, *served.version, served.answer)


def columnar(rows: Iterable[Sequence[Any]], width: int) -> Columnar:
    """Transpose the rows to `width` lists."""
    lists: Columnar = tuple(list(column) for column in zip(*rows, strict=True))
    return lists or tuple([] for _ in range(width))
