"""Conversion between messages and proto3 JSON, with errors that name the field.

Source: https://protobuf.dev/programming-guides/json/. Duplicate keys, NaN and unknown fields are refused, which a JSON
parser need not do: their sender means something that would be ignored here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Never

from google.protobuf import json_format
from google.protobuf.message import Message

from libs.contract.secrets import has_secrets, in_secret
from libs.errors import Hidden, InvalidField
from libs.http.json_types import DEPTH, check_object

_PLACE = re.compile(r" at \"?([A-Za-z_]\w*(?:\.[^\s.\"]+|\[\d+\])*)\"?")
_SHOWN_CHARACTERS = 200
MOST_VALUES = 20_000
"""Maximum number of values in a body. The event loop needs some 20 microseconds to check and convert each."""


def write_message(message: Message) -> bytes:
    """Write JSON on one line. As the mapping asks, fields with their default value are left out."""
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False).encode(errors="replace")


def serialized(message: Message) -> bytes:
    """Serialize a request deterministically: the same bytes for the same fields, in any order and process. Stores
    recognise a retry by its hash. In an old schema version, maps too are compared as bytes."""
    return message.SerializeToString(deterministic=True)


def read_message(data: bytes, message: Message, field: str = "body") -> None:
    """Merge the JSON object into the message. Raises InvalidField with the field's path in the body."""
    found = parse_json(data, field)
    if not isinstance(found, dict):
        raise InvalidField(field, type(found).__name__, "a JSON object")
    read_object(found, message, field)


def read_object(found: dict[str, Any], message: Message, field: str = "body") -> None:
    """Like `read_message`, for a parsed object."""
    _check_number(found, field)
    kind: Any = message.DESCRIPTOR
    check_object(found, kind, "" if field == "body" else field)
    try:
        json_format.ParseDict(found, message, max_recursion_depth=DEPTH)
    except json_format.ParseError as error:
        named = _named(error, field)
        if in_secret(kind, named.field.removeprefix(f"{field}.")):
            # protobuf's words may quote the value.
            raise InvalidField(named.field, Hidden(), named.expected) from None
        raise named from None
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        # protobuf raises these for values of a wrong JSON type.
        words = type(error).__name__ if has_secrets(kind) else f"{type(error).__name__}: {error}"
        shown = words[:_SHOWN_CHARACTERS]
        raise InvalidField(field, shown, f"a {message.DESCRIPTOR.full_name} as JSON") from None


def parse_json(data: bytes, field: str = "body") -> Any:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidField(field, f"byte {error.start}", "JSON in UTF-8") from None
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise InvalidField(field, f"line {error.lineno} column {error.colno}", f"JSON: {error.msg}") from None
    except RecursionError:
        raise InvalidField(field, "too deeply nested", f"JSON with at most {DEPTH} messages in each other") from None
    except ValueError as error:
        # The integer has thousands of digits.
        raise InvalidField(field, str(error)[:_SHOWN_CHARACTERS], "JSON with numbers that a field can hold") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # To count each name by itself would block the event loop for hours on a large body.
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise InvalidField("body", twice, "an object that has each key once")
    return found


def _check_number(found: dict[str, Any], field: str) -> None:
    """Raises InvalidField if there are too many values."""
    left: list[Any] = [found]
    number = 0
    while left:
        one = left.pop()
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        number += len(inner)
        if number > MOST_VALUES:
            raise InvalidField(field, f"more than {MOST_VALUES} values", f"at most {MOST_VALUES} values in one request")
        left.extend(inner)


def _constant(text: str) -> Never:
    raise InvalidField("body", text, "a finite number")


def _named(error: json_format.ParseError, field: str) -> InvalidField:
    """Convert the innermost cause, which has the position; the outer errors repeat it."""
    innermost: BaseException = error
    while isinstance(innermost.__cause__, (json_format.ParseError, ValueError, TypeError)):
        innermost = innermost.__cause__
    found = _PLACE.search(str(error))
    place = _below(field, found[1]) if found else field
    return InvalidField(place, _PLACE.sub("", str(innermost))[:_SHOWN_CHARACTERS], "a value of the field's type")


def _below(field: str, place: str) -> str:
    """The path in the body. protobuf's paths begin with the name of the message."""
    _, _, path = place.partition(".")
    return ".".join(part for part in (field if field != "body" else "", path) if part) or field
