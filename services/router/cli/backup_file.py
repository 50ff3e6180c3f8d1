"""The file of A's cold backup: gzip of length-prefixed `baton.record.v1.Record`, in the order of buckets and keys.

`protoc --decode`, or `google.protobuf.proto.parse_length_prefixed` in any language, reads the messages.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, cast

from google.protobuf import proto
from google.protobuf.message import DecodeError

from libs.errors import BatonError
from libs.pb.baton.control.v1 import ending_pb2
from libs.pb.baton.record.v1 import record_pb2
from services.router.core.row_sum import Sum, with_records

_PART = ".partial"


class BackupUnreadable(Exception):
    """The file is no backup, or is damaged."""


class FoundBackup(NamedTuple):
    """The content of a file, as it was read."""

    sum: Sum
    file_digest: str


def write(path: Path, messages: Iterable[ending_pb2.ExportStoreResponse]) -> Sum | None:
    """Write the records of an export to a new file that only its owner can read. Returns the export's own sum, or None
    if the export has none. Raises OSError. A file that is not complete has another name and is removed."""
    part = path.with_name(path.name + _PART)
    opened = _new(part)
    found = None
    try:
        with open(opened, "wb") as file:
            with gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
                for message in messages:
                    for record in message.records:
                        proto.serialize_length_prefixed(record, cast(io.BytesIO, packed))
                    if message.HasField("sum"):
                        found = Sum(message.sum.records, int(message.sum.digest, 16))
            file.flush()
            os.fsync(file.fileno())
        if found is not None:
            part.rename(path)
            _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return found


def _new(part: Path) -> int:
    """Open a file that does not exist. Another one may be open to others, or be a link to a file of somebody else."""
    try:
        return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise FileExistsError(
            f"{part} exists: another command writes it, or one was killed; then remove it and try again"
        ) from None


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read(path: Path) -> FoundBackup:
    """Read a file back and compute its sum from its records. Raises OSError, BackupUnreadable."""
    total = Sum()
    try:
        with gzip.open(path, "rb") as packed:
            while (record := proto.parse_length_prefixed(record_pb2.Record, cast(io.BytesIO, packed))) is not None:
                total = with_records(total, [record])
    except (EOFError, ValueError, DecodeError, BatonError, gzip.BadGzipFile, zlib.error) as error:
        raise BackupUnreadable(f"{path} is no whole backup: {error}") from None
    with path.open("rb") as file:
        digest = sha256()
        while part := file.read(1 << 20):
            digest.update(part)
    return FoundBackup(total, digest.hexdigest())
