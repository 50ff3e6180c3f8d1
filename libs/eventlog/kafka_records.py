"""Parsing of fetched batches such that no message can stop the reader.

Any program may write to a topic. aiokafka raises for a header name that is not UTF-8 and for a malformed header block,
and then fetches the same batch forever. Here such a message is returned with its key and value, and with
`UNREADABLE_HEADER`, which holds the reason. A batch that cannot be decompressed is returned as one such message at its
last offset. Only this module and `kafka_client` use private parts of aiokafka (0.14).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.errors import UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy
from aiokafka.record.util import decode_varint

from libs.eventlog.port import UNREADABLE_HEADER

_Header = tuple[str, bytes | None]


class Message(NamedTuple):
    """A record in the form of aiokafka's consumer."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[_Header]
    checksum: None = None


class _Batch:
    """A batch of format 2, parsed by aiokafka; if that fails, message by message."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._batch: Any = DefaultRecordBatch(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except UnsupportedCodecError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a foreign message makes a parser or a codec raise
            return iter(list(_read_each(self._data, error)))


class Batches:
    """Replacement for aiokafka's `MemoryRecords`."""

    def __init__(self, data: bytes) -> None:
        self._records: Any = _MemoryRecordsPy(data)

    def size_in_bytes(self) -> int:
        return len(self._records._buffer)

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        data: memoryview | None = self._records._next_slice
        batch = self._records.next_batch()
        return _Batch(data) if data is not None and batch.__class__ is DefaultRecordBatch else batch


def install() -> None:
    """Make every consumer of this process parse batches this way."""
    fetcher.MemoryRecords = Batches


def _read_each(data: memoryview, error: Exception) -> Iterator[Message]:
    batch: Any = _DefaultRecordBatchPy(data)
    try:
        batch._maybe_uncompress()
    except Exception as trouble:  # noqa: BLE001 - each codec raises its own
        yield _unreadable(batch, batch.next_offset - 1, bytes(data), f"the batch cannot be unpacked: {trouble}")
        return
    buffer, position = batch._buffer, batch._pos
    for _ in range(batch._num_records):
        try:
            length, start = decode_varint(buffer, position)
            end = start + length
            if length < 0 or end > len(buffer):
                raise ValueError(f"a message of {length} bytes")
            message = _message(batch, bytes(buffer[start:end]))
        except (ValueError, IndexError) as trouble:
            yield _unreadable(batch, batch.next_offset - 1, bytes(buffer[position:]), f"{error}; {trouble}")
            return
        yield message
        position = end


def _message(batch: Any, data: bytes) -> Message:
    """Raises ValueError or IndexError if not even the offset can be parsed."""
    _, position = decode_varint(data, 0)
    delta, position = decode_varint(data, position)
    at, position = decode_varint(data, position)
    timestamp = batch.max_timestamp if batch.timestamp_type else batch.first_timestamp + delta
    place = batch.base_offset + at, timestamp, batch.timestamp_type
    try:
        key, position = _bytes(data, position)
        value, position = _bytes(data, position)
    except (ValueError, IndexError) as trouble:
        return Message(*place, None, data, [_why(f"key and value: {trouble}")])
    try:
        return Message(*place, key, value, _headers(data, position))
    except (ValueError, IndexError) as trouble:
        return Message(*place, key, value, [_why(f"headers: {trouble}"), ("block", data[position:])])


def _headers(data: bytes, position: int) -> list[_Header]:
    count, position = decode_varint(data, position)
    if not 0 <= count <= len(data):
        raise ValueError(f"{count} headers")
    found: list[_Header] = []
    bad = False
    for _ in range(count):
        name, position = _bytes(data, position)
        value, position = _bytes(data, position)
        shown = (name or b"").decode(errors="replace")
        bad = bad or name is None or shown.encode() != name
        found.append((shown, value))
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes behind the last header")
    return [_why("headers: a name is not UTF-8"), *found] if bad else found


def _bytes(data: bytes, position: int, read: Callable[[Any, int], tuple[int, int]] = decode_varint) -> Any:
    """Length-prefixed bytes, and the position after them. A negative length means none."""
    length, position = read(data, position)
    if length < 0:
        return None, position
    if position + length > len(data):
        raise ValueError(f"{length} bytes where {len(data) - position} are left")
    return data[position : position + length], position + length


def _why(reason: str) -> _Header:
    return UNREADABLE_HEADER, reason.encode(errors="replace")


def _unreadable(batch: Any, offset: int, data: bytes, reason: str) -> Message:
    return Message(offset, batch.max_timestamp, batch.timestamp_type, None, data, [_why(reason)])
