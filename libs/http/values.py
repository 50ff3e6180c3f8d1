"""Text values of a path or a query, converted to message fields.

Source: https://github.com/googleapis/googleapis/blob/master/google/api/http.proto: a query parameter is a scalar, an
enum, a repeated one of them, or a type that proto3 JSON writes as a string or a number; "a.b" is a field of a message.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.errors import InvalidField

_TEXT_MESSAGES = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask"})
"""Messages whose classes parse their own JSON form."""

INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
"""Minimum and maximum by type."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLS = {"true": True, "false": False}
_INTEGER_CHARACTERS = 20


class _Unreadable(Exception):
    """The text does not fit the field's type; the argument describes a valid value."""


def put_values(message: Message, values: Iterable[tuple[str, str]], source: str) -> None:
    """Set each field by its path, in the proto's names or in JSON's. Repeated fields may occur several times.

    `source`: kind of the values for errors, "query parameter". Raises InvalidField.
    """
    seen: set[tuple[str, ...]] = set()
    for path, text in values:
        target, field, names = _resolve(message, path, source)
        if field.is_repeated:
            getattr(target, field.name).append(_convert(field, path, text))
            continue
        if names in seen:
            raise InvalidField(path, text, f"one {source} of this name: it is given twice")
        seen.add(names)
        put_value(target, field, path, text)


def put_value(target: Message, field: FieldDescriptor, path: str, text: str) -> None:
    if field.message_type is None:
        setattr(target, field.name, _convert(field, path, text))
        return
    try:
        getattr(target, field.name).FromJsonString(text)
    except ValueError as error:
        raise InvalidField(path, text, f"a {field.message_type.full_name} as JSON writes it: {error}") from None


@cache
def fields_of(message: Descriptor) -> dict[str, FieldDescriptor]:
    """Fields by both of their names."""
    by_json = {field.json_name: field for field in message.fields}
    return {**by_json, **message.fields_by_name}


def is_parameter(field: FieldDescriptor) -> bool:
    """Whether a query parameter can set the field."""
    if field.message_type is None:
        return True
    return not field.is_repeated and field.message_type.full_name in _TEXT_MESSAGES


def _resolve(message: Message, path: str, source: str) -> tuple[Message, FieldDescriptor, tuple[str, ...]]:
    """The message with the field, the field, and its path in the proto's names."""
    *parents, last = path.split(".")
    target: Any = message
    names: list[str] = []
    for name in parents:
        parent = fields_of(target.DESCRIPTOR).get(name)
        if parent is None or parent.message_type is None or parent.is_repeated:
            raise _unknown(path, message, source)
        names.append(parent.name)
        target = getattr(target, parent.name)
    field = fields_of(target.DESCRIPTOR).get(last)
    if field is None or not is_parameter(field):
        raise _unknown(path, message, source)
    return target, field, (*names, field.name)


def _unknown(path: str, message: Message, source: str) -> InvalidField:
    names = ", ".join(
        {field.json_name: None for field in fields_of(message.DESCRIPTOR).values() if is_parameter(field)}
    )
    return InvalidField(source, path, f"a field of the request that a {source} can set: {names}")


def _convert(field: FieldDescriptor, path: str, text: str) -> Any:
    try:
        return _scalar(field, text)
    except _Unreadable as error:
        raise InvalidField(path, text, str(error)) from None


def _scalar(field: FieldDescriptor, text: str) -> Any:
    kind = field.cpp_type
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(text)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return text
    if kind in INTEGERS:
        return _integer(text, *INTEGERS[kind])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        if text not in _BOOLS:
            raise _Unreadable("true or false")
        return _BOOLS[text]
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(field, text)
    return _number(text)


def _integer(text: str, least: int, most: int) -> int:
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= _INTEGER_CHARACTERS and least <= int(text) <= most:
        return int(text)
    raise _Unreadable(f"a whole number of {least} to {most}")


def _enum(field: FieldDescriptor, text: str) -> int:
    enum = field.enum_type
    assert enum is not None, "an enum field has its type"
    if text in enum.values_by_name:
        return int(enum.values_by_name[text].number)
    names = ", ".join(value.name for value in enum.values)
    raise _Unreadable(f"one of {names}")


def _number(text: str) -> float:
    # Python's float also accepts spaces, "1_0" and other digits.
    found = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(found):
        raise _Unreadable("a finite number")
    return found


def _bytes(text: str) -> bytes:
    padded = text.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except ValueError:
        raise _Unreadable("base64") from None
