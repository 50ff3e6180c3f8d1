"""Messages made from descriptors: plausible ones, extreme ones, and wire bytes that are no message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from libs.contract.descriptors import length_delimited, varint

_Field = FieldDescriptor

ODD_TEXTS: Sequence[str] = (
    "",
    " ",
    "\0",
    "a\0b",
    "\n",
    "x\r\ny: z",
    "ü",
    "e\u0301",
    "\u202e\u200b\ufeff",
    "\U0010ffff",
    "😀" * 40,
    "../../etc/passwd",
    "sandboxes/",
    "sandboxes/a/b",
    "sandboxes/*",
    "%00%2e%2e",
    "' OR 1=1 --",
    "{}{0.__class__}",
    "${jndi:ldap://x}",
    "*",
    "-1",
    "1e400",
    "NaN",
    "null",
    "18446744073709551616",
    "9" * 400,
    "\\",
    '"',
    "a.b.c.d.e",
    ".",
    "((((((((((",
)

INTEGERS: Sequence[int] = (
    0, 1, -1, 2, 7, 63, 64, 255, 1000, 1023, 1024, 2**15, 2**31 - 1, -(2**31), 2**31, 2**32, 2**53 + 1, 2**62,
    2**63 - 1, -(2**63), 253402300799, 253402300800, -62135596801, 315576000000, 999_999_999, 1_000_000_000,
)  # fmt: skip

FLOATS: Sequence[float] = (0.0, -0.0, 1.0, -1.0, 0.1, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))

_RANGES: Mapping[int, tuple[int, int]] = {
    _Field.TYPE_INT32: (-(2**31), 2**31 - 1),
    _Field.TYPE_SINT32: (-(2**31), 2**31 - 1),
    _Field.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    _Field.TYPE_ENUM: (-(2**31), 2**31 - 1),
    _Field.TYPE_UINT32: (0, 2**32 - 1),
    _Field.TYPE_FIXED32: (0, 2**32 - 1),
    _Field.TYPE_INT64: (-(2**63), 2**63 - 1),
    _Field.TYPE_SINT64: (-(2**63), 2**63 - 1),
    _Field.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    _Field.TYPE_UINT64: (0, 2**64 - 1),
    _Field.TYPE_FIXED64: (0, 2**64 - 1),
}

MOST_DEPTH = 6
LARGE = 200_000
"""Characters of a large text. The public listener takes a request of a few hundred KiB."""


@dataclass(frozen=True, slots=True)
class Words:
    """Plausible values by field name, so that a message passes the first checks of its handler."""

    texts: Mapping[str, Sequence[str]]
    numbers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    needed: frozenset[str] = frozenset()
    """Fields that a request usually lacks only to be refused."""
    only: frozenset[str] = frozenset()
    """Fields that take no value but these: a well-formed other value would be an order to a trusted caller."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes messages from a source of random numbers: the same source makes the same messages."""

    random: Random
    words: Words

    def message(self, kind: Descriptor, depth: int = 0, plausible: float | None = None) -> Message:
        """A message whose fields are plausible with this probability."""
        chance = self.random.choice((1.0, 0.99, 0.97, 0.8)) if plausible is None else plausible
        made = GetMessageClass(kind)()
        for one in kind.fields:
            usual = 0.99 if one.name in self.words.needed else 0.85 if depth < 2 else 0.4
            if self.random.random() < usual:
                self._put(made, one, depth, chance)
        return made

    def data(self, kind: Descriptor) -> bytes:
        """A message as bytes, or bytes that are not quite one."""
        data = self.message(kind).SerializeToString()
        random = self.random
        way = random.random()
        if way < 0.6:
            return data
        if way < 0.7:
            return data + self._unknown_fields()
        if way < 0.78:
            return data[: random.randrange(len(data) + 1)]
        if way < 0.88:
            return self._flipped(data)
        if way < 0.92:
            return data + self._not_utf8(kind)
        if way < 0.96:
            return data + self._deep(kind)
        return random.randbytes(random.choice((0, 1, 3, 20, 300)))

    def _put(self, made: Any, one: FieldDescriptor, depth: int, chance: float) -> None:
        if one.is_repeated and one.message_type is not None and one.message_type.GetOptions().map_entry:
            self._put_map(made, one, depth, chance)
            return
        if one.message_type is not None:
            if depth >= MOST_DEPTH:
                return
            if not one.is_repeated:
                getattr(made, one.name).CopyFrom(self._inner(one, depth, chance))
                return
        if one.is_repeated:
            values = getattr(made, one.name)
            for _ in range(self._count(chance)):
                if one.message_type is not None:
                    values.add().CopyFrom(self._inner(one, depth, chance))
                else:
                    values.append(self.value(one, chance))
            return
        setattr(made, one.name, self.value(one, chance))

    def _put_map(self, made: Any, one: FieldDescriptor, depth: int, chance: float) -> None:
        entry: Any = one.message_type
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        values = getattr(made, one.name)
        for _ in range(self._count(chance)):
            name = self.value(key, chance, f"{one.name}.key")
            if value.message_type is not None:
                values[name].CopyFrom(self._inner(value, depth, chance))
            else:
                values[name] = self.value(value, chance, f"{one.name}.value")

    def _inner(self, one: FieldDescriptor, depth: int, chance: float) -> Message:
        kind: Any = one.message_type
        return self.message(kind, depth + 1, chance)

    def _count(self, chance: float) -> int:
        if self.random.random() < chance:
            return self.random.choice((0, 1, 1, 2))
        return self.random.choice((0, 3, 70, 300))

    def value(self, one: FieldDescriptor, chance: float, name: str = "") -> Any:
        """A value of a field that holds no message."""
        name = name or one.name
        plausible = self.random.random() < chance or name in self.words.only
        if one.type == _Field.TYPE_STRING:
            return self.text(name, plausible=plausible)
        if one.type == _Field.TYPE_BYTES:
            return self.random.randbytes(self.random.choice((0, 1, 8, 16, 200) if plausible else (0, 70_000)))
        if one.type == _Field.TYPE_BOOL:
            return self.random.random() < 0.3
        if one.type in (_Field.TYPE_DOUBLE, _Field.TYPE_FLOAT):
            found = self.random.choice((0.0, 0.1, 1.0, 5.0) if plausible else FLOATS)
            return found if one.type == _Field.TYPE_DOUBLE or abs(found) < 3e38 or found != found else 0.0
        low, high = _RANGES[one.type]
        known = self.words.numbers.get(name)
        if plausible and known:
            return self.random.choice(known)
        if plausible and one.enum_type is not None:
            return self.random.choice([value.number for value in one.enum_type.values])
        number = self.random.choice((0, 1, 2, 10, 100) if plausible else INTEGERS)
        return number if low <= number <= high else high

    def text(self, name: str, *, plausible: bool) -> str:
        known = self.words.texts.get(name)
        if plausible and name == "request_id":
            return str(UUID(int=self.random.getrandbits(128)))
        if plausible and known:
            return self.random.choice(known)
        if plausible:
            return self.random.choice(("a", "b-1", "one two", "x" * 40))
        if self.random.random() < 0.05:
            return self.random.choice("ax\0ü") * self.random.choice((64, 254, 5000, LARGE))
        return self.random.choice(ODD_TEXTS)

    def _unknown_fields(self) -> bytes:
        """Fields that no message has, of each wire type."""
        parts = []
        for _ in range(self.random.choice((1, 3, 50))):
            number = self.random.choice((999, 18999, 20000, 2**29 - 1))
            kind = self.random.choice((0, 1, 2, 5))
            tag = varint(number << 3 | kind)
            content = {0: varint(self.random.getrandbits(63)), 1: bytes(8), 2: varint(5) + b"hello", 5: bytes(4)}
            parts.append(tag + content[kind])
        return b"".join(parts)

    def _flipped(self, data: bytes) -> bytes:
        found = bytearray(data or b"\0")
        for _ in range(self.random.choice((1, 1, 2, 8))):
            found[self.random.randrange(len(found))] ^= 1 << self.random.randrange(8)
        return bytes(found)

    def _not_utf8(self, kind: Descriptor) -> bytes:
        texts = [one for one in kind.fields if one.type == _Field.TYPE_STRING]
        bad = self.random.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"a\xf5b"))
        return length_delimited(self.random.choice(texts).number) + varint(len(bad)) + bad if texts else bad

    def _deep(self, kind: Descriptor) -> bytes:
        """A field within a field, hundreds of times, or groups that begin and do not end."""
        levels = self.random.choice((50, 150, 3000))
        if self.random.random() < 0.3:
            return varint(999 << 3 | 3) * levels
        inner = [one for one in kind.fields if one.message_type is not None]
        tag = length_delimited(self.random.choice(inner).number if inner else 999)
        data = b""
        for _ in range(levels):
            data = tag + varint(len(data)) + data
        return data
