"""The evidence of a confirmed difference: the request and both answers, without secrets. Pure.

One example is kept for each kind of difference, operation and set of fields, the latest one, so that a frequent
difference does not push out a rare one. Their number and their size are bounded: once all `SLOTS` of a kind are taken,
a new one replaces the one in its own slot.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from google.protobuf.json_format import Error, MessageToDict
from google.protobuf.message import DecodeError, Message

from libs.contract.secrets import redacted
from libs.ownership.model import Store, Version
from services.router.core.compare import Kind, ShownRecord
from services.router.core.tally import Difference, Side

KINDS = (Kind.MISMATCH, Kind.MISSING)
"""Kinds whose examples are kept. An error has one answer only."""

SLOTS = 24
"""Examples of each kind."""

MAX_JSON_CHARACTERS = 8000
"""Length of a request or an answer. Of a longer one the beginning is kept, and the fields that differ."""

MAX_VALUE_CHARACTERS = 500

_CUT = "…"


class Value(NamedTuple):
    """A field that differs, as JSON at both stores; "null" if it is absent."""

    path: str
    one: str
    other: str


@dataclass(frozen=True, slots=True)
class Example:
    """A difference with its evidence."""

    difference: Difference
    generation: int
    """Generation that set the comparison."""
    router: str
    request: str
    """JSON, as the answers."""
    answers: tuple[str, str]
    """The status of an answer that is an error; empty if the store has no such record."""
    values: tuple[Value, ...]

    @property
    def sort(self) -> tuple[Kind, str, tuple[str, ...]]:
        """Kind, operation and fields of the difference."""
        seen = self.difference
        return seen.kind, seen.operation, seen.fields

    @property
    def slot(self) -> int:
        """The first slot for an example of this sort."""
        _, operation, fields = self.sort
        text = "\0".join((operation, *fields))
        return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big") % SLOTS

    @property
    def id(self) -> str:
        seen = self.difference
        mark = blake2b(f"{seen.time_seconds!r} {seen.key} {self.router}".encode(), digest_size=4).hexdigest()
        return f"{seen.kind.value.lower()}-{self.slot}-{mark}"


def example_of(
    difference: Difference,
    generation: int,
    router: str,
    request: Message,
    kind: type[Message],
    shown: tuple[ShownRecord, ShownRecord],
) -> Example:
    """`kind`: the message of the answers."""
    one, other = (_parsed(kind, seen) for seen in shown)
    values = [Value(path, _value(one, path), _value(other, path)) for path in difference.fields]
    answers = [
        seen.status or (_cut(_json(found), MAX_JSON_CHARACTERS) if seen.reply else "")
        for seen, found in zip(shown, (one, other), strict=True)
    ]
    asked = _cut(_json(_plain(request)), MAX_JSON_CHARACTERS)
    return Example(difference, generation, router, asked, (answers[0], answers[1]), tuple(values))


def _parsed(kind: type[Message], seen: ShownRecord) -> Any:
    try:
        return _plain(kind.FromString(seen.reply))
    except DecodeError:
        return None


def _plain(message: Message) -> Any:
    """None if JSON has no form for it, such as for a time after the year 9999."""
    try:
        return MessageToDict(redacted(message), preserving_proto_field_name=True)
    except (Error, ValueError, TypeError):
        return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + _CUT


def _value(found: Any, path: str) -> str:
    return _cut(_json(_pick(found, path)), MAX_VALUE_CHARACTERS)


def _pick(found: Any, path: str) -> Any:
    """The values at a path of field names; of a list, those of each element."""
    name, _, rest = path.partition(".")
    if isinstance(found, list):
        return [_pick(one, path) for one in found]
    value = found.get(name) if isinstance(found, dict) else None
    return _pick(value, rest) if rest else value


# --- In the control store --------------------------------------------------------------------------------------------


def name_of(kind: Kind, slot: int) -> str:
    """Name of the remembered value."""
    return f"difference/{kind.value}/{slot}"


def names() -> Iterator[str]:
    return (name_of(kind, slot) for kind in KINDS for slot in range(SLOTS))


def to_json(example: Example) -> str:
    seen = example.difference
    return json.dumps(
        {
            "time_seconds": seen.time_seconds,
            "operation": seen.operation,
            "key": seen.key,
            "kind": seen.kind.value,
            "fields": seen.fields,
            "sides": [(side.store.value, side.version, side.content) for side in seen.sides],
            "waited_seconds": seen.waited_seconds,
            "generation": example.generation,
            "router": example.router,
            "request": example.request,
            "answers": example.answers,
            "values": example.values,
        }
    )


def from_json(text: str) -> Example | None:
    """None: a newer release wrote it."""
    try:
        found = json.loads(text)
        one, other = (_side(*side) for side in found["sides"])
        difference = Difference(
            found["time_seconds"],
            found["operation"],
            found["key"],
            Kind(found["kind"]),
            tuple(found["fields"]),
            (one, other),
            found["waited_seconds"],
        )
        first, second = found["answers"]
        values = tuple(Value(*value) for value in found["values"])
        return Example(difference, found["generation"], found["router"], found["request"], (first, second), values)
    except (ValueError, KeyError, TypeError):
        return None


def _side(store: str, version: Sequence[int] | None, content: str) -> Side:
    return Side(Store(store), Version(*version) if version else None, content)
