"""Fields that this version of the contract does not know. A newer client set them, so they are kept.

protobuf keeps unknown fields when a message is parsed and serialized again, but merging appends to them: a client that
reads a sandbox, changes it and sends it back would double them. Here a repeated field number replaces the earlier one.
Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)


def has_unknown(message: Message) -> bool:
    """Whether the message has unknown fields at its top level."""
    return len(UnknownFieldSet(message)) > 0


def take_unknown(target: Message, source: Message) -> None:
    """Replace unknown fields of `target` by those of `source` with the same numbers; other fields of `target` stay."""
    if not has_unknown(source):
        return
    known = source.DESCRIPTOR.fields_by_number
    taken = [(number, raw) for number, raw in split(_serialized(source)) if number not in known]
    numbers = {number for number, _ in taken}
    kept = [raw for number, raw in split(_serialized(target)) if number not in numbers]
    target.ParseFromString(b"".join([*kept, *(raw for _, raw in taken)]))


def split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split a serialized message into its top-level fields: number and bytes, tag included."""
    start, size = 0, len(data)
    while start < size:
        tag, after_tag = data[start], start + 1
        if tag > 0x7F:
            tag, after_tag = _varint(data, start)
        # Nearly all fields are short: a tag and a length, or a value, of one byte each.
        if tag & 7 == _BYTES and data[after_tag] <= 0x7F:
            end = after_tag + 1 + data[after_tag]
        else:
            end = _skip(data, after_tag, tag)
        yield tag >> 3, data[start:end]
        start = end


def _skip(data: bytes, position: int, tag: int) -> int:
    kind = tag & 7
    if kind == _VARINT:
        return _varint(data, position)[1]
    if kind == _BYTES:
        length, position = _varint(data, position)
        return position + length
    if kind == _GROUP:
        return _skip_group(data, position)
    return position + (8 if kind == _FIXED64 else 4)


def _skip_group(data: bytes, position: int) -> int:
    depth = 1
    while depth:
        tag, position = _varint(data, position)
        if tag & 7 == _GROUP:
            depth += 1
        elif tag & 7 == _END_GROUP:
            depth -= 1
        else:
            position = _skip(data, position, tag)
    return position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _serialized(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)
