"""Type checks of JSON objects against a message's fields, with errors that name the field's path.

protobuf's parser checks types too, but often without the path, and it accepts a list for a message and two names of one
field. Messages that have their own JSON form (`google.protobuf.Timestamp`) are left to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from libs.contract.secrets import is_secret
from libs.errors import Hidden, InvalidField
from libs.http.values import INTEGERS, fields_of

DEPTH = 32
"""Maximum nesting of messages in a body."""

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_OWN_FORMS = "google.protobuf."
_NAMES_CHARACTERS = 400
_OWN_FORM_CHARACTERS = 10_000
"""Maximum length of a message in text form: paths of a mask are parsed one by one."""


def check_object(found: Mapping[str, Any], message: Any, path: str = "", depth: int = DEPTH) -> None:
    """`message`: the message's descriptor. `path`: the message's path, "" for the whole body. Raises InvalidField."""
    if not depth:
        raise InvalidField(path, "an object", f"messages nested at most {DEPTH} deep")
    fields = fields_of(message)
    seen: dict[str, str] = {}
    for name, value in found.items():
        field = fields.get(name)
        here = f"{path}.{name}" if path else name
        if field is None:
            names = ", ".join(field.json_name for field in message.fields)
            raise InvalidField(here, name, f"a field that exists: {names}"[:_NAMES_CHARACTERS])
        if field.name in seen:
            shown = Hidden() if is_secret(field) else value
            raise InvalidField(here, shown, f"one value of this field: it is also given as {seen[field.name]}")
        seen[field.name] = name
        if value is not None:
            try:
                _check_field(field, value, here, depth)
            except InvalidField as error:
                if is_secret(field):
                    raise InvalidField(error.field, Hidden(), error.expected) from None
                raise


def _check_field(field: FieldDescriptor, value: Any, path: str, depth: int) -> None:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        _expect(dict, value, path, "a JSON object")
        of_value = entry.fields_by_name["value"]
        parts: Iterable[tuple[str, FieldDescriptor, Any]] = (
            (f"{path}.{key}", of_value, one) for key, one in value.items()
        )
    elif field.is_repeated:
        _expect(list, value, path, "a JSON array")
        parts = ((f"{path}[{place}]", field, one) for place, one in enumerate(value))
    else:
        parts = ((path, field, value),)
    for place, of_one, one in parts:
        if of_one.message_type is not None:
            _check_message(of_one.message_type, one, place, depth)
        elif check := _SCALARS.get(of_one.cpp_type):
            check(of_one, one, place)


def _check_message(message: Descriptor, value: Any, path: str, depth: int) -> None:
    if not message.full_name.startswith(_OWN_FORMS):
        _expect(dict, value, path, f"a {message.full_name} as a JSON object")
        check_object(value, message, path, depth - 1)
    elif isinstance(value, str) and len(value) > _OWN_FORM_CHARACTERS:
        raise InvalidField(path, value, f"a {message.full_name} of at most {_OWN_FORM_CHARACTERS} characters")


def _check_text(field: FieldDescriptor, value: Any, path: str) -> None:
    _expect(
        str, value, path, "base64 as a JSON string" if field.type == FieldDescriptor.TYPE_BYTES else "a JSON string"
    )


def _check_bool(field: FieldDescriptor, value: Any, path: str) -> None:
    _expect(bool, value, path, "true or false")


def _check_integer(field: FieldDescriptor, value: Any, path: str) -> None:
    least, most = INTEGERS[field.cpp_type]
    number = int(value) if isinstance(value, str) and _INTEGER.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not least <= number <= most or number % 1:
        raise InvalidField(path, value, f"a whole number of {least} to {most}")


def _check_enum(field: FieldDescriptor, value: Any, path: str) -> None:
    enum = field.enum_type
    assert enum is not None, "an enum field has its type"
    # protobuf cannot look up names that are not ASCII, such as half of a surrogate pair.
    known = value.isascii() and value in enum.values_by_name if isinstance(value, str) else isinstance(value, int)
    if isinstance(value, bool) or not known:
        raise InvalidField(path, value, f"one of {', '.join(one.name for one in enum.values)}"[:_NAMES_CHARACTERS])


def _expect(kind: type, value: Any, path: str, expected: str) -> None:
    if not isinstance(value, kind):
        raise InvalidField(path, value, expected)


_SCALARS: Mapping[int, Callable[[FieldDescriptor, Any, str], None]] = {
    FieldDescriptor.CPPTYPE_STRING: _check_text,
    FieldDescriptor.CPPTYPE_BOOL: _check_bool,
    FieldDescriptor.CPPTYPE_ENUM: _check_enum,
    **dict.fromkeys(INTEGERS, _check_integer),
}
