"""Comparison of two stores' answers to one read. Pure: descriptors, versions, bytes.

Rule: a version of a record is made once, so two rows of one version must be equal. A difference at one version is a
MISMATCH, in whatever order the rows were read. A difference between two versions is STALE, because each store follows
the other with some delay. It is MISSING if a store lacks a version that it should have: every change made before that
version has reached the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from libs.contract.descriptors import Method
from libs.contract.unfit import UnfitContract
from libs.ownership.model import NEVER, Version
from services.router.core.comparison_rules import Rules
from services.router.core.merge import HalfPage, Item, end_of

MAX_FIELDS = 16
"""Maximum number of paths in a difference."""

NO_RULES = Rules()

UNKNOWN_FIELDS = "(unknown fields)"
UNREADABLE = "(not a reply of this method)"
STATUS = "(status)"
FILTER = "(matches the filter)"


class Kind(StrEnum):
    """The result of a comparison, from the mildest to the gravest."""

    MATCH = "MATCH"
    ALLOWED = "ALLOWED"
    """Differences that the contract allows (`core.comparison_rules`), and no other."""
    STALE = "STALE"
    """One store showed an older version."""
    ERROR = "ERROR"
    """The other store did not answer."""
    MISSING = "MISSING"
    """A store lacks a version that it should have by now, or has no record at all where it should have one."""
    MISMATCH = "MISMATCH"
    """The same version with other content, or another error for the same request."""


GRAVITY = tuple(Kind)

AGREEING = frozenset({Kind.MATCH, Kind.ALLOWED})


@dataclass(frozen=True, slots=True)
class ShownRecord:
    """One record as one store showed it."""

    version: Version | None
    """Version of the row: (0, 0) if there is no row, None if the request was refused before the row was read."""
    reply: bytes = b""
    status: str = ""
    """Code and reason of an error; empty for a reply."""
    matches: bool = True
    """Whether the store finds that the row of a list matches the filter."""


@dataclass(frozen=True, slots=True)
class RecordComparison:
    """The result of comparing one record at two stores."""

    kind: Kind
    one: ShownRecord
    other: ShownRecord
    fields: tuple[str, ...] = ()
    """Paths of the fields that differ, without their values."""

    @property
    def newest(self) -> Version:
        """The higher of the two versions."""
        return max(self.one.version or NEVER, self.other.version or NEVER)


class Comparison:
    """Replies of one method, or items of its list, compared without the fields that the contract leaves out."""

    def __init__(self, kind: type[Message], ignored: Iterable[str], rules: Rules = NO_RULES) -> None:
        """Raises UnfitContract if the message has no field at a path, or one that its rule does not fit."""
        rules.check(kind.DESCRIPTOR)
        self._rules = rules
        self.kind = kind
        self._ignored = [_path(kind.DESCRIPTOR, path) for path in ignored]

    @classmethod
    def of(cls, method: Method) -> Comparison:
        """Compares a method's replies, or for a list its items. Raises UnfitContract."""
        whole = cls(method.reply_class, method.ignored_reply_fields, Rules.of(method))
        if method.shape is None:
            return whole
        items: Any = method.reply_class.DESCRIPTOR.fields_by_name[method.shape.items]
        head = f"{items.name}."
        inner = [path.removeprefix(head) for path in method.ignored_reply_fields if path.startswith(head)]
        return cls(GetMessageClass(items.message_type), inner, Rules.of(method, head))

    def fields(self, one: ShownRecord, other: ShownRecord) -> tuple[str, ...]:
        """The paths that differ and may not, or (). Errors are compared by code and reason, not by message."""
        return self._differences(one, other)[0]

    def kind_of_answers(self, one: ShownRecord, other: ShownRecord) -> Kind | None:
        """MATCH or ALLOWED; None: they differ as they may not."""
        fields, allowed = self._differences(one, other)
        return None if fields else Kind.ALLOWED if allowed else Kind.MATCH

    def sight(self, one: ShownRecord, other: ShownRecord, due: Version | None = None) -> RecordComparison:
        """`due`: the version that both stores should have by now; None: unknown."""
        fields, allowed = self._differences(one, other)
        kind = _kind(one, other, due) if fields else Kind.ALLOWED if allowed else Kind.MATCH
        return RecordComparison(kind, one, other, fields)

    def _differences(self, one: ShownRecord, other: ShownRecord) -> tuple[tuple[str, ...], bool]:
        """The paths that may not differ, and whether others do that may."""
        if one.status or other.status:
            return () if one.status == other.status else (STATUS,), False
        if one.matches != other.matches:
            return (FILTER,), False
        if one.reply == other.reply or not one.matches:
            return (), False
        try:
            left, right = self._read(one.reply), self._read(other.reply)
        except DecodeError:
            return (UNREADABLE,), False
        found = list(_differing(left, right, "", self._rules))
        paths = dict.fromkeys(path for path, allowed in found if not allowed)
        return tuple(paths)[:MAX_FIELDS], any(allowed for _, allowed in found)

    def _read(self, data: bytes) -> Message:
        message = self.kind.FromString(data)
        for path in self._ignored:
            _clear(message, path)
        return message


def _kind(one: ShownRecord, other: ShownRecord, due: Version | None) -> Kind:
    if one.version is None or other.version is None or one.version == other.version:
        return Kind.MISMATCH
    older = min(one.version, other.version)
    return Kind.MISSING if due is not None and older < due else Kind.STALE


def gravest(kinds: Iterable[Kind]) -> Kind:
    """MATCH for an empty sequence."""
    return max(kinds, key=GRAVITY.index, default=Kind.MATCH)


def pairs_of(
    one: HalfPage, other: HalfPage, looked_up: Mapping[str, Item]
) -> Iterable[tuple[str, Item | None, Item | None]]:
    """The rows that differ between two pages, by name, up to the end of the shorter page. `looked_up`: rows of names
    that only one page has. None stands for a missing row."""
    end = end_of(one, other)
    for name in {*one.rows, *other.rows}:
        mine, theirs = one.rows.get(name), other.rows.get(name)
        if mine and theirs and mine.data == theirs.data and mine.matches == theirs.matches:
            continue
        if end is None or name <= end:
            mine, theirs = mine or looked_up.get(name), theirs or looked_up.get(name)
            found = [item for item in (mine, theirs) if item]
            # Clients do not see a row that only ends a page. A row of an unknown schema cannot be compared.
            if any(item.matches for item in found) and not any(item.unknown_schema for item in found):
                yield name, mine, theirs


def seen_of(item: Item | None) -> ShownRecord:
    """The record in a row of a list."""
    return ShownRecord(item.version, item.data, matches=item.matches) if item else ShownRecord(NEVER, matches=False)


def _path(descriptor: Any, path: str) -> tuple[str, ...]:
    """The names of a path, each of which exists. Raises UnfitContract."""
    names = tuple(path.split("."))
    message = descriptor
    for name in names:
        field = message.fields_by_name.get(name) if message is not None else None
        if field is None:
            raise UnfitContract(f"ignored_reply_fields: there is no field {path!r} in {descriptor.full_name}")
        message = field.message_type
        if message is not None and _is_map(field):
            message = message.fields_by_name["value"].message_type
    return names


def _clear(message: Message, path: tuple[str, ...]) -> None:
    """Clear the field in each message on the path."""
    name, *rest = path
    if not rest:
        message.ClearField(name)
        return
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if field.is_repeated:
        for part in value.values() if _is_map(field) else value:
            _clear(part, tuple(rest))
    elif message.HasField(name):
        _clear(value, tuple(rest))


def _differing(one: Message, other: Message, head: str, rules: Rules) -> Iterator[tuple[str, bool]]:
    """The paths that differ, each with whether it may, without list positions and without keys of maps, because keys
    may be client data."""
    if _plain(one) == _plain(other):
        return
    found = False
    for field in one.DESCRIPTOR.fields:
        differing = _differing_list if field.is_repeated else _differing_field
        for path in differing(field, one, other, f"{head}{field.name}", rules):
            found = True
            yield path
    if not found:
        yield f"{head}{UNKNOWN_FIELDS}", False


def _differing_list(field: Any, one: Message, other: Message, path: str, rules: Rules) -> Iterator[tuple[str, bool]]:
    """Compare two lists or maps."""
    left, right = getattr(one, field.name), getattr(other, field.name)
    if field.message_type is None or _is_map(field):
        if not _same(field, left, right):
            yield path, rules.allows(path, left, right)
    elif len(left) != len(right):
        yield path, False
    elif all(map(_equal_messages, left, right)):
        return
    elif rules.allows(path, left, right):
        yield path, True
    else:
        for a, b in zip(left, right, strict=True):
            yield from _differing(a, b, f"{path}.", rules)


def _differing_field(field: Any, one: Message, other: Message, path: str, rules: Rules) -> Iterator[tuple[str, bool]]:
    left, right = getattr(one, field.name), getattr(other, field.name)
    if field.has_presence and one.HasField(field.name) != other.HasField(field.name):
        yield path, False
    elif field.message_type is None:
        if not _equal(left, right):
            yield path, False
    elif left != right and rules.allows(path, left, right):
        yield path, True
    else:
        yield from _differing(left, right, f"{path}.", rules)


def _same(field: Any, left: Any, right: Any) -> bool:
    """Compares repeated scalars, or maps."""
    if not _is_map(field):
        return len(left) == len(right) and all(map(_equal, left, right))
    if left.keys() != right.keys():
        return False
    same: Callable[[Any, Any], bool] = _equal
    if field.message_type is not None and field.message_type.fields_by_name["value"].message_type is not None:
        same = _equal_messages
    return all(same(left[key], right[key]) for key in left)


def _equal(left: Any, right: Any) -> bool:
    """Compares scalars; NaN equals NaN."""
    return bool(left == right or (left != left and right != right))


def _equal_messages(left: Message, right: Message) -> bool:
    return _plain(left) == _plain(right)


def _plain(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)
