"""Messages as JSON and back, by proto3's mapping, with a refusal that names the field.

Source: https://protobuf.dev/programming-guides/json/. Stricter than a JSON parser has to be: no key twice, no NaN, no
field that the message does not have. Such a body means something else to its sender than it would here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Never

from google.protobuf import json_format
from google.protobuf.message import Message

from libs.errors import InvalidField
from libs.http.json_types import DEPTH, check_object

_PLACE = re.compile(r" at \"?([A-Za-z_]\w*(?:\.[^\s.\"]+|\[\d+\])*)\"?")
_SHOWN_CHARACTERS = 200
MOST_VALUES = 20_000
"""Of a body. Each costs the event loop some 20 microseconds to check and to put into the message."""


def write_message(message: Message) -> bytes:
    """On one line. A field that has its default value is left out, as the mapping has it."""
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False).encode(errors="replace")


def serialized(message: Message) -> bytes:
    """A request that was read: the same bytes for the same fields, in whatever order they came and whichever process
    reads them. Stores know a retry by them: of an old schema version the maps too are compared as bytes."""
    return message.SerializeToString(deterministic=True)


def read_message(data: bytes, message: Message, field: str = "body") -> None:
    """Merges the JSON object into the message. Raises InvalidField, which names a field by its path in the body."""
    found = parse_json(data, field)
    if not isinstance(found, dict):
        raise InvalidField(field, type(found).__name__, "a JSON object")
    read_object(found, message, field)


def read_object(found: dict[str, Any], message: Message, field: str = "body") -> None:
    """As `read_message`, of an object that is parsed."""
    _check_number(found, field)
    check_object(found, message.DESCRIPTOR, "" if field == "body" else field)
    try:
        json_format.ParseDict(found, message, max_recursion_depth=DEPTH)
    except json_format.ParseError as error:
        raise _named(error, field) from None
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        # What a value of another JSON type runs into.
        shown = f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
        raise InvalidField(field, shown, f"a {message.DESCRIPTOR.full_name} as JSON") from None


def parse_json(data: bytes, field: str = "body") -> Any:
    """Raises InvalidField."""
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
        # An integer of thousands of digits.
        raise InvalidField(field, str(error)[:_SHOWN_CHARACTERS], "JSON with numbers that a field can hold") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # Counted one by one, the names of a large body would keep the event loop busy for hours.
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise InvalidField("body", twice, "an object that has each key once")
    return found


def _check_number(found: dict[str, Any], field: str) -> None:
    """Raises InvalidField when there are too many values."""
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
    """The innermost cause, which says the place: what is around it repeats it."""
    innermost: BaseException = error
    while isinstance(innermost.__cause__, (json_format.ParseError, ValueError, TypeError)):
        innermost = innermost.__cause__
    found = _PLACE.search(str(error))
    place = _below(field, found[1]) if found else field
    return InvalidField(place, _PLACE.sub("", str(innermost))[:_SHOWN_CHARACTERS], "a value of the field's type")


def _below(field: str, place: str) -> str:
    """The path in the body: a place begins with the name of the message."""
    _, _, path = place.partition(".")
    return ".".join(part for part in (field if field != "body" else "", path) if part) or field
