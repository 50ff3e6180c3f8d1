"""Redaction of messages, by the option `secret` of their fields. The plan of a message type is made once.

A record's own callers get all of it. Whatever else shows a record shows it redacted: values of secret fields, and each
value of a secret map, are replaced. Keys of a map stay.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, NamedTuple, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.errors import HIDDEN
from libs.pb.baton.options.v1 import options_pb2

M = TypeVar("M", bound=Message)

_TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


class _Plan(NamedTuple):
    """Names of the fields to change."""

    secrets: tuple[str, ...]
    inner: tuple[str, ...]
    """Message fields with secrets somewhere below."""


def is_secret(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().Extensions[options_pb2.secret])


@cache
def has_secrets(message: Descriptor) -> bool:
    """Whether a field of the message, or of a message in it, is secret."""
    return _has_secrets(message, frozenset())


def in_secret(message: Descriptor, path: str) -> bool:
    """Whether a path of field names, the proto's or JSON's, leads to a secret; also if it leads to no known field."""
    kind: Any = message
    for name in re.split(r"[.\[]", path):
        field = next((one for one in kind.fields if name in (one.name, one.json_name)), None) if kind else None
        if field is None or is_secret(field):
            return has_secrets(message)
        kind = _kind(field)
        if kind is None:
            return False
    return False


def redacted(message: M) -> M:
    """The message without secrets: a copy, or the message itself if its type has none.

    Unknown fields are dropped: they may be secrets of a newer schema version.
    """
    if not has_secrets(_descriptor(message)):
        return message
    found = type(message)()
    found.CopyFrom(message)
    found.DiscardUnknownFields()
    _redact(found)
    return found


def shows_mark(message: Message) -> bool:
    """Whether a secret has the mark of redaction as its value: the message was shown redacted, and is not whole."""
    return any(HIDDEN in values for values in _secrets(message))


def _secrets(message: Any) -> Iterator[Collection[Any]]:
    """Values of each secret field of text."""
    plan = _plan(_descriptor(message))
    for name in plan.secrets:
        field, value = message.DESCRIPTOR.fields_by_name[name], getattr(message, name)
        yield value.values() if _is_map(field) else value if field.is_repeated else (value,)
    for name in plan.inner:
        field, value = message.DESCRIPTOR.fields_by_name[name], getattr(message, name)
        for inner in value.values() if _is_map(field) else value if field.is_repeated else (value,):
            yield from _secrets(inner)


def _redact(message: Any) -> None:
    plan = _plan(_descriptor(message))
    for name in plan.secrets:
        _replace(message, message.DESCRIPTOR.fields_by_name[name])
    for name in plan.inner:
        field = message.DESCRIPTOR.fields_by_name[name]
        value = getattr(message, name)
        if _is_map(field):
            for inner in value.values():
                _redact(inner)
        elif field.is_repeated:
            for inner in value:
                _redact(inner)
        elif message.HasField(name):
            _redact(value)


def _replace(message: Any, field: FieldDescriptor) -> None:
    """Put a mark in the place of each value. A value that cannot hold the mark is cleared."""
    value = getattr(message, field.name)
    entry: Any = field.message_type
    kind = entry.fields_by_name["value"] if _is_map(field) else field
    if kind.type not in _TEXTS:
        message.ClearField(field.name)
        return
    mark = HIDDEN if kind.type == FieldDescriptor.TYPE_STRING else HIDDEN.encode()
    if _is_map(field):
        for key in value:
            value[key] = mark
    elif field.is_repeated:
        value[:] = [mark] * len(value)
    elif value:
        setattr(message, field.name, mark)


@cache
def _plan(message: Descriptor) -> _Plan:
    secrets = tuple(field.name for field in message.fields if is_secret(field))
    inner = tuple(
        field.name for field in message.fields if not is_secret(field) and (kind := _kind(field)) and has_secrets(kind)
    )
    return _Plan(secrets, inner)


def _has_secrets(message: Descriptor, above: frozenset[str]) -> bool:
    if message.full_name in above:
        return False
    below = above | {message.full_name}
    kinds = [_kind(field) for field in message.fields]
    return any(map(is_secret, message.fields)) or any(kind and _has_secrets(kind, below) for kind in kinds)


def _kind(field: FieldDescriptor) -> Any:
    """Message type of the field, or of its map's values; None for other fields."""
    kind: Any = field.message_type
    return kind.fields_by_name["value"].message_type if _is_map(field) else kind


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _descriptor(message: Message) -> Any:
    return message.DESCRIPTOR
